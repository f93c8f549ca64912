"""How many people per second an engine can work on when it never waits for the next request.

Engines with ``run_async`` and ``result`` get several requests at once; of others, several copies run in threads, each
with its share of the cores.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgepose.errors import EdgePoseError, EngineError
from edgepose.model import LoadedModel
from edgepose.runtimes.latency import LatencyRow, curve, stages
from edgepose.runtimes.statistics import drift, percentile

__all__ = ["Flow", "Requests", "Server", "Workers", "is_async", "measure_throughput"]

_SLICES, _SLICE_S = 10, 0.5
_SLICE_ROUNDS = 6

Span = tuple[float, float]
"""When a request was handed over, and when its answer was there."""


class Server(Protocol):
    """Works on several requests at once.

    Attributes:
        in_flight: How many.
        model: One of its models.
        threads: What its models were loaded with.
    """

    in_flight: int
    model: LoadedModel
    threads: int | None

    def serve(self, inputs: NDArray[Any], count: int) -> list[Span]:
        """Run one batch so many times, and tell when; as the answers came."""
        ...


def is_async(model: LoadedModel) -> bool:
    """Whether an engine takes a request while another is under way."""
    return hasattr(model.engine, "run_async") and hasattr(model.engine, "result")


class Requests:
    """Several requests on one engine that has ``run_async`` and ``result``."""

    def __init__(self, model: LoadedModel, in_flight: int, threads: int | None = None) -> None:
        self.model, self.in_flight, self.threads = model, in_flight, threads

    def serve(self, inputs: NDArray[Any], count: int) -> list[Span]:
        """See :class:`Server`."""
        engine: Any = self.model.engine
        fixed = engine.inputs[0].shape[0]
        if fixed not in (None, len(inputs)):
            raise EngineError(f"{self.model.variant}: was made for batches of {fixed}: use --batch {fixed}")
        feeds = {self.model.spec.input.name: inputs}
        under_way: deque[tuple[float, Any]] = deque()
        spans: list[Span] = []

        def settle() -> None:
            start, pending = under_way.popleft()
            engine.result(pending)
            spans.append((start, time.perf_counter()))

        for _ in range(count):
            if len(under_way) == self.in_flight:
                settle()
            under_way.append((time.perf_counter(), engine.run_async(feeds)))
        while under_way:
            settle()
        return spans


class Workers:
    """Copies of a model, each in a thread of its own."""

    def __init__(self, models: Sequence[LoadedModel], threads: int | None = None) -> None:
        self.model, self.in_flight, self.threads = models[0], len(models), threads
        self._models = models

    def serve(self, inputs: NDArray[Any], count: int) -> list[Span]:
        """See :class:`Server`."""
        tickets, lock = iter(range(count)), threading.Lock()

        def work(model: LoadedModel) -> list[Span]:
            spans: list[Span] = []
            while True:
                with lock:
                    if next(tickets, None) is None:
                        return spans
                start = time.perf_counter()
                model.infer(inputs)
                spans.append((start, time.perf_counter()))

        with ThreadPoolExecutor(len(self._models), "edgepose-bench") as pool:
            found = list(pool.map(work, self._models))
        return sorted(itertools.chain.from_iterable(found), key=lambda span: span[1])


@dataclass
class Flow:
    """What a server did, slice by slice."""

    rates: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cpu: float = 0.0
    calls: int = 0


def measure_throughput(
    servers: Mapping[str, Server],
    *,
    iterations: int = 100,
    duration_s: float | None = None,
    batch: int = 1,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[LatencyRow], dict[str, EdgePoseError]]:
    """Keep each server busy for a slice of time, in turn, again and again.

    Args:
        servers: By variant name; all of one model.
        iterations: Requests to each, at least; more where slices would be too short to tell.
        duration_s: In their place: seconds for each.
        batch: People per request.
        seed: Seed of the input and of the order.
        progress: Told how many slices are done, and out of how many.

    Returns:
        Rows, and why the other variants have none.
    """
    rng = np.random.default_rng(seed)
    inputs = stages(next(iter(servers.values())).model.spec, batch, rng)[0]()
    failed: dict[str, EdgePoseError] = {}
    counts = {}
    for name, server in servers.items():
        try:
            counts[name] = _slice_of(server, inputs, iterations, duration_s)
        except EdgePoseError as error:
            failed[name] = error
    flows = {name: Flow() for name in counts}
    for i in range(_SLICES):
        for name in rng.permutation([name for name in counts if name not in failed]):
            try:
                _add_slice(flows[name], servers[name], inputs, counts[name], batch)
            except EdgePoseError as error:
                failed[str(name)] = error
        progress(i + 1, _SLICES)
    kept = {name: flow for name, flow in flows.items() if name not in failed}
    return _rows(servers, kept, batch), failed


def _slice_of(server: Server, inputs: NDArray[Any], iterations: int, duration_s: float | None) -> int:
    """Requests of one slice; warms up on the way."""
    least = _SLICE_ROUNDS * server.in_flight
    server.serve(inputs, least)
    begin = time.perf_counter()
    server.serve(inputs, least)
    each = (time.perf_counter() - begin) / least
    wanted = iterations / _SLICES if duration_s is None else duration_s / _SLICES / each
    return max(least, round(wanted), round(_SLICE_S / each) if duration_s is None else 0)


def _add_slice(flow: Flow, server: Server, inputs: NDArray[Any], count: int, batch: int) -> None:
    cpu = time.process_time()
    spans = server.serve(inputs, count)
    flow.cpu += time.process_time() - cpu
    flow.calls += count
    flow.seconds += [end - start for start, end in spans]
    # The first and the last requests had fewer beside them.
    whole = [end for _, end in spans][server.in_flight - 1 : count - server.in_flight]
    flow.rates.append(batch * (len(whole) - 1) / (whole[-1] - whole[0]))


def _rows(servers: Mapping[str, Server], flows: Mapping[str, Flow], batch: int) -> list[LatencyRow]:
    baseline = next((name for name in flows if name.endswith("-fp32")), None)
    base = float(np.median(flows[baseline].rates)) if baseline else None
    return [_row(name, servers[name], flow, batch, baseline, base) for name, flow in flows.items()]


def _row(
    name: str,
    server: Server,
    flow: Flow,
    batch: int,
    baseline: str | None,
    base_fps: float | None,
) -> LatencyRow:
    fps, engine = percentile(flow.rates, 50), server.model.engine
    milliseconds = 1e3 * np.array(flow.seconds)
    median, p95 = percentile(milliseconds, 50), percentile(milliseconds, 95)
    drifting, drifted = drift(flow.seconds)
    percentiles = curve(flow.seconds)
    return LatencyRow(
        variant=name,
        engine=engine.name,
        device=engine.device,
        threads=server.threads,
        batch=batch,
        mode="throughput",
        in_flight=server.in_flight,
        iterations=flow.calls,
        steady=True,
        pre_ms=None,
        infer_ms=median.value,
        infer_low_ms=median.low,
        infer_high_ms=median.high,
        p95_ms=p95.value,
        p95_low_ms=p95.low,
        p95_high_ms=p95.high,
        p99_ms=percentiles[99],
        cpu_ms=1e3 * flow.cpu / flow.calls,
        decode_ms=None,
        fps=fps.value,
        fps_low=fps.low,
        fps_high=fps.high,
        speedup=fps.value / base_fps if base_fps else None,
        baseline=baseline,
        drift=drifting,
        drifted=drifted,
        percentiles_ms=percentiles,
    )
