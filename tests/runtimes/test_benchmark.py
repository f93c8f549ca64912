"""A benchmark with engines that lack what others have: nothing is made up, and nothing ends the rest."""

from __future__ import annotations

import time

import numpy as np
import pytest

from edgepose import EdgePoseError, EngineError, EngineUnavailable
from edgepose.model import LoadedModel
from edgepose.models.registry import get_model
from edgepose.runtimes import benchmark as module
from edgepose.runtimes.benchmark import Settings, benchmark

SPEC = get_model("ampose-s").spec


class Engine:
    """A third party's engine, which has nothing but what it must have."""

    name, device, metadata = "theirs", "cpu", {}
    inputs, outputs = (SPEC.input,), (SPEC.output,)

    def __init__(self):
        self.closed = False

    def run(self, feeds):
        people = len(feeds[SPEC.input.name])
        if people == 8:
            raise EngineError("no more than 4 people")
        time.sleep(0.001)
        return {SPEC.output.name: np.zeros((people, *SPEC.output.shape[1:]), np.float32)}

    def placement(self):
        return {"theirs": 7}

    def close(self):
        self.closed = True


class Meter:
    """Ten joules, whatever is done."""

    name = "a meter"

    def joules(self, work):
        work()
        return 10.0


@pytest.fixture
def loader():
    def load(name, threads):
        if name == "onnx-fp32":
            raise EngineUnavailable("not on this machine")
        load.engines.append(Engine())
        return LoadedModel(load.engines[-1], SPEC, name), {}

    load.engines = []
    return load


def test_what_an_engine_does_not_tell_is_blank_with_the_reason(starter_bundle, loader):
    settings = Settings(iterations=10, warmup=1, profile=True, native=True, threads=(1, 2), batch=(1, 8))
    data = benchmark(starter_bundle, None, settings, loader)
    assert [(row["threads"], row["batch"]) for row in data["rows"]] == [(1, 1), (2, 1)]
    assert data["failed"] == {
        "onnx-fp32": "not on this machine",
        "onnx-int8 (1 thread, batch 8)": "no more than 4 people",
        "onnx-int8 (2 threads, batch 8)": "no more than 4 people",
    }
    assert data["no_profile"] == {"onnx-int8": "the engine theirs does not tell the time of its operators"}
    row = data["rows"][0]
    assert row["native"]["note"] == "theirs has no tool for cpu"
    assert (row["rss_mib"], row["gpu_mib"], row["speedup"], row["baseline"]) == (None, None, None, None)
    assert "the process that measures memory failed" in data["remarks"][0]
    assert all(engine.closed for engine in loader.engines)


def test_energy_is_that_of_one_call(starter_bundle, loader, monkeypatch):
    monkeypatch.setattr(module, "find_meter", Meter)
    monkeypatch.setattr(module, "_ENERGY_S", 0.1)
    data = benchmark(starter_bundle, None, Settings(iterations=5, warmup=0), loader)
    assert data["conditions"]["energy_meter"] == "a meter"
    assert data["rows"][0]["energy_mj"] >= 1e4 / 100  # at most a hundred calls of a millisecond


def test_a_benchmark_of_nothing_is_an_error(starter_bundle, loader):
    with pytest.raises(EdgePoseError, match="not on this machine"):
        benchmark(starter_bundle, ["onnx-fp32"], Settings(), loader)
    with pytest.raises(EdgePoseError, match="no more than 4 people"):
        benchmark(starter_bundle, ["onnx-int8"], Settings(batch=(8,)), loader)


def test_copies_of_an_engine_that_takes_one_request_at_a_time(starter_bundle, loader):
    settings = Settings(mode="throughput", duration_s=0.1, in_flight=3)
    (row,) = benchmark(starter_bundle, ["onnx-int8"], settings, loader)["rows"]
    assert (row["in_flight"], row["threads"]) == (3, 1)
    assert len(loader.engines) == 4  # one to look at, three to work
    assert all(engine.closed for engine in loader.engines)
