"""Where ``edgepose run`` sends its results: the sinks that were asked for, opened together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgepose.metrics import Metrics
    from edgepose.streaming import Sink

__all__ = ["Outputs"]


@dataclass(frozen=True)
class Outputs:
    """What was asked for.

    Attributes:
        video, json_lines, coco: Files to write.
        mqtt: Address of a broker.
        serve, serve_token: Address of the live page, and who may see it from elsewhere.
        window: Whether to show a window.
        metrics: ``prometheus://...``, or a JSON file to write at the end.
    """

    video: Path | None = None
    json_lines: Path | None = None
    coco: Path | None = None
    mqtt: str | None = None
    serve: str | None = None
    serve_token: str | None = None
    window: bool = False
    metrics: str | None = None

    @property
    def metrics_file(self) -> Path | None:
        """The JSON file for the figures, if it is one."""
        return Path(self.metrics) if self.metrics and "://" not in self.metrics else None

    @property
    def files(self) -> list[Path]:
        """The files that poses go to."""
        return [path for path in (self.video, self.json_lines, self.coco) if path]

    def check(self, inputs: list[Path], *, force: bool) -> None:
        """Refuse what cannot be written, before any work is done.

        Raises:
            UsageError: There is no output, or two are the same file.
            SinkError: See ``check_output``.
        """
        from edgepose.sinks import check_output

        if not (self.files or self.mqtt or self.serve or self.window or self.metrics):
            raise click.UsageError(
                "give --out VIDEO, --json FILE, --serve, --mqtt, --window or --metrics: otherwise the poses go nowhere"
            )
        files = self.files + ([self.metrics_file] if self.metrics_file else [])
        if len({path.absolute() for path in files}) < len(files):
            raise click.UsageError("two outputs name the same file")
        for path in files:
            check_output(path, force=force, inputs=inputs)

    @contextmanager
    def open(self, fps: float, caption: str, threshold: float, metrics: Metrics) -> Iterator[list[Sink]]:
        """The sinks, and the server of the figures; if one cannot be opened, the others are closed."""
        from edgepose.metrics_server import MetricsServer

        sinks: list[Sink] = []
        server = None
        try:
            if self.metrics and not self.metrics_file:
                server = MetricsServer(self.metrics, metrics)
            self._add(sinks, fps, caption, threshold, metrics)
        except BaseException:
            for sink in sinks:
                sink.close(complete=False)
            if server:
                server.close()
            raise
        try:
            yield sinks
        finally:
            if server:
                server.close()

    def _add(self, sinks: list[Sink], fps: float, caption: str, threshold: float, metrics: Metrics) -> None:
        from edgepose.sinks import CocoResultsSink, JsonLinesSink, VideoSink

        if self.video:
            sinks.append(VideoSink(self.video, fps, caption, threshold))
        if self.json_lines:
            sinks.append(JsonLinesSink(self.json_lines))
        if self.coco:
            sinks.append(CocoResultsSink(self.coco))
        if self.mqtt:
            from edgepose.mqtt import MqttSink

            sinks.append(MqttSink(self.mqtt))
        if self.serve:
            from edgepose.serve import ServeSink

            sinks.append(
                ServeSink(self.serve, self.serve_token, stats=metrics.for_people, title=caption, threshold=threshold)
            )
        if self.window:
            from edgepose.window import WindowSink

            sinks.append(WindowSink(caption=caption, threshold=threshold))
