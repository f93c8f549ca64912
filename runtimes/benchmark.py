"""A benchmark: every variant, threads by threads and batch by batch, as one document (docs/bench.md)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.errors import BundleError, EdgePoseError, EngineError
from edgepose.machine import machine
from edgepose.model import LoadedModel
from edgepose.pipeline import Estimator
from edgepose.runtimes.cpu_load import load_between, moment
from edgepose.runtimes.end_to_end import measure_end_to_end
from edgepose.runtimes.energy import Meter, find_meter
from edgepose.runtimes.latency import LatencyRow, latency_rows, stages, time_models
from edgepose.runtimes.load import model_bytes, model_files
from edgepose.runtimes.memory import peak_memory
from edgepose.runtimes.native import Job, compare_with_tool
from edgepose.runtimes.profile import ProfilingEngine
from edgepose.runtimes.thermal import climate
from edgepose.runtimes.throughput import Requests, Server, Workers, is_async, measure_throughput
from edgepose.runtimes.words import plural

__all__ = ["MODES", "SCHEMA", "Settings", "benchmark"]

SCHEMA = 1
MODES = ("latency", "throughput")
_PROFILE_RUNS = 10
_ENERGY_S = 2.0

Loader = Callable[[str, int | None], tuple[LoadedModel, Mapping[str, str]]]
"""Opens a variant with so many threads; gives the engine options that it was opened with too.

Raises:
    EdgePoseError: It does not run here.
"""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Settings:
    """What is measured, and for how long.

    Attributes:
        mode: ``latency``: one request after the other. ``throughput``: as many as the engine can take.
        iterations, duration_s, warmup, seed: See :func:`edgepose.runtimes.latency.time_models`.
        threads: Numbers of threads, in turn; None is the engine's choice.
        batch: People per call, in turn.
        in_flight: Requests under way together; None chooses.
        profile: Whether to time each operator.
        native: Whether to run each engine's own benchmark tool too.
        source: Frames for the whole pipeline.
        frames: So many of them at most.
    """

    mode: str = "latency"
    iterations: int = 100
    duration_s: float | None = None
    warmup: int | None = None
    seed: int = 0
    threads: tuple[int | None, ...] = (None,)
    batch: tuple[int, ...] = (1,)
    in_flight: int | None = None
    profile: bool = False
    native: bool = False
    source: str | None = None
    frames: int = 300


@dataclass
class _Found:
    """What has been measured so far."""

    rows: list[dict[str, Any]]
    failed: dict[str, EdgePoseError]
    profiles: dict[str, list[dict[str, Any]]]
    no_profile: dict[str, str]
    end_to_end: list[dict[str, Any]]
    remarks: list[str]
    model: str = ""


def benchmark(
    path: Path,
    variants: list[str] | None,
    settings: Settings,
    load: Loader,
    progress: Progress = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Measure every variant of a bundle, or a model file, and give the document.

    Raises:
        EdgePoseError: No variant runs here.
    """
    files = model_files(path, variants)
    found = _Found([], {}, {}, {}, [], [])
    meter = find_meter()
    before, weather, began = moment(), climate(), datetime.now(timezone.utc)
    for threads in settings.threads:
        for batch in settings.batch:
            _measure(found, files, _Block(threads, batch, settings), load, meter, progress)
    conditions = _conditions(before, weather, meter)
    if not found.rows:
        raise EdgePoseError("; ".join(dict.fromkeys(map(str, found.failed.values()))))
    return {
        "schema": SCHEMA,
        "bundle": str(path),
        "model": found.model,
        "began": began.isoformat(timespec="seconds"),
        "settings": asdict(settings),
        "machine": machine(),
        "conditions": conditions,
        "rows": found.rows,
        "failed": {name: str(error) for name, error in found.failed.items()},
        "profiles": found.profiles,
        "no_profile": found.no_profile,
        "end_to_end": found.end_to_end,
        "remarks": found.remarks,
    }


