"""onnxruntime on CUDA and TensorRT, with sessions that say so and compute on the CPU; and where nodes ran.

No GPU has seen any of this: that sessions get the right settings and buffers is what is tested.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner

import edgepose
from edgepose.bundle import Bundle
from edgepose.cli import bench
from edgepose.errors import EngineError, EngineUnavailable
from edgepose.files import cache_folder, sha256_file
from edgepose.runtimes.onnxruntime import OnnxRuntimeEngine
from edgepose.runtimes.placement import place_device, stray_words, strays
from edgepose.runtimes.registry import open_engine
from edgepose.runtimes.words import caveats

TENSORRT_OPTIONS = {
    *("trt_engine_cache_enable", "trt_engine_cache_path", "trt_timing_cache_enable", "trt_timing_cache_path"),
    *("trt_fp16_enable", "trt_int8_enable", "trt_max_workspace_size"),
    *("trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes"),
}
"""Names in onnxruntime's documentation of the TensorRT provider, as of 1.22, and in its Rust binding for 1.31."""


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Sessions that take any provider, and note what they were asked; ``on_cpu`` nodes stay on the CPU."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = []
    real_session, real_value = onnxruntime.InferenceSession, onnxruntime.OrtValue

    class Session(real_session):
        on_cpu = 0
        allocated = ()

        def __init__(self, path, options=None, providers=(), enable_fallback=1):
            self.names = [provider if isinstance(provider, str) else provider[0] for provider in providers]
            asked.append(dict(p for p in providers if not isinstance(p, str)))
            assert enable_fallback == (1 if self.names == ["CPUExecutionProvider"] and options is None else 0)
            super().__init__(path, options, providers=["CPUExecutionProvider"])

        def get_providers(self):
            return self.names

        def end_profiling(self):
            path = Path(super().end_profiling())
            events = json.loads(path.read_text())
            kernels = [event for event in events if event["name"].endswith("_kernel_time")]
            for event in kernels[self.on_cpu :]:
                event["args"]["provider"] = self.names[0]
            path.write_text(json.dumps(events))
            return str(path)

    class Value(real_value):
        @staticmethod
        def ortvalue_from_shape_and_type(shape, dtype, device, number):
            assert (device, number) == ("cuda", 0)
            Session.allocated += (tuple(shape),)
            value = real_value.ortvalue_from_shape_and_type(shape, dtype, "cpu", 0)
            value.__class__ = Value
            return value

        def numpy(self):
            return super().numpy().copy()  # as from a GPU; from the CPU it would be a view

    Session.asked = asked
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "OrtValue", Value)
    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    return Session


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_buffers_stay_on_the_device_and_answers_are_the_callers(gpu, starter_bundle, device):
    golden = Bundle.open(starter_bundle).golden()
    engine = open_engine(starter_bundle / "onnx-fp32.onnx", None, device, None)
    first = engine.run({"image": golden.inputs[:2]})["heatmaps"]
    kept = first.copy()
    for count in (1, 2, 2):
        heatmaps = engine.run({"image": golden.inputs[-count:]})["heatmaps"]
        np.testing.assert_allclose(heatmaps, golden.answers[-count:], atol=1e-4)
    np.testing.assert_array_equal(first, kept)
    assert [shape[0] for shape in gpu.allocated] == [2, 2, 1, 1]  # input and output of each batch size, once
    with pytest.raises(EngineError, match=f"onnxruntime failed on {device} .image: expected uint8"):
        engine.run({"image": np.zeros((1, 5, 5, 3), np.uint8)})
    engine.close()


def test_cuda_computes_fp32_as_fp32(gpu, starter_bundle):
    OnnxRuntimeEngine(starter_bundle / "onnx-fp32.onnx", "cuda")
    assert gpu.asked == [{"CUDAExecutionProvider": {"use_tf32": "0"}}]


def test_tensorrt_is_told_shapes_caches_and_precision(gpu, starter_bundle, tmp_path):
    file = starter_bundle / "onnx-int8.onnx"
    OnnxRuntimeEngine(file, "tensorrt", workspace_mib="512", max_batch="4")
    told = gpu.asked[-1]["TensorrtExecutionProvider"]
    assert set(told) == TENSORRT_OPTIONS
    assert (told["trt_int8_enable"], told["trt_fp16_enable"], told["trt_max_workspace_size"]) == ("1", "0", "536870912")
    assert told["trt_profile_max_shapes"] == "image:4x128x96x3"
    assert told["trt_profile_min_shapes"] == told["trt_profile_opt_shapes"] == "image:1x128x96x3"
    engines = cache_folder("tensorrt-ep") / sha256_file(file)[:32]
    assert told["trt_engine_cache_path"] == str(engines)
    assert engines.stat().st_mode & 0o777 == 0o700
    for name, fp16 in (("onnx-fp16", "1"), ("tensorrt-int8", "1"), ("model", "0")):
        (tmp_path / f"{name}.onnx").write_bytes((starter_bundle / "onnx-fp32.onnx").read_bytes())
        OnnxRuntimeEngine(tmp_path / f"{name}.onnx", "tensorrt")
        assert gpu.asked[-1]["TensorrtExecutionProvider"]["trt_fp16_enable"] == fp16
    OnnxRuntimeEngine(tmp_path / "model.onnx", "tensorrt", fp16="on", int8="on")
    told = gpu.asked[-1]["TensorrtExecutionProvider"]
    assert (told["trt_fp16_enable"], told["trt_int8_enable"]) == ("1", "1")


