"""What OpenVINO must do beyond the contract of every engine: devices, precision, batches, queues."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np
import pytest

from edgepose import BundleError, EngineError, EngineUnavailable
from edgepose.bundle import MANIFEST, Bundle
from edgepose.files import sha256_file
from edgepose.pipeline import Estimator
from edgepose.runtimes.load import load
from edgepose.runtimes.onnxruntime import OnnxRuntimeEngine
from edgepose.runtimes.openvino import OpenVinoEngine, import_openvino
from edgepose.runtimes.registry import open_engine
from edgepose.types import ORIGIN_KEY, SPEC_KEY, ModelSpec

pytestmark = pytest.mark.usefixtures("starter_openvino")  # which skips where openvino is not installed


@pytest.fixture(scope="module")
def fp32(starter_openvino):
    return starter_openvino / "openvino-fp32.xml"


@pytest.fixture(scope="module")
def engine(fp32):
    opened = OpenVinoEngine(fp32, threads=1)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def crops(starter_bundle):
    """13 crops, all different."""
    golden = Bundle.open(starter_bundle).golden().inputs
    return np.stack([np.roll(golden[i % len(golden)], 5 * i, axis=1) for i in range(13)])


@pytest.fixture(scope="module")
def expected(starter_bundle, crops):
    """onnxruntime's answers."""
    return OnnxRuntimeEngine(starter_bundle / "onnx-fp32.onnx", "cpu", 1).run({"image": crops})["heatmaps"]


@pytest.fixture
def fake_core(monkeypatch):
    """A machine with GPU and NPU, as far as OpenVINO tells: models run on the CPU, what was asked for is kept."""
    openvino = import_openvino()

    class Core(openvino.Core):
        available_devices: ClassVar = ["CPU", "GPU.0", "GPU.1", "NPU"]
        asked: ClassVar = []

        def compile_model(self, model, device, settings):
            self.asked.append((device, settings, [list(port.shape) for port in model.inputs]))
            return super().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    monkeypatch.setattr(openvino, "Core", Core)
    return Core


@pytest.mark.parametrize("count", range(14))
def test_every_batch_size_gives_the_same_answers(engine, crops, expected, count):
    heatmaps = engine.run({"image": crops[:count]})["heatmaps"]
    assert heatmaps.shape == expected[:count].shape
    np.testing.assert_allclose(heatmaps, expected[:count], atol=1e-5)


def test_few_shapes_are_compiled(engine, crops):
    many = np.concatenate([crops] * 6)[:75]
    for count in (1, 3, 13, 75):
        assert len(engine.run({"image": many[:count]})["heatmaps"]) == count
    assert set(engine._compiled) <= {1, 2, 4, 8, 16, 32}


def test_answers_stay_as_they_are_when_the_engine_runs_again(engine, crops):
    first = engine.run({"image": crops[:1]})["heatmaps"]
    kept = first.copy()
    engine.run({"image": crops[1:2]})
    np.testing.assert_array_equal(first, kept)


def test_inputs_of_any_memory_layout(engine, crops):
    mirrored, frozen = crops[:1, :, ::-1], crops[:1].copy()
    frozen.flags.writeable = False
    for array in (mirrored, frozen):
        answer = engine.run({"image": array})["heatmaps"]
        np.testing.assert_array_equal(answer, engine.run({"image": array.copy()})["heatmaps"])


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"image": np.zeros((1, 128, 96, 3), np.float32)}, r"image: expected uint8 \(1, 128, 96, 3\), got float32"),
        ({"image": np.zeros((128, 96, 3), np.uint8)}, r"image: expected uint8 .*, got uint8 \(128, 96, 3\)"),
        ({"crop": np.zeros((1, 128, 96, 3), np.uint8)}, "it takes image, got crop"),
        ({}, "it takes image, got nothing"),
    ],
)
def test_wrong_inputs_are_told_in_one_line(engine, feeds, message):
    for call in (engine.run, engine.run_async):
        with pytest.raises(EngineError, match=rf"openvino-fp32.xml: openvino failed on cpu \({message}") as caught:
            call(feeds)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["latency", "throughput"])
