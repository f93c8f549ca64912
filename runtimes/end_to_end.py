"""The whole pipeline on a source, timed stage by stage: what ``edgepose run`` does, without an output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgepose.errors import SourceError
from edgepose.metrics import Metrics
from edgepose.pipeline import Estimator, Pipeline
from edgepose.sources import open_source
from edgepose.streaming import First, stream

__all__ = ["EndToEnd", "measure_end_to_end"]


@dataclass(frozen=True)
class EndToEnd:
    """One variant on a source.

    Attributes:
        frames, people: That were worked on.
        fps: Frames per second of wall time, the opening of the source not counted.
        cpu_ms: CPU time of the process per frame.
        stages_ms: Stage -> ``p50``, ``p95``, ``p99`` and ``count``; ``camera to result`` is how old a result was.
        dropped: Frames of a live source that nobody took.
    """

    variant: str
    source: str
    threads: int | None
    frames: int
    people: int
    fps: float
    cpu_ms: float
    stages_ms: dict[str, dict[str, float]]
    dropped: int


def measure_end_to_end(
    estimator: Estimator,
    source: str,
    *,
    most_frames: int,
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> EndToEnd:
    """Send the first frames of a source through a pipeline.

    Raises:
        SourceError: It cannot be read, or has no frames.
        EngineError: The engine failed.
    """
    with open_source(source) as opened:
        metrics = Metrics(lambda: {"dropped": opened.dropped})
        pipeline = Pipeline(estimator, moving=opened.moving, metrics=metrics)
        total = min(opened.count, most_frames)
        for _ in stream(First(opened, most_frames), pipeline, metrics):
            progress(metrics.frames, total)
        if not metrics.frames:
            raise SourceError(f"{source}: has no frames")
        figures: dict[str, Any] = metrics.snapshot()
        return EndToEnd(
            variant=estimator.variant,
            source=opened.name,
            threads=threads,
            frames=metrics.frames,
            people=metrics.people,
            fps=metrics.frames / figures["seconds"],
            cpu_ms=1e3 * figures["cpu_seconds"] / metrics.frames,
            stages_ms=figures["stages_ms"],
            dropped=int(figures["dropped"]),
        )