def _conditions(before: Any, weather: Any, meter: Meter | None) -> dict[str, Any]:
    """What the machine was like while it measured."""
    load, after = load_between(before, moment()), climate()
    throttles = None if weather.throttles is None or after.throttles is None else after.throttles > weather.throttles
    told = [state for state in (weather.throttled, after.throttled, throttles) if state is not None]
    return {
        "other_cores": load and load.others,
        "stolen_cores": load and load.stolen,
        "frequency_mhz": [weather.frequency_mhz, after.frequency_mhz],
        "temperature_c": [weather.temperature_c, after.temperature_c],
        "throttled": any(told) if told else None,
        "energy_meter": meter and meter.name,
    }


@dataclass(frozen=True)
class _Opened:
    """A variant that runs here, with the engine options that it was opened with."""

    model: LoadedModel
    options: Mapping[str, str]


@dataclass(frozen=True)
class _Block:
    """Threads and batch that all variants are measured with before the next."""

    threads: int | None
    batch: int
    settings: Settings

    @property
    def first(self) -> bool:
        return (self.threads, self.batch) == (self.settings.threads[0], self.settings.batch[0])

    def __str__(self) -> str:
        parts = [plural(self.threads or "automatic", "thread")] if len(self.settings.threads) > 1 else []
        parts += [f"batch {self.batch}"] if len(self.settings.batch) > 1 else []
        return ", ".join(parts)


def _measure(
    found: _Found, files: Mapping[str, Path], block: _Block, load: Loader, meter: Meter | None, progress: Progress
) -> None:
    """All variants in one block."""
    opened = _open(found, files, block, load)
    if not opened:
        return
    found.model = next(iter(opened.values())).model.spec.name
    stage = f"time the variants {block}".strip()
    try:
        if block.settings.source is not None:
            _check_pictures(opened)
        rows, failed = _time(opened, block, load, lambda done, total: progress(stage, done, total))
        found.failed |= {f"{name} ({block})" if str(block) else name: error for name, error in failed.items()}
        for done, row in enumerate(rows):
            progress("measure memory and the rest", done, len(rows))
            one, file = opened[row.variant], files[row.variant]
            found.rows.append(_more(found, row, one, file, block, meter))
            if block.first and block.settings.profile:
                _profile(found, one.model, block.batch)
        progress("measure memory and the rest", len(rows), len(rows))
        if block.settings.source is not None and block.batch == block.settings.batch[0]:
            _end_to_end(found, {row.variant: opened[row.variant].model for row in rows}, block, progress)
    finally:
        for one in opened.values():
            one.model.close()


def _open(found: _Found, files: Mapping[str, Path], block: _Block, load: Loader) -> dict[str, _Opened]:
    """The variants that run here; those that did not in an earlier block are not tried again."""
    opened: dict[str, _Opened] = {}
    for name in [name for name in files if name not in found.failed]:
        try:
            one = _Opened(*load(name, block.threads))
        except EdgePoseError as error:
            found.failed[name] = error
            continue
        first = next(iter(opened.items()), None)
        if first and one.model.spec != first[1].model.spec:
            one.model.close()
            found.failed[name] = BundleError(f"{name}: is of another model than {first[0]}")
        else:
            opened[name] = one
    return opened


def _time(
    opened: Mapping[str, _Opened], block: _Block, load: Loader, progress: Callable[[int, int], None]
) -> tuple[list[LatencyRow], Mapping[str, EdgePoseError]]:
    models, how = {name: one.model for name, one in opened.items()}, block.settings
    length = {"iterations": how.iterations, "duration_s": how.duration_s, "batch": block.batch, "seed": how.seed}
    if how.mode == "throughput":
        return _saturate(models, block, load, length, progress)
    timing = time_models(models, warmup=how.warmup, progress=progress, **length)  # type: ignore[arg-type]
    return latency_rows(models, timing.times, block.batch, block.threads), timing.failed