def test_asynchronous_answers_are_the_synchronous_ones_in_any_order(fp32, crops, expected, mode):
    """Many more batches than requests are started before the first result is asked for, and then the last first."""
    engine = OpenVinoEngine(fp32, threads=2, mode=mode)
    batches = [crops[i : i + 1 + i % 3] for i in range(len(crops))]
    reused = np.zeros((3, *crops.shape[1:]), np.uint8)
    pending = []
    for batch in batches:
        reused[: len(batch)] = batch
        pending.append(engine.run_async({"image": reused[: len(batch)]}))
    reused[:] = 0
    for i in reversed(range(len(batches))):
        answer = engine.result(pending[i])["heatmaps"]
        np.testing.assert_allclose(answer, expected[i : i + 1 + i % 3][: len(batches[i])], atol=1e-5)
    np.testing.assert_allclose(engine.run({"image": crops})["heatmaps"], expected, atol=1e-5)
    engine.close()


@pytest.mark.parametrize("mode", ["latency", "throughput"])
def test_threads_may_share_an_engine(fp32, crops, expected, mode):
    engine = OpenVinoEngine(fp32, threads=2, mode=mode)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda i: engine.run({"image": crops[i : i + 2]})["heatmaps"], [*range(11)] * 2))
    for i, answer in enumerate(answers):
        np.testing.assert_allclose(answer, expected[i % 11 : i % 11 + 2], atol=1e-5)


def test_a_failure_under_way_is_told_to_whoever_asks_and_to_nobody_else(fp32, crops, expected):
    engine = OpenVinoEngine(fp32, threads=1)
    broken = engine.run_async({"image": crops[:1]})

    real = broken.parts[0]._request

    class Request:
        def wait(self):
            real.wait()
            raise RuntimeError("Exception from somewhere\nthe driver is gone")

    broken.parts[0]._request = Request()
    others = [engine.run_async({"image": crops[i : i + 1]}) for i in range(4)]
    with pytest.raises(EngineError, match=r"openvino failed on cpu \(the driver is gone\)"):
        engine.result(broken)
    for i, other in enumerate(others):
        np.testing.assert_allclose(engine.result(other)["heatmaps"], expected[i : i + 1], atol=1e-5)


def test_after_closing(fp32, crops, expected):
    engine = OpenVinoEngine(fp32, threads=1)
    pending = engine.run_async({"image": crops[:3]})
    engine.close()
    engine.close()
    np.testing.assert_allclose(engine.result(pending)["heatmaps"], expected[:3], atol=1e-5)
    with pytest.raises(EngineError, match="the engine is closed"):
        engine.run({"image": crops[:1]})


def test_float32_stays_float32(engine, starter_openvino):
    """Where a CPU has bfloat16, OpenVINO's default would use it for any float model."""
    half = OpenVinoEngine(starter_openvino / "openvino-fp16.xml", threads=1)
    for opened in (engine, half):
        compiled = opened._for(1).model
        assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
        assert not any("bf16" in where for where in opened.placement())


def test_half_precision_weights_cost_little(starter_openvino, crops, expected):
    half = OpenVinoEngine(starter_openvino / "openvino-fp16.xml", threads=1)
    assert np.abs(half.run({"image": crops})["heatmaps"] - expected).max() < 5e-3  # 0.5 % of a sure joint's score


def test_the_file_carries_its_specification_and_origin(engine, starter_bundle):
    spec = ModelSpec.from_json(engine.metadata[SPEC_KEY], "here")
    assert spec == Bundle.open(starter_bundle).spec
    assert json.loads(engine.metadata[ORIGIN_KEY]) == {"made": "here"}


def test_a_lone_file_is_an_estimator(fp32, crops, expected):
    estimator = load(fp32, threads=1, options={"mode": "throughput"})
    assert (estimator.engine.name, estimator.engine.device) == ("openvino", "cpu")
    np.testing.assert_allclose(estimator.heatmaps(crops), expected, atol=1e-5)