def test_options_of_another_device_are_refused(gpu, starter_bundle):
    with pytest.raises(EngineUnavailable, match="fp16 are options of --device tensorrt, not cpu"):
        open_engine(starter_bundle / "onnx-fp32.onnx", None, "cpu", None, {"fp16": "on"})
    with pytest.raises(EngineUnavailable, match="max_batch is a whole number from 1 upwards, got 'x'"):
        open_engine(starter_bundle / "onnx-fp32.onnx", None, "tensorrt", None, {"max_batch": "x"})


def test_a_provider_that_refuses_is_an_error_in_one_line(starter_bundle, monkeypatch):
    names = ["TensorrtExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    # The real session: the provider's library is not there. It must neither print nor fall back.
    with pytest.raises((EngineError, EngineUnavailable)) as caught:
        OnnxRuntimeEngine(starter_bundle / "onnx-fp32.onnx", "tensorrt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "device"),
    [
        ("CPUExecutionProvider", "cpu"),
        ("CUDAExecutionProvider", "cuda"),
        ("TensorrtExecutionProvider", "tensorrt"),
        ("CPU f32", "cpu"),
        ("CPU XNNPACK", "cpu"),
        ("GPU f16", "gpu"),
        ("NPU", "npu"),
        ("edgetpu", "edgetpu"),
        ("cuda:0", "cuda"),
        ("delegate:/opt/lib x.so", "delegate:/opt/lib x.so"),
    ],
)
def test_every_place_is_on_a_device(place, device):
    assert place_device(place) == device


class Placed:
    """An engine that says where its nodes ran."""

    def __init__(self, device, **places):
        self.device, self.places = device, places

    def placement(self):
        return self.places


def test_several_precisions_on_one_device_are_no_fallback():
    assert strays(Placed("cpu", **{"CPU f32": 3, "CPU u8": 4})) == {}
    assert strays(Placed("gpu", **{"GPU f16": 3, "GPU u8": 4})) == {}
    assert strays(Placed("edgetpu", **{"CPU": 4, "CPU XNNPACK": 1, "edgetpu": 56})) == {"CPU": 4, "CPU XNNPACK": 1}
    assert strays(Placed("tensorrt", TensorrtExecutionProvider=1, CUDAExecutionProvider=2)) == {
        "CUDAExecutionProvider": 2
    }


def test_a_benchmark_of_a_board_says_so_too():
    """From what its rows say: nobody saw that board's terminal."""
    rows = [{"variant": "onnx-fp32", "device": "cuda", "placement": {"CUDA": 3, "CPUExecutionProvider": 2}}]
    assert stray_words("a", "cpu", {"CPU f32": 3, "CPU u8": 4}) is None
    assert list(caveats({"rows": rows, "machine": {}})) == [
        "onnx-fp32: not all nodes run on cuda: 2 on CPUExecutionProvider (--strict refuses this)"
    ]


def test_strict_refuses_nodes_elsewhere_and_without_it_they_are_told(gpu, starter_bundle):
    gpu.on_cpu = 3
    file = starter_bundle / "onnx-fp32.onnx"
    for path, variant in ((file, None), (starter_bundle, "onnx-fp32")):
        with pytest.raises(EngineError, match=r"onnxruntime runs 3 nodes on CPUExecutionProvider, not cuda: another"):
            edgepose.load(path, device="cuda", variant=variant, strict=True)
    assert edgepose.load(file, device="cuda").engine.device == "cuda"
    arguments = [str(starter_bundle), "--variants", "onnx-fp32", "--device", "cuda", "--strict"]
    refused = CliRunner().invoke(bench.command, arguments)
    assert "runs 3 nodes on CPUExecutionProvider, not cuda" in str(refused.exception)
    gpu.on_cpu = 0
    assert edgepose.load(file, device="cuda", strict=True).engine.device == "cuda"


def test_the_command_line_names_nodes_that_run_elsewhere(gpu, starter_bundle, capsys):
    from edgepose.cli._variants import load_variants
    from edgepose.opening import Opening

    gpu.on_cpu = 3
    load_variants(starter_bundle, ["onnx-fp32"], Opening(device="cuda"))
    said = " ".join(capsys.readouterr().err.split())
    assert "onnx-fp32: not all nodes run on cuda: 3 on CPUExecutionProvider (--strict refuses this)" in said
    load_variants(starter_bundle, ["onnx-fp32"], Opening(device="cpu"))
    assert capsys.readouterr().err == ""
