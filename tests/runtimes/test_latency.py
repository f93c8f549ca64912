"""Latency rows: every run is counted, warming up is not, and what fails is a row with the reason."""

from __future__ import annotations

import numpy as np
import pytest

import edgepose
from edgepose import EngineError
from edgepose.model import LoadedModel
from edgepose.models.registry import get_model
from edgepose.runtimes import latency
from edgepose.runtimes.latency import latency_rows, measure_latency, time_models
from edgepose.runtimes.memory import peak_memory

SPEC = get_model("ampose-s").spec


class Clock:
    """Time that engines take, and a microsecond for each look: what else this machine does is not measured."""

    def __init__(self):
        self.now = self.cpu = 0.0

    def perf_counter(self):
        self.now += 1e-6
        return self.now

    def process_time(self):
        return self.cpu


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(latency, "time", made)
    return made


class Engine:
    """Takes so many seconds on two cores; so many first calls take longer, and a call may fail."""

    name, device, metadata = "clockwork", "cpu", {}

    def __init__(self, clock, seconds, cold=0, fails_at=None):
        self.clock, self.seconds, self.cold, self.fails_at, self.calls = clock, seconds, cold, fails_at, 0
        self.inputs, self.outputs = (SPEC.input,), (SPEC.output,)

    def run(self, feeds):
        self.calls += 1
        if self.calls == self.fails_at:
            raise EngineError("it broke")
        spent = self.seconds * (8 if self.calls <= self.cold else 1)
        self.clock.now += spent
        self.clock.cpu += 2 * spent
        return {SPEC.output.name: np.zeros((len(feeds[SPEC.input.name]), *SPEC.output.shape[1:]), np.float32)}


def models(**engines):
    return {name.replace("_", "-"): LoadedModel(engine, SPEC, name) for name, engine in engines.items()}


def test_a_slower_variant_is_measured_as_slower(clock):
    fast, slow = Engine(clock, 0.002), Engine(clock, 0.02)
    rounds = []
    first, second = measure_latency(
        models(a_fp32=fast, a_int8=slow), iterations=12, warmup=3, batch=2, progress=lambda *done: rounds.append(done)
    )
    assert slow.calls == 3 + 1 + 12 + 3  # one run before each turn of five is not timed
    assert rounds[-1] == (12, 12)
    assert (first.speedup, first.baseline) == (1, "a-fp32")
    assert second.speedup == pytest.approx(0.1, rel=1e-3)
    assert second.infer_ms == pytest.approx(20, rel=1e-3)
    assert second.cpu_ms == pytest.approx(40, rel=1e-3)
    assert second.infer_low_ms <= second.infer_ms <= second.infer_high_ms
    assert second.infer_ms <= second.p95_ms <= second.p99_ms
    assert second.percentiles_ms[50] == second.infer_ms
    assert second.fps == pytest.approx(2000 / (second.pre_ms + second.infer_ms + second.decode_ms))
    assert (second.variant, second.engine, second.batch, second.iterations) == ("a-int8", "clockwork", 2, 12)


def test_warming_up_goes_on_until_times_are_steady_and_is_not_counted(clock):
    engine = Engine(clock, 0.003, cold=9)
    timing = time_models(models(a_fp32=engine), iterations=10)
    (row,) = latency_rows(models(a_fp32=engine), timing.times, 1, None)
    assert row.steady
    assert row.p99_ms == pytest.approx(3, rel=1e-3)
    assert engine.calls == 3 * 6 + 2 * 6  # the first turn is cold, the second half so, the third like it


def test_warming_up_ends_even_if_times_never_settle(clock):
    class Restless(Engine):
        def run(self, feeds):
            self.seconds = 0.001 * 1.5 ** (self.calls // 6)  # every turn takes longer
            return super().run(feeds)

    engine = Restless(clock, 0)
    timing = time_models(models(a_fp32=engine), iterations=5)
    assert not timing.times["a-fp32"].steady
    assert engine.calls == 11 * 6


def test_a_duration_holds_for_each_variant(clock):
    timing = time_models(models(a_fp32=Engine(clock, 0.01), b_fp32=Engine(clock, 0.02)), duration_s=3, warmup=0)
    assert 6 <= clock.now < 6.5
    counts = [len(times.infer) for times in timing.times.values()]
    assert counts[0] == counts[1]
    assert counts[0] == pytest.approx(6 / 0.03 * 5 / 6, rel=0.1)  # one run in six is not timed


def test_a_variant_that_breaks_half_way_leaves_the_others(clock):
    found = models(a_fp32=Engine(clock, 0.001), a_int8=Engine(clock, 0.001, fails_at=9))
    timing = time_models(found, iterations=10, warmup=1)
    assert list(timing.times) == ["a-fp32"]
    assert str(timing.failed["a-int8"]) == "it broke"
    with pytest.raises(EngineError, match="it broke"):
        measure_latency(models(a_fp32=Engine(clock, 0, fails_at=2)), iterations=3)


def test_a_2d_model_is_timed_from_picture_to_joints(starter_bundle):
    (row,) = measure_latency({"onnx-fp32": edgepose.load(starter_bundle, variant="onnx-fp32")}, iterations=5, warmup=1)
    assert row.pre_ms > 0
    assert row.decode_ms > 0
    assert row.engine == "onnxruntime"


def test_memory_is_that_of_a_process_that_runs_the_model(starter_bundle, tmp_path):
    ballast = np.ones(60_000_000)  # 480 MB in this process: none of it may be counted
    memory = peak_memory(starter_bundle / "onnx-int8.onnx", "onnxruntime", "cpu", 1)
    assert 30 < memory.rss_mib < 300
    assert memory.gpu_mib is None
    assert ballast.any()
    with pytest.raises(EngineError, match=r"none.onnx: the process that measures memory failed"):
        peak_memory(tmp_path / "none.onnx", "onnxruntime", "cpu", None)
