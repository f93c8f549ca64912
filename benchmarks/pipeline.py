"""What the pipeline adds to its engine: `pipeline.py BUNDLE [--clip CLIP] [--threads N] [--box X1,Y1,X2,Y2]`.

frames per second   edgepose run's pipeline on a clip, poses to JSON lines, against the engine's bare loop on the
                    very crops that it saw, in turn, five times; and the part of CPU time that is not the engine's
paced               the clip at 30 frames per second as if live: from a frame's arrival to its poses
people              milliseconds of one frame with 1, 2, 4 and 8 people: one call for all, against one call each

With --box the person is there in every frame, and is not followed: for models whose weights are made up.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgepose.assets import SAMPLE_CLIP
from edgepose.geometry import regions_from_boxes
from edgepose.machine import machine
from edgepose.metrics import LATENCY, Metrics
from edgepose.pipeline import Estimator, Pipeline
from edgepose.runtimes.load import load
from edgepose.sinks import JsonLinesSink
from edgepose.sources import Frame, SourceOptions, open_source
from edgepose.streaming import run
from edgepose.types import Engine

_ROUNDS = 5


class Watched:
    """An engine without a queue that remembers its inputs."""

    def __init__(self, engine: Engine) -> None:
        """Watch an engine."""
        self.name, self.device, self.metadata = engine.name, engine.device, engine.metadata
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self.placement, self.close = engine.placement, engine.close
        self._run = engine.run
        self.seen: list[Mapping[str, NDArray[Any]]] = []

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See :class:`edgepose.types.Engine`."""
        self.seen.append({name: array.copy() for name, array in feeds.items()})
        return self._run(feeds)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


Boxes = Callable[[Frame], ArrayLike] | None


def through_the_pipeline(estimator: Estimator, clip: Path, folder: Path, boxes: Boxes) -> int:
    """Frames that went from the clip to JSON lines."""
    with open_source(str(clip)) as source:
        return run(source, Pipeline(estimator, boxes=boxes), [JsonLinesSink(folder / "poses.jsonl")]).frames


def throughput(estimator: Estimator, clip: Path, boxes: Boxes) -> dict[str, float]:
    """Both loops in turn; medians."""
    watched = Watched(estimator.engine)
    with tempfile.TemporaryDirectory() as folder:
        frames = through_the_pipeline(Estimator(watched, estimator.spec), clip, Path(folder), boxes)

        def bare() -> None:
            for feeds in watched.seen:
                estimator.engine.run(feeds)

        bare()
        rounds = [
            (timed(bare), timed(lambda: through_the_pipeline(estimator, clip, Path(folder), boxes)))
            for _ in range(_ROUNDS)
        ]
    bare_s, bare_cpu = (statistics.median(r[0][i] for r in rounds) for i in (0, 1))
    run_s, run_cpu = (statistics.median(r[1][i] for r in rounds) for i in (0, 1))
    return {
        "frames": frames,
        "engine_calls": len(watched.seen),
        "bare_fps": frames / bare_s,
        "run_fps": frames / run_s,
        "ratio": bare_s / run_s,
        "cpu_outside_engine_percent": 100 * (run_cpu - bare_cpu) / run_cpu,
    }


def paced(estimator: Estimator, clip: Path, fps: float, boxes: Boxes) -> dict[str, float]:
    """Milliseconds from arrival to poses on a live source."""
    metrics = Metrics()
    with open_source(str(clip), SourceOptions(pace=True, fps=fps)) as source:
        run(source, Pipeline(estimator, boxes=boxes, metrics=metrics), [], metrics)
        dropped = source.dropped
    found = metrics.percentiles()[LATENCY]
    return {"fps": fps, "frames": metrics.frames, "dropped": dropped, "p50": found.p50, "p95": found.p95}


def one_by_one(estimator: Estimator, frame: NDArray[np.uint8], regions: NDArray[np.float64]) -> None:
    """A call for each person."""
    for region in regions:
        estimator.poses_at(frame, region[None])


def people(estimator: Estimator, clip: Path, rounds: int = 30) -> list[dict[str, float]]:
    """Medians, in turn."""
    with open_source(str(clip)) as source:
        frame = list(source)[-1].image_bgr
    spec = estimator.spec
    box = regions_from_boxes(np.array([[380.0, 0, 165, 410]]), spec.aspect, spec.crop_padding)
    rows = []
    for count in (1, 2, 4, 8):
        regions = np.repeat(box, count, axis=0)
        together = partial(estimator.poses_at, frame, regions)
        apart = partial(one_by_one, estimator, frame, regions)
        times = [(timed(together)[0], timed(apart)[0]) for _ in range(rounds)]
        ms, apart_ms = (1e3 * statistics.median(row[i] for row in times) for i in (0, 1))
        rows.append({"people": count, "ms": ms, "one_by_one_ms": apart_ms, "ratio": apart_ms / ms})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--variant")
    parser.add_argument("--clip", type=Path, default=SAMPLE_CLIP)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--box", type=lambda text: [float(word) for word in text.split(",")])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    boxes = (lambda frame: [given.box]) if given.box else None
    estimator = load(given.bundle, variant=given.variant, threads=given.threads)
    found = {
        "machine": machine(),
        "model": f"{estimator.spec.name} {estimator.variant}",
        "threads": given.threads,
        "throughput": throughput(estimator, given.clip, boxes),
        "paced": paced(estimator, given.clip, 30, boxes),
        "people": people(estimator, given.clip),
    }
    print(json.dumps(found, indent=2))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
