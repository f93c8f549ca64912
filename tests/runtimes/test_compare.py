"""The regression gate: a slower engine is caught, noise is not, and what cannot be compared is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest

from edgepose import EdgePoseError
from edgepose.model import LoadedModel
from edgepose.models.registry import get_model
from edgepose.runtimes import latency
from edgepose.runtimes.compare import compare, read_benchmark
from edgepose.runtimes.latency import Times, latency_rows, time_models

SPEC = get_model("ampose-s").spec


class Clock:
    """A clock that only engines move: what is measured does not depend on what else this machine does."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Engine:
    """Takes so many milliseconds of a clock, give or take ten percent."""

    name, device, metadata = "clockwork", "cpu", {}
    inputs, outputs = (SPEC.input,), (SPEC.output,)

    def __init__(self, milliseconds=1.0, clock=None, seed=0):
        self.seconds, self.clock, self.random = milliseconds / 1e3, clock or Clock(), np.random.default_rng(seed)

    def run(self, feeds):
        self.clock.now += self.seconds * self.random.lognormal(0, 0.1)
        return {SPEC.output.name: np.zeros((len(feeds[SPEC.input.name]), *SPEC.output.shape[1:]), np.float32)}


def model(engine=None):
    return LoadedModel(engine or Engine(), SPEC, "onnx-int8")


def document(*rows, **changes):
    settings = {"mode": "latency", "threads": [None], "batch": [1]}
    machine = {"cpu": "a", "cores": 2, "isa": ["avx2"], "system": "linux", "versions": {"numpy": "2"}}
    whole = {"schema": 1, "model": "m", "settings": settings, "machine": machine, "rows": rows, "failed": {}}
    return copy.deepcopy(whole) | changes


