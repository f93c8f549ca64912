"""Latency of variants on this machine: interleaved, so that a drifting clock speed hits all of them alike."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.decode import decode
from edgepose.errors import EngineError
from edgepose.lifting import normalise
from edgepose.model import LoadedModel
from edgepose.preprocess import crop
from edgepose.types import ModelSpec

__all__ = ["LatencyRow", "measure_latency", "peak_rss_mb"]

_FRAME_WH = (1280, 720)


@dataclass(frozen=True)
class LatencyRow:
    """One variant. Times are milliseconds per call with ``batch`` people.

    Attributes:
        pre_ms, decode_ms: Medians of cropping from a 1280 x 720 frame and of decoding; of a lifting model, of
            normalising keypoints, and nothing.
        infer_ms: Median, and p95_ms and p99_ms the percentiles, of the engine alone.
        cpu_ms: Median CPU time of the engine, all threads together.
        fps: People per second of the three stages one after the other: batch / (pre + infer + decode).
        speedup: Median inference of the first FP32 row over this one's; None without an FP32 row.
    """

    variant: str
    engine: str
    device: str
    threads: int | None
    batch: int
    iterations: int
    pre_ms: float
    infer_ms: float
    p95_ms: float
    p99_ms: float
    cpu_ms: float
    decode_ms: float
    fps: float
    speedup: float | None


@dataclass
class _Times:
    pre: list[float] = field(default_factory=list)
    infer: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)


def measure_latency(
    models: Mapping[str, LoadedModel],
    *,
    iterations: int = 100,
    warmup: int = 10,
    batch: int = 1,
    threads: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[LatencyRow]:
    """Time pre-processing, inference and decoding of each model, in turn, again and again.

    Args:
        models: By variant name; all of one model.
        iterations: Timed rounds.
        warmup: Rounds before them that are not counted.
        batch: People per call.
        threads: What the models were loaded with; recorded.
        seed: Seed of the input and of the order within a round.
        progress: Told how many rounds are done, and out of how many.
    """
    rng = np.random.default_rng(seed)
    prepare, finish = _stages(next(iter(models.values())).spec, batch, rng)
    names = list(models)
    times = {name: _Times() for name in names}
    for i in range(warmup + iterations):
        for name in rng.permutation(names):
            _time_once(models[name], prepare, finish, times[name] if i >= warmup else _Times())
        progress(i + 1, warmup + iterations)
    return _rows(models, times, batch, threads)


Prepare = Callable[[], NDArray[Any]]
Finish = Callable[[NDArray[np.float32]], object]


def _stages(spec: ModelSpec, batch: int, rng: np.random.Generator) -> tuple[Prepare, Finish]:
    """What comes before the engine, and after it."""
    if spec.task == "lift3d":
        people = rng.uniform(0, _FRAME_WH[1], (batch, len(spec.joints.joints), 2))
        return lambda: normalise(people, _FRAME_WH, str(spec.normalisation)), lambda xyz: None
    frame = rng.integers(0, 256, (_FRAME_WH[1], _FRAME_WH[0], 3), dtype=np.uint8)
    height = 0.8 * _FRAME_WH[1]
    regions = np.tile([_FRAME_WH[0] / 2, _FRAME_WH[1] / 2, height * spec.aspect, height], (batch, 1))
    return lambda: crop(frame, regions, spec.input_wh), lambda heatmaps: decode(heatmaps, regions)


def _time_once(model: LoadedModel, prepare: Prepare, finish: Finish, times: _Times) -> None:
    clock, start = time.perf_counter, time.perf_counter()
    inputs = prepare()
    prepared, cpu = clock(), time.process_time()
    answers = model.infer(inputs)
    inferred, cpu_inferred = clock(), time.process_time()
    finish(answers)
    times.pre.append(prepared - start)
    times.infer.append(inferred - prepared)
    times.cpu.append(cpu_inferred - cpu)
    times.decode.append(clock() - inferred)


def _rows(
    models: Mapping[str, LoadedModel], times: Mapping[str, _Times], batch: int, threads: int | None
) -> list[LatencyRow]:
    fp32 = next((_median_ms(times[name].infer) for name in models if name.endswith("-fp32")), None)
    rows = []
    for name, model in models.items():
        t = times[name]
        pre, infer, post = _median_ms(t.pre), _median_ms(t.infer), _median_ms(t.decode)
        rows.append(
            LatencyRow(
                variant=name,
                engine=model.engine.name,
                device=model.engine.device,
                threads=threads,
                batch=batch,
                iterations=len(t.infer),
                pre_ms=pre,
                infer_ms=infer,
                p95_ms=_percentile_ms(t.infer, 95),
                p99_ms=_percentile_ms(t.infer, 99),
                cpu_ms=_median_ms(t.cpu),
                decode_ms=post,
                fps=1000 * batch / (pre + infer + post),
                speedup=fp32 / infer if fp32 else None,
            )
        )
    return rows


def _median_ms(seconds: Sequence[float]) -> float:
    return _percentile_ms(seconds, 50)


def _percentile_ms(seconds: Sequence[float], q: float) -> float:
    return float(np.percentile(seconds, q)) * 1e3


_RSS_PROBE = """
import sys
import numpy as np
from pathlib import Path
from edgepose.runtimes.load import load_model
path, engine, device, threads, batch = sys.argv[1:]
model = load_model(path, engine, device, threads=int(threads) or None, self_test=False)
tensor = model.spec.input
for _ in range(3):
    model.infer(np.zeros((int(batch), *tensor.shape[1:]), tensor.dtype))
try:
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")))
except OSError:
    import resource
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


def peak_rss_mb(path: Path, engine: str, device: str, threads: int | None, batch: int = 1) -> float:
    """Peak resident memory of a fresh process that loads a model and runs it three times, in MiB.

    Raises:
        EngineError: The process failed.
    """
    arguments = [str(path), engine, device, str(threads or 0), str(batch)]
    done = subprocess.run([sys.executable, "-c", _RSS_PROBE, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise EngineError(f"{path}: the process that measures memory failed ({reason})")
    return float(done.stdout.strip().splitlines()[-1])
