"""What a running pipeline measures of itself: times of its stages, frames, drops, and how old a result is.

Times are kept for the last two thousand frames, so that memory stays flat and percentiles follow the present.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["LATENCY", "Metrics", "Percentiles"]

LATENCY = "camera to result"
"""Stage name of the time from a frame's arrival to its poses."""

_KEPT = 2000
_FPS_OVER_S = 5.0


@dataclass(frozen=True)
class Percentiles:
    """Milliseconds of one stage over the frames that are kept: median, 95th and 99th percentile, and how many."""

    p50: float
    p95: float
    p99: float
    count: int


class Metrics:
    """Counts and times; stages may run in threads of their own.

    Attributes:
        frames, people: So far.
        counters: More counts by name, asked for when they are shown: drops and reconnects of the source.
    """

    def __init__(self, counters: Callable[[], Mapping[str, int]] = dict) -> None:
        self.frames = 0
        self.people = 0
        self.counters = counters
        self._start = time.monotonic()
        self._cpu = time.process_time()
        self._stages: dict[str, deque[float]] = {}
        self._done: deque[float] = deque(maxlen=_KEPT)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block as one more pass of a stage."""
        start = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """One more pass of a stage."""
        self._stages.setdefault(name, deque(maxlen=_KEPT)).append(seconds)

    def result(self, people: int, captured_s: float) -> None:
        """A frame is done; ``captured_s`` is the monotonic time when it arrived."""
        now = time.monotonic()
        self.add(LATENCY, now - captured_s)
        self._done.append(now)
        self.frames += 1
        self.people += people

    @property
    def fps(self) -> float:
        """Frames per second over the last five seconds."""
        now = time.monotonic()
        recent = [done for done in list(self._done) if now - done <= _FPS_OVER_S]
        return (len(recent) - 1) / (recent[-1] - recent[0]) if len(recent) > 1 else 0.0

    @property
    def seconds(self) -> float:
        """Wall time since the start."""
        return time.monotonic() - self._start

    @property
    def cpu_seconds(self) -> float:
        """CPU time of the process since the start."""
        return time.process_time() - self._cpu

    def percentiles(self) -> dict[str, Percentiles]:
        """By stage, in the order in which they first ran."""
        found = {}
        for name, seconds in list(self._stages.items()):
            p50, p95, p99 = 1e3 * np.percentile(list(seconds), [50, 95, 99])
            found[name] = Percentiles(float(p50), float(p95), float(p99), len(seconds))
        return found

    def snapshot(self) -> dict[str, Any]:
        """Everything, for JSON: counts, frames per second, and milliseconds by stage."""
        return {
            "frames": self.frames,
            "people": self.people,
            "fps": round(self.fps, 2),
            "seconds": round(self.seconds, 3),
            "cpu_seconds": round(self.cpu_seconds, 3),
            **self.counters(),
            "stages_ms": {
                name: {"p50": round(p.p50, 3), "p95": round(p.p95, 3), "p99": round(p.p99, 3), "count": p.count}
                for name, p in self.percentiles().items()
            },
        }

    def for_people(self) -> dict[str, Any]:
        """What the live page shows."""
        times = self.percentiles()
        latency = times.get(LATENCY)
        shown = {} if latency is None else {"p50": latency.p50, "p95": latency.p95, "p99": latency.p99}
        return {"fps": self.fps, "latency_ms": shown, **self.counters(), "uptime_s": self.seconds}

    def prometheus(self) -> str:
        """The same in Prometheus' text format."""
        values = self.snapshot()
        lines = [
            "# TYPE edgepose_frames_total counter",
            f"edgepose_frames_total {values['frames']}",
            "# TYPE edgepose_people_total counter",
            f"edgepose_people_total {values['people']}",
            "# TYPE edgepose_fps gauge",
            f"edgepose_fps {values['fps']}",
            "# TYPE edgepose_cpu_seconds_total counter",
            f"edgepose_cpu_seconds_total {values['cpu_seconds']}",
        ]
        for name, count in self.counters().items():
            lines += [f"# TYPE edgepose_{name}_total counter", f"edgepose_{name}_total {count}"]
        lines.append("# TYPE edgepose_stage_milliseconds gauge")
        for stage, times in values["stages_ms"].items():
            label = stage.replace(" ", "_")
            for quantile, key in (("0.5", "p50"), ("0.95", "p95"), ("0.99", "p99")):
                lines.append(f'edgepose_stage_milliseconds{{stage="{label}",quantile="{quantile}"}} {times[key]}')
        return "\n".join(lines) + "\n"
