"""Latency rows: every round is counted, and a slower engine is seen as slower."""

from __future__ import annotations

import time

import numpy as np
import pytest

import edgepose
from edgepose import EngineError
from edgepose.runtimes.latency import measure_latency, peak_rss_mb


class Slowed:
    """An engine that takes some milliseconds more."""

    def __init__(self, engine, seconds):
        self._engine = engine
        self._seconds = seconds
        self.calls = 0

    def run(self, feeds):
        self.calls += 1
        time.sleep(self._seconds)
        return self._engine.run(feeds)

    def __getattr__(self, name):
        return getattr(self._engine, name)


def test_a_slower_variant_is_measured_as_slower(starter_bundle):
    estimators = {name: edgepose.load(starter_bundle, variant=name) for name in ("onnx-fp32", "onnx-int8")}
    slowed = Slowed(estimators["onnx-int8"].engine, 0.1)
    estimators["onnx-int8"].engine = slowed
    rounds = []
    rows = measure_latency(estimators, iterations=6, warmup=2, batch=2, progress=lambda *done: rounds.append(done))
    fast, slow = rows
    assert slowed.calls == 8
    assert rounds[-1] == (8, 8)
    assert fast.speedup == 1
    assert slow.speedup == pytest.approx(fast.infer_ms / slow.infer_ms)
    assert slow.infer_ms > fast.infer_ms + 20
    assert slow.cpu_ms < slow.infer_ms + 20  # sleeping is no CPU time
    assert slow.infer_ms <= slow.p95_ms <= slow.p99_ms
    assert slow.fps == pytest.approx(2000 / (slow.pre_ms + slow.infer_ms + slow.decode_ms))
    assert (slow.variant, slow.engine, slow.device, slow.batch, slow.iterations) == (
        "onnx-int8",
        "onnxruntime",
        "cpu",
        2,
        6,
    )


def test_memory_is_that_of_a_process_that_runs_the_model(starter_bundle, tmp_path):
    ballast = np.ones(60_000_000)  # 480 MB in this process: none of it may be counted
    assert 30 < peak_rss_mb(starter_bundle / "onnx-int8.onnx", "onnxruntime", "cpu", 1) < 300
    assert ballast.any()
    with pytest.raises(EngineError, match=r"none.onnx: the process that measures memory failed"):
        peak_rss_mb(tmp_path / "none.onnx", "onnxruntime", "cpu", None)