def sampled(seed, slowdown=1.0, runs=100):
    """A benchmark of one variant: skewed noise of ten percent that comes in waves, as on a busy machine."""
    rng = np.random.default_rng(seed)
    waves = np.repeat(rng.standard_normal(runs // 5), 5)
    seconds = 0.01 * slowdown * np.exp(0.07 * waves + 0.07 * rng.standard_normal(runs)) + rng.exponential(0.0005, runs)
    times = {"onnx-int8": Times([0.001], list(seconds), [0.01], [0.001])}
    return document(*(asdict(row) for row in latency_rows({"onnx-int8": model()}, times, 1, None)))


def states(pairs, allowed):
    return [compare(before, after, allowed).rows[0].state for before, after in pairs]


def test_noise_is_no_regression():
    pairs = [(sampled(2 * seed), sampled(2 * seed + 1)) for seed in range(300)]
    # With nothing allowed the limits alone decide: 2.5 % of equal pairs may seem slower, and 1 % is its standard error.
    assert np.mean([state == "slower" for state in states(pairs, 0.0)]) <= 0.025 + 3 * 0.01
    assert "slower" not in states(pairs, 0.1)


def test_a_slower_engine_is_caught():
    pairs = [(sampled(2 * seed), sampled(2 * seed + 1, slowdown=1.25)) for seed in range(200)]
    assert np.mean([state == "slower" for state in states(pairs, 0.1)]) >= 0.95
    quicker = [(after, before) for before, after in pairs]
    assert np.mean([state == "faster" for state in states(quicker, 0.1)]) >= 0.95


def test_a_slowed_engine_is_caught_and_an_equal_one_is_not(monkeypatch):
    """Engines that are measured, not made-up times: one of them takes a fifth longer."""
    clock = Clock()
    # The measurement's clock moves a microsecond at each look, as time does.
    look = SimpleNamespace(perf_counter=lambda: setattr(clock, "now", clock.now + 1e-6) or clock.now)
    monkeypatch.setattr(latency, "time", SimpleNamespace(**vars(look), process_time=clock))

    def measured(milliseconds, seed):
        models = {"onnx-int8": model(Engine(milliseconds, clock, seed))}
        times = time_models(models, iterations=100).times
        return document(*(asdict(row) for row in latency_rows(models, times, 1, None)))

    caught = [compare(measured(5, 2 * i), measured(6, 2 * i + 1), 0.1).rows[0].state == "slower" for i in range(20)]
    alarms = [compare(measured(5, 2 * i), measured(5, 2 * i + 1), 0.1).failed for i in range(20)]
    assert sum(caught) >= 19
    assert not any(alarms)


def test_few_runs_cannot_fail_a_build():
    before, after = sampled(0, runs=5), sampled(1, slowdown=3, runs=5)
    (row,) = compare(before, after, 0.1).rows
    assert (row.state, row.low) == ("unsure", None)
    assert not compare(before, after, 0.1).failed


def test_throughput_is_judged_by_people_per_second():
    def row(fps):
        return sampled(0)["rows"][0] | {"mode": "throughput", "fps": fps, "fps_low": 0.98 * fps, "fps_high": 1.02 * fps}

    settings = {"mode": "throughput", "threads": [None], "batch": [1]}
    before, after = document(row(100.0), settings=settings), document(row(70.0), settings=settings)
    assert compare(before, after, 0.1).rows[0].state == "slower"
    assert compare(after, before, 0.1).rows[0].state == "faster"


def test_a_variant_that_no_longer_runs_fails():
    before, after = sampled(0), sampled(1)
    lost = document(after["rows"][0] | {"variant": "onnx-fp32"}, failed={"onnx-int8": "it broke"})
    (row,) = compare(before, lost, 0.1).failed
    assert (row.name, row.state) == ("onnx-int8", "missing")
    assert compare(before, lost, 0.1).new == ("onnx-fp32",)


def test_what_was_left_out_by_choice_is_not_missing():
    row = sampled(0)["rows"][0]
    before = document(row, row | {"batch": 8}, row | {"variant": "onnx-fp32"})
    assert [found.name for found in compare(before, document(row), 0.1).rows] == ["onnx-int8"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"machine": {"cpu": "b", "cores": 2, "isa": []}},
            "of another machine .cpu: a then, b now.*measure both on one",
        ),
        ({"machine": {"cpu": "a", "cores": 4, "isa": []}}, "of another machine .cores: 2 then, 4 now"),
        ({"model": "n"}, "of m, this one of n"),
        (
            {"settings": {"mode": "latency", "threads": [4], "batch": [1]}},
            "no row in common: measure the same variants",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(changes, message):
    with pytest.raises(EdgePoseError, match=message):
        compare(sampled(0), sampled(1) | changes, 0.1)


def test_other_versions_and_a_busy_machine_are_pointed_out():
    before, after = sampled(0), sampled(1)
    after["machine"]["versions"] = {"numpy": "3"}
    after["conditions"] = {"other_cores": 1.5}
    assert compare(before, after, 0.1).remarks == (
        "numpy was 2, and is 3 now",
        "now: other processes kept 1.5 of 2 cores busy during the run: times are longer than they need be",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read .No such file"),
        ("{", "is no benchmark of edgepose"),
        ("[]", "is no benchmark of edgepose"),
        ('{"rows": []}', "is no benchmark of edgepose .'schema' is missing"),
        ('{"schema": 2, "rows": []}', "schema 2, and this edgepose reads 1"),
        ('{"schema": 1, "rows": [{"infer_ms": -1, "infer_low_ms": 1, "infer_high_ms": 1}]}', "a time of -1"),
        ('{"schema": 1, "rows": [{"infer_ms": NaN, "infer_low_ms": 1, "infer_high_ms": 1}]}', "a time of nan"),
        ("[" * 100_000, "is no benchmark of edgepose"),
    ],
)
def test_files_that_are_no_benchmarks_are_refused_in_a_line(tmp_path, text, message):
    path = tmp_path / "old.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(EdgePoseError, match=message) as error:
        read_benchmark(path)
    assert "\n" not in str(error.value)


def test_a_benchmark_is_read_back(tmp_path):
    path = tmp_path / "old.json"
    path.write_text(json.dumps(sampled(0)))
    assert compare(read_benchmark(path), sampled(0), 0.0).rows[0].ratio == 1
