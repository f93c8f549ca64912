"""The TensorRT engine, against doubles of TensorRT and of the CUDA driver."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

import edgepose
from edgepose.bundle import Bundle
from edgepose.errors import EngineError, EngineUnavailable
from edgepose.files import cache_folder
from edgepose.runtimes import cuda_driver
from edgepose.runtimes.onnx_file import onnx_metadata
from edgepose.runtimes.tensorrt import TensorRtEngine

_SPEC = importlib.util.spec_from_file_location("tensorrt_doubles", Path(__file__).with_name("tensorrt_doubles.py"))
_DOUBLES = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_DOUBLES)
VERSIONS, Double, Gpu = _DOUBLES.VERSIONS, _DOUBLES.Double, _DOUBLES.Gpu


@pytest.fixture
def gpu(monkeypatch):
    double = Gpu()
    monkeypatch.setattr(cuda_driver, "open_driver", lambda: double)
    return double


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_folder("tensorrt")


@pytest.fixture(params=VERSIONS)
def trt(request, gpu, monkeypatch):
    double = Double(request.param, gpu)
    monkeypatch.setitem(sys.modules, "tensorrt", double)
    return double


@pytest.fixture
def trt10(gpu, monkeypatch):
    double = Double("10.3.0", gpu)
    monkeypatch.setitem(sys.modules, "tensorrt", double)
    return double


@pytest.fixture
def fp32(starter_bundle):
    return starter_bundle / "onnx-fp32.onnx"


def test_every_version_builds_keeps_and_replays(trt, gpu, starter_bundle, fp32):
    """Answers through padding, graphs and parts are those of the golden inputs, and the second load builds nothing."""
    golden = Bundle.open(starter_bundle).golden()
    seen = []
    engine = TensorRtEngine(fp32, max_batch="2", progress=lambda *step: seen.append(step))
    assert seen == ([] if trt.__version__ == "8.6.1" else [("Building", 0, 2), ("Building", 1, 2), ("Building", 2, 2)])
    for count in (4, 3, 1):
        heatmaps = engine.run({"image": golden.inputs[:count]})["heatmaps"]
        np.testing.assert_allclose(heatmaps, golden.answers[:count], atol=1e-4)
    assert gpu.launches == 2 + 2 + 1
    (built,) = trt.built
    least, usual, most = built["profile"]["image"]
    assert (least[0], usual[0], most[0]) == (1, 1, 2)
    assert built["cleared"] == {"TF32"}
    assert built["network"] == {"8": 1 << 0, "10": 1 << 1, "11": 0}[trt.__version__.partition(".")[0]]
    assert engine.placement()["CUDA"] > 20
    engine.close()
    assert not gpu.memory
    again = edgepose.load(starter_bundle, "tensorrt", variant="onnx-fp32", options={"max_batch": "2"})
    assert len(trt.built) == 1
    assert (again.engine.device, again.variant) == ("cuda", "onnx-fp32")


def test_precision_flags_are_for_the_version_that_needs_them(trt, fp32, tmp_path):
    shutil.copy(fp32, tmp_path / "tensorrt-fp16.onnx")
    TensorRtEngine(tmp_path / "tensorrt-fp16.onnx").close()
    TensorRtEngine(fp32).close()
    assert [built["flags"] for built in trt.built] == [{"FP16"} if trt.__version__ == "8.6.1" else set(), set()]


def test_int8_of_other_engines_is_refused_with_the_way_out(trt10, starter_bundle):
    with pytest.raises(
        EngineError,
        match=r"onnx-int8.onnx: TensorRT 10.3.0 does not take this model \(In node 0 .*Non-"
        r"zero zero point: .*\): INT8 of other engines is not TensorRT's: convert with --to tensorrt",
    ):
        edgepose.load(starter_bundle, "tensorrt", variant="onnx-int8")


def test_a_build_that_fails_says_why_in_one_line(trt10, fp32, cache):
    trt10.refuses = "Could not find any implementation\nfor node conv1"
    with pytest.raises(EngineError, match=r"cannot build it \(Could not find any implementation for node conv1\)$"):
        TensorRtEngine(fp32)
    assert list(cache.iterdir()) == []


def spoil_header(file):
    header, _, engine = file.read_bytes().partition(b"\n")
    file.write_bytes(json.dumps({**json.loads(header), "gpu": "Thor (11.0)"}).encode() + b"\n" + engine)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-9]),  # cut
        lambda file: file.write_bytes(file.read_bytes()[:-1] + b"\0"),  # edited
        lambda file: file.write_bytes(b""),  # empty
        spoil_header,  # of another GPU
    ],
)
def test_a_damaged_engine_is_built_again(trt10, fp32, cache, spoil):
    TensorRtEngine(fp32).close()
    (file,) = cache.glob("*.engine")
    whole = file.read_bytes()
    spoil(file)
    TensorRtEngine(fp32).close()
    assert len(trt10.built) == 2
    assert file.read_bytes() == whole


def test_an_engine_that_tensorrt_cannot_read_is_built_again(trt10, fp32, cache, monkeypatch):
    TensorRtEngine(fp32).close()
    answers = [None]
    real = trt10.Runtime
    monkeypatch.setattr(
        trt10,
        "Runtime",
        lambda logger: (
            SimpleNamespace(deserialize_cuda_engine=lambda data: None)
            if answers and answers.pop() is None
            else real(logger)
        ),
    )
    TensorRtEngine(fp32).close()
    assert len(trt10.built) == 2


def test_timings_are_kept_and_those_that_are_refused_replaced(trt10, fp32, cache):
    TensorRtEngine(fp32).close()
    (timings,) = cache.glob("*.timings")
    assert timings.read_bytes() == b"timed"
    TensorRtEngine(fp32, max_batch="4").close()
    timings.write_bytes(b"broken")
    TensorRtEngine(fp32, max_batch="16").close()
    assert [built["timings"]["data"] for built in trt10.built] == [b"", b"timed", b""]


def test_a_cache_that_others_may_write_to_is_refused(trt10, fp32, cache):
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    with pytest.raises(EngineError, match="engines hold native code, and others may write to this folder: chmod 700"):
        TensorRtEngine(fp32)


def test_a_layer_that_cannot_be_captured_runs_without_a_graph(trt10, gpu, starter_bundle, fp32, caplog):
    trt10.capturable = False
    golden = Bundle.open(starter_bundle).golden()
    engine = TensorRtEngine(fp32)
    np.testing.assert_allclose(engine.run({"image": golden.inputs[:1]})["heatmaps"], golden.answers[:1], atol=1e-4)
    assert gpu.launches == 0
    assert "no CUDA graph of this model" in caplog.text
    plain = TensorRtEngine(fp32, cuda_graphs="off")
    assert "cuGraphLaunch" not in gpu.calls
    plain.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": "0"}, "max_batch is a whole number from 1 to 64, got '0'"),
        ({"workspace_mib": "many"}, "workspace_mib is a whole number from 1"),
        ({"cuda_graphs": "perhaps"}, "tensorrt has no cuda_graphs 'perhaps': choose off, on"),
        ({"precision": "fp16"}, "tensorrt has no option 'precision': it has max_batch"),
    ],
)
def test_options_that_make_no_sense(trt10, starter_bundle, options, message):
    with pytest.raises(EngineUnavailable, match=message):
        edgepose.load(starter_bundle, "tensorrt", variant="onnx-fp32", options=options)


def test_memory_is_looked_at_before_the_minutes_are_spent(trt10, gpu, fp32):
    gpu.free = 100 << 20
    with pytest.raises(EngineError, match=r"to build an engine takes about \d+ MiB of GPU memory, and 100 are free"):
        TensorRtEngine(fp32)
    assert not trt10.built
    gpu.free = 1 << 30
    TensorRtEngine(fp32).close()
    assert trt10.built[0]["pool"] == {"WORKSPACE": 1 << 29}  # half of what is free


def test_the_gpu_that_has_no_memory_left(trt10, gpu, fp32, monkeypatch):
    monkeypatch.setattr(Gpu, "_cuMemAllocHost_v2", lambda self, out, size: 2)
    with pytest.raises(EngineError, match="CUDA: out of memory in cuMemAllocHost_v2: close what else uses the GPU"):
        TensorRtEngine(fp32)
    assert not gpu.memory


def test_what_is_not_here(fp32, monkeypatch, gpu):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineUnavailable, match=r"tensorrt is needed for onnx-fp32.onnx .*: pip install tensorrt"):
        edgepose.load(fp32, "tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", Double("10.3.0", gpu))
    gpu.devices = 0
    with pytest.raises(EngineUnavailable, match=r"no NVIDIA GPU .*no CUDA-capable device is detected"):
        edgepose.load(fp32, "tensorrt")
    gpu.devices = 1
    monkeypatch.setitem(sys.modules, "tensorrt", Double("8.5.2", gpu))
    with pytest.raises(EngineUnavailable, match=r"TensorRT 8.5.2 is too old: 8.6 \(JetPack 5.1.2\) or newer"):
        edgepose.load(fp32, "tensorrt")


def test_a_machine_without_the_driver(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(cuda_driver.ctypes, "CDLL", missing)
    with pytest.raises(EngineUnavailable, match=r"no NVIDIA driver here, .*\(libcuda.so.1: cannot open"):
        cuda_driver.Cuda()


def test_wrong_inputs_and_a_closed_engine(trt10, fp32):
    engine = TensorRtEngine(fp32)
    with pytest.raises(EngineError, match=r"onnx-fp32.onnx: tensorrt failed on cuda \(image: expected uint8"):
        engine.run({"image": np.zeros((1, 5, 5, 3), np.uint8)})
    image = np.zeros((1, *engine.inputs[0].shape[1:]), np.uint8)
    engine.close()
    with pytest.raises(EngineError, match="the engine is closed"):
        engine.run({"image": image})
    engine.close()


def test_metadata_of_a_file_is_read_without_the_library(starter_bundle, fp32, tmp_path):
    model = onnx.load(fp32)
    assert onnx_metadata(fp32) == {entry.key: entry.value for entry in model.metadata_props}
    (tmp_path / "cut.onnx").write_bytes(fp32.read_bytes()[:-100])
    (tmp_path / "text.onnx").write_bytes(b"hello world, this is no model")
    for name in ("cut", "text"):
        with pytest.raises(EngineError, match=rf"{name}.onnx: is no ONNX file, or a damaged one"):
            onnx_metadata(tmp_path / f"{name}.onnx")
    with pytest.raises(EngineError, match="cannot be read"):
        onnx_metadata(tmp_path / "none.onnx")