@pytest.fixture(scope="module")
def bundle(starter_bundle, starter_openvino, tmp_path_factory):
    """The starter's bundle with the two OpenVINO files."""
    path = tmp_path_factory.mktemp("both") / "bundle"
    shutil.copytree(starter_bundle, path)
    shutil.copytree(starter_openvino, path, dirs_exist_ok=True)
    manifest = json.loads((path / MANIFEST).read_text())
    for name in ("openvino-fp32", "openvino-fp16"):
        files = [f"{name}.xml", f"{name}.bin"]
        manifest["variants"].append({"name": name, "files": files, "recipe": {}, "golden_error": 0.01})
        for file in files:
            manifest["files"][file] = {
                "bytes": (path / file).stat().st_size,
                "sha256": sha256_file(path / file),
            }
    (path / MANIFEST).write_text(json.dumps(manifest))
    return path


@pytest.mark.parametrize(
    ("engine_name", "device", "variant"),
    [
        (None, "auto", "onnx-int8"),
        ("openvino", "auto", "openvino-fp16"),  # not onnx-int8, which OpenVINO's row does not take
        (None, "npu", "openvino-fp16"),  # only OpenVINO knows the device
        ("onnxruntime", "cpu", "onnx-int8"),
    ],
)
def test_a_bundle_gives_what_engine_and_device_run(bundle, fake_core, engine_name, device, variant):
    estimator = load(bundle, engine_name, device)  # with the self-test
    assert estimator.variant == variant


def test_a_bundle_checks_the_weights_beside_the_file(bundle, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    weights = copy / "openvino-fp32.bin"
    data = bytearray(weights.read_bytes())
    data[1000] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BundleError, match=r"openvino-fp32.bin: SHA-256 differs"):
        load(copy, variant="openvino-fp32")


@pytest.mark.parametrize(
    ("device", "found", "message"),
    [
        ("gpu", ["CPU"], r"OpenVINO finds no GPU here \(it finds CPU\): install .*, or use --device cpu"),
        ("npu", ["CPU", "GPU"], r"finds no NPU here \(it finds CPU, GPU\): install the Intel NPU driver"),
        ("vpu", ["CPU"], "finds no NPU .* Myriad sticks need OpenVINO 2022.3 or older"),
        ("auto", [], r"finds no CPU here \(it finds nothing\): reinstall openvino"),
    ],
)
def test_a_device_that_is_not_there_is_named(fp32, fake_core, device, found, message):
    fake_core.available_devices = found
    with pytest.raises(EngineUnavailable, match=message):
        open_engine(fp32, None, device, None)
    assert not fake_core.asked