def _saturate(
    models: Mapping[str, LoadedModel],
    block: _Block,
    load: Loader,
    length: Mapping[str, Any],
    progress: Callable[[int, int], None],
) -> tuple[list[LatencyRow], dict[str, EdgePoseError]]:
    servers: dict[str, Server] = {}
    copies: list[LoadedModel] = []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        for name, model in models.items():
            if is_async(model):
                servers[name] = Requests(model, block.settings.in_flight or cores + 2, block.threads)
                continue
            each = block.threads or 1
            count = block.settings.in_flight or (max(1, cores // each) if model.engine.device == "cpu" else 2)
            mine = [load(name, each)[0] for _ in range(count)]
            copies += mine
            servers[name] = Workers(mine, each)
        return measure_throughput(servers, progress=progress, **length)
    finally:
        for model in copies:
            model.close()


def _more(
    found: _Found, row: LatencyRow, one: _Opened, file: Path, block: _Block, meter: Meter | None
) -> dict[str, Any]:
    """A row with size, memory, energy, placement, and the engine's own tool."""
    memory = None
    try:
        memory = peak_memory(file, row.engine, row.device, row.threads, row.batch, one.options)
    except EngineError as error:  # the times are good all the same
        found.remarks.append(str(error))
    native = None
    if block.settings.native and row.mode == "latency":
        job = Job(file, row.engine, row.device, row.threads, row.batch, one.model.spec.input)
        job = replace(job, runs=max(20, round(1e3 * job.seconds / row.infer_ms)), options=one.options)
        native = asdict(compare_with_tool(job))
    return {
        **asdict(row),
        "mb": model_bytes(file) / 1e6,
        "rss_mib": memory and memory.rss_mib,
        "gpu_mib": memory and memory.gpu_mib,
        "energy_mj": _energy_mj(one.model, block.batch, meter) if meter and row.mode == "latency" else None,
        "placement": one.model.engine.placement(),
        "native": native,
    }


def _energy_mj(model: LoadedModel, batch: int, meter: Meter) -> float:
    """Millijoules of one call, of a model that runs alone for a while."""
    inputs, calls = _inputs(model, batch), 0

    def work() -> None:
        nonlocal calls
        end = time.perf_counter() + _ENERGY_S
        while time.perf_counter() < end:
            model.infer(inputs)
            calls += 1

    return 1e3 * meter.joules(work) / calls


def _profile(found: _Found, model: LoadedModel, batch: int) -> None:
    name, engine = model.variant, model.engine
    if not isinstance(engine, ProfilingEngine):
        found.no_profile[name] = f"the engine {engine.name} does not tell the time of its operators"
        return
    try:
        rows = engine.profile({model.spec.input.name: _inputs(model, batch)}, _PROFILE_RUNS)
        found.profiles[name] = [asdict(row) for row in rows]
    except EdgePoseError as error:
        found.no_profile[name] = str(error)


def _inputs(model: LoadedModel, batch: int) -> NDArray[Any]:
    return stages(model.spec, batch, np.random.default_rng(0))[0]()


def _check_pictures(opened: Mapping[str, _Opened]) -> None:
    for name, one in opened.items():
        if not isinstance(one.model, Estimator):
            raise BundleError(f"{name}: lifts 2D joints into space, and --source needs a model that takes pictures")


def _end_to_end(found: _Found, models: Mapping[str, LoadedModel], block: _Block, progress: Progress) -> None:
    for name, model in models.items():
        assert isinstance(model, Estimator)
        try:
            measured = measure_end_to_end(
                model,
                str(block.settings.source),
                most_frames=block.settings.frames,
                threads=block.threads,
                progress=lambda done, total, name=name: progress(f"whole pipeline with {name}", done, total),  # type: ignore[misc]
            )
        except EngineError as error:  # another variant may do it
            found.remarks.append(f"{name}: {error}")
            continue
        found.end_to_end.append(asdict(measured))
