"""Latency of variants on this machine: in turn, so that a drifting clock speed hits all of them alike.

In its turn a variant runs a few times in a row, after a run that is not timed: the caches are its own again, as they
are where it runs alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.decode import decode
from edgepose.errors import EdgePoseError
from edgepose.lifting import normalise
from edgepose.model import LoadedModel
from edgepose.preprocess import crop
from edgepose.runtimes.statistics import drift, percentile, steady
from edgepose.types import ModelSpec

__all__ = [
    "TURN",
    "LatencyRow",
    "Prepare",
    "Times",
    "Timing",
    "curve",
    "latency_rows",
    "measure_latency",
    "stages",
    "time_models",
]

_FRAME_WH = (1280, 720)
TURN = 5
"""Runs in a row."""
_WARMUP_TURNS, _WARMUP_S = 10, 20.0


@dataclass(frozen=True)
class LatencyRow:
    """One variant. Times are milliseconds per call with ``batch`` people.

    Attributes:
        mode: ``latency``, or ``throughput`` (:mod:`edgepose.runtimes.throughput`).
        in_flight: Requests that were under way together; None where one waited for the other.
        iterations: Timed runs.
        steady: Whether warming up ended because times no longer fell, and not because it took too long.
        pre_ms, decode_ms: Medians of cropping from a 1280 x 720 frame and of decoding; of a lifting model, of
            normalising keypoints, and nothing. None in throughput mode.
        infer_ms: Median, and p95_ms and p99_ms the percentiles, of the engine alone.
        infer_low_ms, infer_high_ms, p95_low_ms, p95_high_ms: Where median and percentile lie with 95 % confidence;
            None where the runs are too few to tell.
        cpu_ms: CPU time of the engine, all threads together: the median, in throughput mode the mean.
        fps: People per second: of the three stages one after the other, batch / (pre + infer + decode); in throughput
            mode of the engine alone.
        fps_low, fps_high: In throughput mode, where it lies with 95 % confidence.
        speedup: Over ``baseline``, the first FP32 row of the same threads and batch; None without one.
        drift: How much slower the last third of the runs was than the first.
        drifted: Whether that is more than chance and more than 3 %.
        percentiles_ms: Percentiles 0 to 100 of the engine.
    """

    variant: str
    engine: str
    device: str
    threads: int | None
    batch: int
    mode: str
    in_flight: int | None
    iterations: int
    steady: bool
    pre_ms: float | None
    infer_ms: float
    infer_low_ms: float | None
    infer_high_ms: float | None
    p95_ms: float
    p95_low_ms: float | None
    p95_high_ms: float | None
    p99_ms: float
    cpu_ms: float
    decode_ms: float | None
    fps: float
    fps_low: float | None
    fps_high: float | None
    speedup: float | None
    baseline: str | None
    drift: float
    drifted: bool
    percentiles_ms: tuple[float, ...] = field(repr=False)


@dataclass
class Times:
    """Seconds of each timed run, in order."""

    pre: list[float] = field(default_factory=list)
    infer: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    steady: bool = True


@dataclass(frozen=True)
class Timing:
    """Times by variant, and why the others have none."""

    times: Mapping[str, Times]
    failed: Mapping[str, EdgePoseError]


def measure_latency(
    models: Mapping[str, LoadedModel],
    *,
    iterations: int = 100,
    warmup: int | None = None,
    batch: int = 1,
    threads: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[LatencyRow]:
    """Time pre-processing, inference and decoding of each model; arguments as in :func:`time_models`.

    Raises:
        EdgePoseError: A model failed.
    """
    timing = time_models(models, iterations=iterations, warmup=warmup, batch=batch, seed=seed, progress=progress)
    for error in timing.failed.values():
        raise error
    return latency_rows(models, timing.times, batch, threads)


def time_models(
    models: Mapping[str, LoadedModel],
    *,
    iterations: int = 100,
    duration_s: float | None = None,
    warmup: int | None = None,
    batch: int = 1,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Timing:
    """Time each model in turn, again and again.

    Args:
        models: By variant name; all of one model.
        iterations: Timed runs of each.
        duration_s: In their place: seconds for each model.
        warmup: Runs before them that are not timed; by default until their medians no longer change by 5 %, at most 50
            runs or 20 seconds.
        batch: People per call.
        seed: Seed of the input and of the order within a round.
        progress: Told how many runs (or seconds) are done, and out of how many.
    """
    rng = np.random.default_rng(seed)
    prepare, finish = stages(next(iter(models.values())).spec, batch, rng)
    times = {name: Times() for name in models}
    failed: dict[str, EdgePoseError] = {}

    def turns(count: int, into: Mapping[str, Times]) -> None:
        for name in rng.permutation([name for name in models if name not in failed]):
            try:
                _turn(models[name], prepare, finish, into[name], count)
            except EdgePoseError as error:
                failed[str(name)] = error

    progress(0, iterations if duration_s is None else int(duration_s * len(models)))
    settled = _warm_up(turns, list(models), failed, warmup)
    for count, done, total in _rounds(iterations, duration_s, lambda: len(models) - len(failed)):
        turns(count, times)
        progress(done, total)
    for name, one in times.items():
        one.steady = name in settled
    return Timing({name: one for name, one in times.items() if name not in failed}, failed)


Prepare = Callable[[], NDArray[Any]]
Finish = Callable[[NDArray[np.float32]], object]
_Turns = Callable[[int, Mapping[str, Times]], None]


def _warm_up(
    turns: _Turns, names: list[str], failed: Mapping[str, EdgePoseError], warmup: int | None
) -> frozenset[str]:
    """Run until nothing changes any more, or so many times; the names of those that are steady."""
    cold = {name: Times() for name in names}
    if warmup is not None:
        for count in _split(warmup):
            turns(count, cold)
        return frozenset(names)
    begin = time.perf_counter()
    for _ in range(_WARMUP_TURNS):
        turns(TURN, cold)
        waiting = [name for name in names if name not in failed and not steady(cold[name].infer, TURN)]
        if not waiting or time.perf_counter() - begin > _WARMUP_S:
            break
    return frozenset(name for name in names if steady(cold[name].infer, TURN))


def _rounds(iterations: int, duration_s: float | None, running: Callable[[], int]) -> Iterator[tuple[int, int, int]]:
    """Runs of the next turn, and what will be done after it, out of how much."""
    if duration_s is None:
        done = 0
        for count in _split(iterations):
            done += count
            yield count, done, iterations
        return
    begin, gone = time.perf_counter(), 0.0
    while gone < (total := duration_s * max(running(), 1)) and running():
        yield TURN, min(int(gone), int(total)), int(total)
        gone = time.perf_counter() - begin


def _split(count: int) -> Iterator[int]:
    """Turns that make up so many runs."""
    for start in range(0, count, TURN):
        yield min(TURN, count - start)


def stages(spec: ModelSpec, batch: int, rng: np.random.Generator) -> tuple[Prepare, Finish]:
    """What comes before the engine, and after it."""
    if spec.task == "lift3d":
        people = rng.uniform(0, _FRAME_WH[1], (batch, len(spec.joints.joints), 2))
        return lambda: normalise(people, _FRAME_WH, str(spec.normalisation)), lambda xyz: None
    frame = rng.integers(0, 256, (_FRAME_WH[1], _FRAME_WH[0], 3), dtype=np.uint8)
    height = 0.8 * _FRAME_WH[1]
    regions = np.tile([_FRAME_WH[0] / 2, _FRAME_WH[1] / 2, height * spec.aspect, height], (batch, 1))
    return lambda: crop(frame, regions, spec.input_wh), lambda heatmaps: decode(heatmaps, regions)


def _turn(model: LoadedModel, prepare: Prepare, finish: Finish, times: Times, count: int) -> None:
    """So many timed runs in a row, stage by stage."""
    clock, cpu_clock = time.perf_counter, time.process_time
    inputs, answers = [], []
    for _ in range(count):
        start = clock()
        inputs.append(prepare())
        times.pre.append(clock() - start)
    model.infer(inputs[0])
    for one in inputs:
        start, cpu = clock(), cpu_clock()
        answers.append(model.infer(one))
        times.infer.append(clock() - start)
        times.cpu.append(cpu_clock() - cpu)
    for answer in answers:
        start = clock()
        finish(answer)
        times.decode.append(clock() - start)


def latency_rows(
    models: Mapping[str, LoadedModel], times: Mapping[str, Times], batch: int, threads: int | None
) -> list[LatencyRow]:
    """What the times come to; the first FP32 model is the baseline of the speed-ups."""
    baseline = next((name for name in times if name.endswith("-fp32")), None)
    base = _ms(times[baseline].infer) if baseline else None
    return [_row(name, models[name], one, batch, threads, baseline, base) for name, one in times.items()]


def _row(
    name: str,
    model: LoadedModel,
    times: Times,
    batch: int,
    threads: int | None,
    baseline: str | None,
    base_ms: float | None,
) -> LatencyRow:
    median, p95 = percentile(1e3 * np.array(times.infer), 50), percentile(1e3 * np.array(times.infer), 95)
    pre, post = _ms(times.pre), _ms(times.decode)
    drifting, drifted = drift(times.infer)
    percentiles = curve(times.infer)
    return LatencyRow(
        variant=name,
        engine=model.engine.name,
        device=model.engine.device,
        threads=threads,
        batch=batch,
        mode="latency",
        in_flight=None,
        iterations=len(times.infer),
        steady=times.steady,
        pre_ms=pre,
        infer_ms=median.value,
        infer_low_ms=median.low,
        infer_high_ms=median.high,
        p95_ms=p95.value,
        p95_low_ms=p95.low,
        p95_high_ms=p95.high,
        p99_ms=percentiles[99],
        cpu_ms=_ms(times.cpu),
        decode_ms=post,
        fps=1000 * batch / (pre + median.value + post),
        fps_low=None,
        fps_high=None,
        speedup=base_ms / median.value if base_ms else None,
        baseline=baseline,
        drift=drifting,
        drifted=drifted,
        percentiles_ms=percentiles,
    )


def curve(seconds: list[float]) -> tuple[float, ...]:
    """Percentiles 0 to 100, milliseconds."""
    return tuple(float(ms) for ms in 1e3 * np.percentile(seconds, range(101)))


def _ms(seconds: list[float]) -> float:
    return 1e3 * float(np.median(seconds))
