"""One contract for every engine, and what each does when it cannot do it."""

from __future__ import annotations

import importlib
import os

import numpy as np
import pytest

from edgepose import EngineError, EngineUnavailable
from edgepose.bundle import Bundle
from edgepose.runtimes import registry
from edgepose.runtimes.onnxruntime import OnnxRuntimeEngine
from edgepose.runtimes.registry import EngineRow, engines, open_engine

REQUIRED = os.environ.get("EDGEPOSE_TEST_ENGINES", "").split(",")
MODELS = {
    ".onnx": ("starter_bundle", "onnx-fp32"),
    ".xml": ("starter_openvino", "openvino-fp32"),
    ".tflite": ("starter_tflite", "tflite-fp32"),
    ".pt2": ("starter_torch", "torch-fp32"),
}


@pytest.fixture(params=list(engines()))
def engine(request):
    """Each registered engine with the starter's FP32 model; one that is named in EDGEPOSE_TEST_ENGINES must load."""
    row = engines()[request.param]
    try:
        importlib.import_module(row.target.partition(":")[0])
        folder, name = MODELS[row.suffixes[0]]
        file = request.getfixturevalue(folder) / f"{name}{row.suffixes[0]}"
        opened = open_engine(file, row.name, "cpu", threads=1)
    except EngineUnavailable as error:
        if row.name in REQUIRED:
            raise
        pytest.skip(str(error))
    yield opened
    opened.close()


def test_an_engine_answers_as_the_golden_inputs_say(engine, starter_bundle):
    golden = Bundle.open(starter_bundle).golden()
    heatmaps = engine.run({"image": golden.inputs})["heatmaps"]
    assert heatmaps.dtype == np.float32
    np.testing.assert_allclose(heatmaps, golden.answers, atol=1e-4)


def test_an_engine_says_what_it_takes_and_gives(engine, starter_bundle):
    spec = Bundle.open(starter_bundle).spec
    assert engine.inputs == (spec.input,)
    assert engine.outputs == (spec.output,)
    assert "edgepose" in engine.metadata


def test_batches_are_independent(engine, starter_bundle):
    image = Bundle.open(starter_bundle).golden().inputs
    together = engine.run({"image": image})["heatmaps"]
    alone = [engine.run({"image": image[i : i + 1]})["heatmaps"][0] for i in range(len(image))]
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_placement_counts_every_node(engine):
    placement = engine.placement()
    assert sum(placement.values()) > 20
    assert all("CPU" in where for where in placement)


def test_wrong_inputs_are_an_engine_error(engine):
    with pytest.raises(EngineError, match=f"{engine.name} failed on cpu"):
        engine.run({"image": np.zeros((1, 5, 5, 3), np.uint8)})


def test_every_row_tells_what_to_install_and_has_its_own_name():
    assert all(row.install.startswith("pip install") for row in engines().values())
    assert all(name == row.name for name, row in engines().items())


@pytest.mark.parametrize(
    ("name", "device", "message"),
    [
        ("onnxrt", "cpu", "unknown engine 'onnxrt'; known: onnxruntime"),
        (None, "tpu", "onnxruntime has no device 'tpu': choose auto, cpu, cuda"),
        (None, "cuda", "no CUDAExecutionProvider .*: pip install onnxruntime-gpu"),
    ],
)
def test_what_is_not_there_is_named(starter_bundle, name, device, message):
    import onnxruntime

    if device == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(EngineUnavailable, match=message):
        open_engine(starter_bundle / "onnx-fp32.onnx", name, device, None)


def test_a_provider_that_does_not_start_is_no_silent_fallback(starter_bundle, monkeypatch):
    """CUDA is compiled in, its libraries are broken: onnxruntime then gives a CPU session. We refuse it."""
    import onnxruntime

    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, options, providers, enable_fallback: real(path, options, ["CPUExecutionProvider"]),
    )
    with pytest.raises(EngineUnavailable, match="CUDAExecutionProvider did not start and onnxruntime offers CPU"):
        OnnxRuntimeEngine(starter_bundle / "onnx-fp32.onnx", "cuda")


def test_an_engine_whose_library_is_missing_says_what_to_install(starter_bundle, monkeypatch):
    row = EngineRow("ghost", (".onnx",), "no_such_library:Engine", ("cpu",), "pip install ghost")
    monkeypatch.setattr(registry, "_BUILT_IN", (row,))
    with pytest.raises(EngineUnavailable, match=r"ghost is needed for onnx-fp32.onnx .*: pip install ghost"):
        open_engine(starter_bundle / "onnx-fp32.onnx", None, "auto", None)


class FakeEntryPoint:
    name = "theirs"

    def __init__(self, row):
        self.row = row

    def load(self):
        if isinstance(self.row, Exception):
            raise self.row
        return self.row


@pytest.mark.parametrize("broken", [ImportError("libfoo.so is missing"), "not a row"])
def test_a_broken_engine_of_a_third_party_is_logged_and_left_out(monkeypatch, broken):
    logged = []
    monkeypatch.setattr(registry._log, "warning", lambda text, *values: logged.append(text % values))
    monkeypatch.setattr(registry, "entry_points", lambda group: [FakeEntryPoint(broken)])
    assert list(engines()) == ["onnxruntime", "openvino", "tflite", "tensorrt", "torch"]
    assert len(logged) == 1
    assert logged[0].startswith("engine theirs of another package")


def test_third_parties_add_engines_but_do_not_replace_ours(monkeypatch):
    theirs = EngineRow("abacus", (".beads",), "abacus:Engine", ("cpu",), "pip install abacus")
    monkeypatch.setattr(registry, "entry_points", lambda group: [FakeEntryPoint(theirs)])
    assert engines()["abacus"] is theirs
    ours = EngineRow("onnxruntime", (".onnx",), "abacus:Engine", ("cpu",), "pip install abacus")
    monkeypatch.setattr(registry, "entry_points", lambda group: [FakeEntryPoint(ours)])
    with pytest.raises(EngineUnavailable, match="two engines are named 'onnxruntime'"):
        engines()


def test_options_are_for_engines_that_have_them(starter_bundle, monkeypatch):
    with pytest.raises(EngineUnavailable, match="onnxruntime has no option 'mode': it has fp16, int8"):
        open_engine(starter_bundle / "onnx-fp32.onnx", None, "cpu", None, {"mode": "throughput"})
    row = EngineRow("sum", (".onnx",), "builtins:dict", ("cpu",), "pip install sum", options={"mode": ("fast",)})
    monkeypatch.setattr(registry, "_BUILT_IN", (row,))
    with pytest.raises(EngineUnavailable, match="sum has no mode 'slow': choose fast"):
        open_engine(starter_bundle / "onnx-fp32.onnx", None, "cpu", None, {"mode": "slow"})


def test_a_suffix_that_no_engine_runs(tmp_path):
    with pytest.raises(EngineUnavailable, match=r"model.beads: no engine runs .beads files; known: .onnx"):
        open_engine(tmp_path / "model.beads", None, "auto", None)
    with pytest.raises(EngineUnavailable, match=r"model.beads: onnxruntime runs .onnx files"):
        open_engine(tmp_path / "model.beads", "onnxruntime", "auto", None)
