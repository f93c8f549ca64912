"""Throughput: several requests at once, on engines that take them, and on copies of those that do not."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edgepose import EngineError
from edgepose.model import LoadedModel
from edgepose.models.registry import get_model
from edgepose.runtimes.throughput import Requests, Workers, is_async, measure_throughput

SPEC = get_model("ampose-s").spec
SECONDS = 0.004


class Engine:
    """Sleeps for each request."""

    name, device, metadata = "sleeper", "cpu", {}
    inputs, outputs = (SPEC.input,), (SPEC.output,)

    def __init__(self, fails=False):
        self.fails = fails

    def run(self, feeds):
        if self.fails:
            raise EngineError("it broke")
        time.sleep(SECONDS)
        return {SPEC.output.name: np.zeros((len(feeds[SPEC.input.name]), *SPEC.output.shape[1:]), np.float32)}


class AsyncEngine(Engine):
    """Works on two requests at once."""

    def __init__(self, pool):
        super().__init__()
        self.pool = pool

    def run_async(self, feeds):
        return self.pool.submit(self.run, feeds)

    def result(self, pending):
        return pending.result()


def model(engine):
    return LoadedModel(engine, SPEC, "a-fp32")


def test_requests_overlap_on_an_engine_that_takes_several():
    with ThreadPoolExecutor(2) as pool:
        several = model(AsyncEngine(pool))
        assert is_async(several)
        assert not is_async(model(Engine()))
        servers = {"a-fp32": Requests(several, 4), "b-fp32": Workers([model(Engine())], 1)}
        (both, alone), failed = measure_throughput(servers, iterations=10, duration_s=0.4, batch=3)
    assert not failed
    # Two at once, three people each, at least 4 ms: at most 1,500 a second; 750 one by one.
    assert alone.fps < 750 < both.fps < 1500
    assert (both.mode, both.in_flight, both.batch, both.pre_ms) == ("throughput", 4, 3, None)
    assert both.infer_ms > 1.5 * alone.infer_ms  # a request waits for the two before it
    assert alone.speedup == pytest.approx(alone.fps / both.fps)
    # Slices that depend on each other, on a busy machine, may be worth too few to have limits.
    assert both.fps_low is None or both.fps_low <= both.fps
    assert both.fps_high is None or both.fps <= both.fps_high


def test_copies_share_the_work():
    servers = {"a-fp32": Workers([model(Engine()), model(Engine())], 1)}
    (row,), _ = measure_throughput(servers, duration_s=0.2)
    assert 250 < row.fps < 500
    assert (row.in_flight, row.threads) == (2, 1)


def test_what_fails_is_told_and_the_others_go_on():
    servers = {"a-fp32": Workers([model(Engine())]), "a-int8": Workers([model(Engine(fails=True))])}
    (row,), failed = measure_throughput(servers, duration_s=0.1)
    assert row.variant == "a-fp32"
    assert str(failed["a-int8"]) == "it broke"
