"""The engines' own tools beside ours: what they print is understood, and what goes wrong is said in a line."""

from __future__ import annotations

import os
import stat

import pytest

from edgepose.runtimes import native
from edgepose.runtimes.native import TOOLS, Job, compare_with_tool
from edgepose.types import TensorSpec

IMAGE = TensorSpec("image", "uint8", (None, 64, 48, 3))

# As each tool prints it.
PRINTED = {
    "benchmark_app": ("[ INFO ] Latency:\n[ INFO ]    Median:     12.34 ms\n[ INFO ]    Average:    12.50 ms", 12.34),
    "onnxruntime_perf_test": ("P50 Latency: 0.0123 s\nP90 Latency: 0.0140 s\n", 12.3),
    "benchmark_model": ("Inference timings in us: Init: 900\ncount=50 avg=12400 std=90 p5=1 median=12300 p95=2", 12.3),
    "litert-benchmark": ("Inference (avg):       12.50 ms (50 runs)\nInference (median):    12.30 ms\n", 12.3),
    "trtexec": ("[I] GPU Compute Time: min = 1.0 ms, max = 2.0 ms, mean = 1.3 ms, median = 1.23 ms, percentile", 1.23),
}


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_what_a_tool_prints_is_understood(tool):
    text, milliseconds = PRINTED[tool.name]
    assert tool.median_ms(text) == pytest.approx(milliseconds)
    assert tool.median_ms("Median of nothing") is None


def test_fast_models_are_told_in_microseconds():
    tool = next(tool for tool in TOOLS if tool.name == "benchmark_app")
    assert tool.median_ms("[ INFO ]    Median:        436.49 us\n") == pytest.approx(0.43649)


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_a_tool_is_told_the_file_and_the_threads(tool, tmp_path):
    arguments = tool.arguments(Job(tmp_path / "m.xml", tool.engine, "cpu", 3, 2, IMAGE))
    assert any(str(tmp_path / "m.xml") in word for word in arguments)
    assert tool.engine == "tensorrt" or any("3" in word.partition("=")[2] or word == "3" for word in arguments)


@pytest.fixture
def tool_on_path(tmp_path, monkeypatch):
    """A made-up onnxruntime_perf_test that prints what it is told."""

    def put(script):
        path = tmp_path / "onnxruntime_perf_test"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return put


pytestmark = pytest.mark.skipif(os.name != "posix", reason="the made-up tool is a shell script")


def job(bundle, **changes):
    values = {"threads": 1, "batch": 1, "seconds": 0.1, **changes}
    return Job(bundle / "onnx-int8.onnx", "onnxruntime", "cpu", tensor=IMAGE, **values)


def test_both_medians_and_their_ratio(starter_bundle, tool_on_path):
    tool_on_path('echo "P50 Latency: 0.002 s"')
    found = compare_with_tool(job(starter_bundle), rounds=1)
    assert found.tool == "onnxruntime_perf_test"
    assert found.tool_ms == pytest.approx(2)
    assert found.ours_ms > 0.1
    assert found.ratio == pytest.approx(found.ours_ms / 2)


def test_a_tool_that_fails_says_why(starter_bundle, tool_on_path):
    tool_on_path("echo 'no such model'; exit 3")
    found = compare_with_tool(job(starter_bundle), rounds=1)
    assert (found.tool, found.ratio) == (None, None)
    assert found.note == "onnxruntime_perf_test failed (no such model)"


def test_a_tool_that_is_absent_is_blank_with_a_note(starter_bundle, monkeypatch):
    monkeypatch.setattr(native, "find_tool", lambda name: None)
    assert compare_with_tool(job(starter_bundle)).note == "onnxruntime_perf_test is not on the path"
    other = Job(starter_bundle / "a", "abacus", "cpu", None, 1, IMAGE)
    assert compare_with_tool(other).note == "abacus has no tool for cpu"


def test_openvinos_tool_really_runs(starter_openvino):
    if native.find_tool("benchmark_app") is None:
        pytest.skip("benchmark_app is not installed: pip install 'edgepose[openvino]'")
    from edgepose.runtimes.load import load_model_file

    model = load_model_file(starter_openvino / "openvino-fp32.xml", threads=1)
    asked = Job(starter_openvino / "openvino-fp32.xml", "openvino", "cpu", 1, 1, model.spec.input, seconds=1)
    found = compare_with_tool(asked, rounds=1)
    assert found.note is None
    assert 0.2 < found.ratio < 5  # other processes may be in the way: that it was measured is what counts