@pytest.mark.parametrize(
    ("device", "name", "settings"),
    [
        ("auto", "CPU", {"INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False, "INFERENCE_NUM_THREADS": 3}),
        ("gpu", "GPU", {"INFERENCE_PRECISION_HINT": "f32", "CACHE_DIR": "CACHE/edgepose/openvino"}),
        ("npu", "NPU", {"CACHE_DIR": "CACHE/edgepose/openvino"}),
        ("vpu", "NPU", {"CACHE_DIR": "CACHE/edgepose/openvino"}),
    ],
)
def test_what_a_device_is_asked_for(fp32, fake_core, monkeypatch, device, name, settings):
    monkeypatch.setenv("XDG_CACHE_HOME", "CACHE")
    fake_core.asked = []
    engine = open_engine(fp32, None, device, 3)
    assert fake_core.asked == [(name, {"PERFORMANCE_HINT": "LATENCY"} | settings, [[1, 128, 96, 3]])]
    assert engine.device == name.lower()


def test_a_gpu_runs_smaller_files_in_half_precision(starter_openvino, fake_core):
    fake_core.asked = []
    OpenVinoEngine(starter_openvino / "openvino-fp16.xml", "gpu", mode="throughput")
    ((_, settings, _),) = fake_core.asked
    assert settings["INFERENCE_PRECISION_HINT"] == "f16"
    assert settings["PERFORMANCE_HINT"] == "THROUGHPUT"


def test_an_npu_gets_one_crop_at_a_time(fp32, fake_core, starter_bundle, crops, expected):
    fake_core.asked = []
    engine = OpenVinoEngine(fp32, "npu")
    spec = Bundle.open(starter_bundle).spec
    assert engine.inputs[0].shape == (1, 128, 96, 3)
    assert engine.outputs[0].shape == (1, 14, 32, 24)
    np.testing.assert_allclose(Estimator(engine, spec).heatmaps(crops[:3]), expected[:3], atol=1e-5)
    assert [shapes for _, _, shapes in fake_core.asked] == [[[1, 128, 96, 3]]]
    assert list(engine.placement()) == ["NPU"]
    assert engine.placement()["NPU"] > 20
    with pytest.raises(EngineError, match=r"openvino failed on npu \(image: expected uint8 \(1, 128, 96, 3\)"):
        engine.run({"image": crops[:2]})


def test_only_the_batch_may_be_free(fp32, tmp_path):
    openvino = import_openvino()
    model = openvino.Core().read_model(fp32)
    path = tmp_path / "free.xml"
    openvino.save_model(model, path)
    text = path.read_text()
    path.write_text(text.replace('shape="?,128,96,3"', 'shape="?,?,96,3"', 1))
    with pytest.raises(
        EngineError, match=r"free.xml: image is \(None, None, 96, 3\), where only the batch may be free"
    ):
        OpenVinoEngine(path)


def test_a_file_of_a_fixed_batch(fp32, tmp_path, starter_bundle, crops, expected):
    openvino = import_openvino()
    model = openvino.Core().read_model(fp32)
    model.reshape({0: [4, 128, 96, 3]})
    openvino.save_model(model, tmp_path / "four.xml", compress_to_fp16=False)
    engine = OpenVinoEngine(tmp_path / "four.xml", threads=1)
    assert engine.inputs[0].shape == (4, 128, 96, 3)
    estimator = Estimator(engine, Bundle.open(starter_bundle).spec)
    np.testing.assert_allclose(estimator.heatmaps(crops[:7]), expected[:7], atol=1e-5)


def test_damaged_files(fp32, tmp_path):
    path = tmp_path / "model.xml"
    with pytest.raises(EngineError, match=r"model.xml: openvino cannot load it \(.*No such file"):
        OpenVinoEngine(path)
    path.write_bytes(b"PK")
    with pytest.raises(EngineError, match=r"openvino cannot load it \(no OpenVINO IR\)"):
        OpenVinoEngine(path)
    shutil.copy(fp32, path)
    with pytest.raises(EngineError, match=r"\(its weights model.bin are not beside it: copy both files\)"):
        OpenVinoEngine(path)
    path.with_suffix(".bin").write_bytes(fp32.with_suffix(".bin").read_bytes()[:1000])
    with pytest.raises(EngineError, match=r"model.xml: openvino cannot load it \([^\n]*weights[^\n]*\)$"):
        OpenVinoEngine(path)


def test_modes(fp32):
    with pytest.raises(EngineUnavailable, match="openvino has no mode 'fast': choose latency, throughput"):
        OpenVinoEngine(fp32, mode="fast")
    with pytest.raises(EngineUnavailable, match="openvino has no mode 'fast': choose latency, throughput"):
        open_engine(fp32, None, "cpu", None, {"mode": "fast"})


def test_no_usage_statistics(fp32):
    """OpenVINO brings openvino_telemetry, and its converter uses it where it can be imported."""
    script = (
        "import sys, pathlib; from edgepose.runtimes.openvino import OpenVinoEngine, import_openvino\n"
        f"OpenVinoEngine(pathlib.Path({str(fp32)!r}))\n"
        "import openvino.tools.ovc.telemetry_utils as used\n"
        "print(used.tm.__name__, 'openvino_telemetry' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["openvino.tools.ovc.telemetry_stub", "False"]
    assert not done.stderr
