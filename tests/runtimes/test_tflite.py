"""What TFLite must do beyond the contract of every engine: libraries, delegates, batches, refusals."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgepose import BundleError, EngineError, EngineUnavailable
from edgepose.bundle import Bundle, Variant
from edgepose.runtimes import registry, tflite
from edgepose.runtimes.load import load
from edgepose.runtimes.preference import rank_variants
from edgepose.runtimes.registry import open_engine
from edgepose.runtimes.tflite import TfliteEngine, TfliteLibrary, import_tflite
from edgepose.runtimes.tflite_file import with_metadata
from edgepose.types import SPEC_KEY, ModelSpec

SPEC = ModelSpec.pose2d("tiny", (32, 32), "lsp14")


@pytest.fixture(scope="module", autouse=True)
def library():
    """Skips where no TFLite is installed, unless it must be."""
    try:
        return import_tflite()
    except ImportError as error:
        if "tflite" in os.environ.get("EDGEPOSE_TEST_ENGINES", "").split(","):
            raise
        pytest.skip(f"{error}: pip install 'edgepose[tflite]'")


@pytest.fixture(scope="module")
def golden(tiny):
    with np.load(tiny / "fp32.npz") as data:
        return dict(data)


@pytest.fixture(scope="module")
def crops():
    return np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def model(tiny, tmp_path):
    """The float model with its specification."""
    path = tmp_path / "tflite-fp32.tflite"
    path.write_bytes(with_metadata((tiny / "fp32.tflite").read_bytes(), {SPEC_KEY: SPEC.to_json().encode()}))
    return path


@pytest.mark.parametrize(
    ("name", "tolerance"),
    # INT8: two steps of the output's own range, 1.0 / 127; what other versions of the library answer lies within.
    [("fp32", 1e-6), ("int8", 0.016), ("dynamic", 0.016)],
)
@pytest.mark.parametrize("xnnpack", [True, False])
def test_it_answers_as_torch_does(tiny, golden, name, tolerance, xnnpack):
    engine = TfliteEngine(tiny / f"{name}.tflite", threads=2, xnnpack=xnnpack)
    heatmaps = engine.run({"image": golden["image"]})["heatmaps"]
    assert heatmaps.dtype == np.float32
    np.testing.assert_allclose(heatmaps, golden["heatmaps"], atol=tolerance)
    assert any("XNNPACK" in where for where in engine.placement()) == xnnpack
    assert sum(engine.placement().values()) == len(engine._model.operators)


@pytest.mark.parametrize("name", ["fp32", "batch"])
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_any_batch_runs_whether_the_file_leaves_it_free_or_not(tiny, crops, name, count):
    engine = TfliteEngine(tiny / f"{name}.tflite", threads=1)
    assert engine.inputs[0].shape == (None, 32, 32, 3)
    together = engine.run({"image": crops[:count]})["heatmaps"]
    assert together.shape == (count, 14, 8, 8)
    for i in range(count):
        np.testing.assert_allclose(together[i], engine.run({"image": crops[i : i + 1]})["heatmaps"][0], atol=1e-6)


def test_a_free_batch_is_one_call(tiny, crops, monkeypatch):
    with np.load(tiny / "batch.npz") as data:
        image, heatmaps = data["image"], data["heatmaps"]
    engine = TfliteEngine(tiny / "batch.tflite", threads=1)
    calls = []
    real = engine._invoke
    monkeypatch.setattr(engine, "_invoke", lambda arrays: calls.append(len(arrays[0])) or real(arrays))
    answers = engine.run({"image": np.concatenate([image] * 3)})["heatmaps"]
    assert calls == [3]
    np.testing.assert_allclose(answers, np.concatenate([heatmaps] * 3), atol=1e-6)


def test_answers_stay_as_they_are_when_the_engine_runs_again(tiny, crops):
    engine = TfliteEngine(tiny / "fp32.tflite")
    first = engine.run({"image": crops[:1]})["heatmaps"]
    kept = first.copy()
    engine.run({"image": crops[1:2, :, ::-1]})
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"image": np.zeros((1, 32, 32, 3), np.float32)}, r"image: expected uint8 \(1, 32, 32, 3\), got float32"),
        ({"image": np.zeros((1, 16, 32, 3), np.uint8)}, r"image: expected uint8 .*, got uint8 \(1, 16, 32, 3\)"),
        ({"crop": np.zeros((1, 32, 32, 3), np.uint8)}, "it takes image, got crop"),
        ({}, "it takes image, got nothing"),
    ],
)
def test_wrong_inputs_are_told_in_one_line(tiny, feeds, message):
    engine = TfliteEngine(tiny / "fp32.tflite")
    with pytest.raises(EngineError, match=rf"fp32.tflite: tflite failed on cpu \({message}") as caught:
        engine.run(feeds)
    assert "\n" not in str(caught.value)


def test_after_closing(tiny, crops):
    engine = TfliteEngine(tiny / "fp32.tflite")
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="the engine is closed"):
        engine.run({"image": crops[:1]})


def test_options_and_devices(tiny):
    with pytest.raises(EngineUnavailable, match="tflite has no option 'mode': it has none"):
        open_engine(tiny / "fp32.tflite", None, "cpu", None, {"mode": "throughput"})
    for device in ("cuda", "delegate:", "delegate"):
        with pytest.raises(
            EngineUnavailable, match=r"has no device .*: choose auto, cpu, gpu, npu, edgetpu, delegate:PA"
        ):
            open_engine(tiny / "fp32.tflite", None, device, None)
    assert open_engine(tiny / "fp32.tflite", None, "auto", None).device == "cpu"


def test_a_lone_file_is_an_estimator(model, crops):
    estimator = load(model, threads=1)
    assert (estimator.engine.name, estimator.engine.device, estimator.spec) == ("tflite", "cpu", SPEC)
    assert estimator.heatmaps(crops).shape == (5, 14, 8, 8)


def test_a_file_without_a_specification_says_how_to_attach_one(tiny):
    message = r"fp32.tflite: carries no edgepose spec.* edgepose inspect \S*fp32.tflite --attach spec.json$"
    with pytest.raises(BundleError, match=message):
        load(tiny / "fp32.tflite")


def test_a_file_made_for_a_newer_runtime(tiny, library):
    with pytest.raises(EngineError, match=rf"newer runtime: {library.package} .* lacks SOFTMAX version 99: install"):
        TfliteEngine(tiny / "newer.tflite")


def test_a_custom_operator_is_named_with_its_delegate(tiny):
    with pytest.raises(EngineError, match="has no edgetpu-custom-op: name its delegate with --device edgetpu"):
        TfliteEngine(tiny / "custom.tflite")


def test_damaged_files(tiny, tmp_path):
    path = tmp_path / "model.tflite"
    with pytest.raises(EngineError, match=r"model.tflite: cannot be read \(No such file"):
        TfliteEngine(path)
    path.write_bytes((tiny / "fp32.tflite").read_bytes()[:3000])
    with pytest.raises(EngineError, match=r"model.tflite: damaged TFLite file \(truncated.*: copy it again"):
        TfliteEngine(path)


def test_tflite_runtime_refuses_what_it_computes_wrongly(tiny, monkeypatch, library):
    old = TfliteLibrary("tflite-runtime", "2.14.0", library.module)
    monkeypatch.setattr(tflite, "import_tflite", lambda: old)
    with pytest.raises(
        EngineError,
        match=r"dynamic.tflite: 1 FULLY_CONNECTED operators .* which tflite-runtime 2.14.0 computes wrongly .*: use ai",
    ):
        TfliteEngine(tiny / "dynamic.tflite")
    assert TfliteEngine(tiny / "int8.tflite").outputs


def test_tflite_runtime_refuses_what_it_crashes_on(tiny, monkeypatch, library):
    """INT8 linear layers without a bias, on ARM: tests/arm met the crash."""
    old, whole = TfliteLibrary("tflite-runtime", "2.14.0", library.module), tflite.read_tflite(tiny / "int8.tflite")
    bare = [replace(op, inputs=op.inputs[:2]) if op.name == "FULLY_CONNECTED" else op for op in whole.operators]
    monkeypatch.setattr(tflite, "import_tflite", lambda: old)
    monkeypatch.setattr(tflite, "read_tflite", lambda path: replace(whole, operators=tuple(bare)))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert TfliteEngine(tiny / "int8.tflite").outputs
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(EngineError, match="1 INT8 FULLY_CONNECTED operators without a bias, on which tflite-runtime 2"):
        TfliteEngine(tiny / "int8.tflite")


@pytest.fixture
def installed(monkeypatch):
    """Say which of the libraries are installed."""

    def only(*names):
        real = tflite.importlib.util.find_spec
        fake = types.SimpleNamespace()
        monkeypatch.setattr(
            tflite.importlib.util,
            "find_spec",
            lambda name: (
                (fake if name in names else None)
                if name in ("ai_edge_litert", "tflite_runtime", "onnxruntime", "openvino", "torch")
                else real(name)
            ),
        )

    return only


def test_numpy_2_with_tflite_runtime_is_said_before_it_crashes(tiny, installed, monkeypatch):
    installed("tflite_runtime")
    monkeypatch.setattr(tflite, "_version", lambda package: "2.14.0")
    monkeypatch.setattr(np, "__version__", "2.4.6")
    monkeypatch.setitem(sys.modules, "tflite_runtime.interpreter", None)  # an import would raise ImportError
    with pytest.raises(
        EngineUnavailable,
        match=r"tflite-runtime 2.14.0 was built for numpy 1 and fails with the numpy 2.4.6 .*'numpy<2'",
    ):
        open_engine(tiny / "fp32.tflite", None, "cpu", None)


def test_tflite_runtime_serves_where_it_is_what_is_installed(tiny, installed, monkeypatch, library, golden):
    installed("tflite_runtime")
    monkeypatch.setattr(np, "__version__", "1.26.4")
    monkeypatch.setitem(sys.modules, "tflite_runtime", types.ModuleType("tflite_runtime"))
    monkeypatch.setitem(sys.modules, "tflite_runtime.interpreter", library.module)
    engine = TfliteEngine(tiny / "fp32.tflite")
    assert engine._library.package == "tflite-runtime"
    np.testing.assert_allclose(engine.run({"image": golden["image"]})["heatmaps"], golden["heatmaps"], atol=1e-6)


def test_neither_library(tiny, installed):
    installed()
    with pytest.raises(
        EngineUnavailable,
        match=r"tflite is needed for fp32.tflite and not here \(neither ai-edge-litert nor tflite-runtime is inst.*\): "
        r"pip install 'edgepose\[tflite\]'",
    ):
        open_engine(tiny / "fp32.tflite", None, "cpu", None)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        (
            "gpu",
            r"libtensorflowlite_gpu_delegate.so: cannot open .*: install its driver, or name the library with --dev",
        ),
        ("edgetpu", r"libedgetpu.so.1: cannot open shared object file.*--device delegate:PATH"),
        ("npu", r"libvx_delegate.so: .*; libethosu_delegate.so: .*--device delegate:PATH"),
        ("delegate:/none/libx.so", r"/none/libx.so: cannot open .*: check the path"),
        ("delegate:libm.so.6", r"libm.so.6 is no TFLite delegate\): check the path"),
    ],
)
def test_a_delegate_that_is_not_there_is_named(tiny, device, message):
    with pytest.raises(EngineUnavailable, match=rf"no delegate for --device {device} here \(.*{message}"):
        open_engine(tiny / "fp32.tflite", None, device, None)


DELEGATE = """
#include <stddef.h>
#include <stdint.h>
typedef struct D { void* data; int (*prepare)(void*, struct D*); void* unused[3]; int64_t flags; void* builder; } D;
static int prepare(void* context, D* self) { return STATUS; }
static D delegate = {0, prepare, {0, 0, 0}, 0, 0};
D* tflite_plugin_create_delegate(char** keys, char** values, size_t count, void (*report)(const char*)) {
  if (STATUS < 0) report("no accelerator on the bus");
  return STATUS < 0 ? 0 : &delegate;
}
void tflite_plugin_destroy_delegate(D* delegate) {}
"""


@pytest.fixture
def delegate(tmp_path):
    """A real delegate's library whose preparation ends with a status; below 0 it finds no hardware."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")

    def build(status):
        (tmp_path / "delegate.c").write_text(DELEGATE)
        command = [compiler, "-shared", "-fPIC", f"-DSTATUS={status}", "-o", "libmine.so", "delegate.c"]
        subprocess.run(command, cwd=tmp_path, check=True)
        return f"delegate:{tmp_path / 'libmine.so'}"

    return build


@pytest.mark.parametrize(("status", "reason"), [(0, "it takes none of the operators"), (1, ".*"), (2, ".*")])
def test_a_delegate_that_refuses_the_graph(tiny, delegate, status, reason):
    message = (
        rf"fp32.tflite: the delegate of --device delegate:.*libmine.so refuses the graph \({reason}\); its operators: 5"
    )
    with pytest.raises(EngineError, match=rf"{message} TRANSPOSE, 2 CONV_2D, .*: use another variant, or --device cpu"):
        open_engine(tiny / "fp32.tflite", None, delegate(status), None)


def test_a_delegate_without_its_hardware(tiny, delegate):
    with pytest.raises(EngineUnavailable, match=r"no delegate for .*no accelerator on the bus\): check the path"):
        open_engine(tiny / "fp32.tflite", None, delegate(-1), None)


@pytest.fixture
def accelerator(monkeypatch, library):
    """A machine with every delegate, as far as the library tells: it takes the last operators of the graph."""

    class Interpreter(library.module.Interpreter):
        takes = 3

        def __init__(self, *, experimental_delegates=None, **settings):
            self.delegates = experimental_delegates or []
            super().__init__(**settings)

        def _get_ops_details(self):
            nodes = super()._get_ops_details()
            own = [node for node in nodes if node["op_name"] != "DELEGATE"]
            if self.delegates and self.takes:
                row = {"op_name": "DELEGATE", "inputs": own[-self.takes]["inputs"], "outputs": own[-1]["outputs"]}
                nodes = [*nodes, row]
            return nodes

    fake = types.SimpleNamespace(
        Interpreter=Interpreter,
        OpResolverType=library.module.OpResolverType,
        load_delegate=lambda name: types.SimpleNamespace(name=name),
    )
    monkeypatch.setattr(tflite.ctypes, "CDLL", lambda name: types.SimpleNamespace(tflite_plugin_create_delegate=1))
    monkeypatch.setattr(tflite, "import_tflite", lambda: TfliteLibrary("ai-edge-litert", "2.3.0", fake))
    return Interpreter


@pytest.mark.parametrize("device", ["gpu", "npu", "edgetpu", "delegate:libmine.so"])
def test_a_delegate_takes_what_it_can_and_placement_tells(tiny, accelerator, golden, device):
    engine = open_engine(tiny / "fp32.tflite", None, device, None)
    assert engine.device == device
    placement = engine.placement()
    assert placement[device] == 3
    assert sum(placement.values()) == 13
    name = device.removeprefix("delegate:") if ":" in device else tflite.DELEGATES[device][0]
    assert engine._interpreter.delegates[0].name == name
    np.testing.assert_allclose(engine.run({"image": golden["image"]})["heatmaps"], golden["heatmaps"], atol=1e-6)


def test_an_int8_only_delegate_that_takes_nothing_is_told_what_is_not_int8(tiny, accelerator):
    accelerator.takes = 0
    with pytest.raises(
        EngineError,
        match=r"--device edgetpu refuses the graph \(it takes none of the operators\); not for an INT8-only delegate: "
        r"5 TRANSPOSE \(float32 tensors\)",
    ):
        open_engine(tiny / "fp32.tflite", None, "edgetpu", None)


def test_delegates_get_one_crop_at_a_time(tiny, accelerator, crops, monkeypatch):
    engine = open_engine(tiny / "batch.tflite", None, "gpu", None)
    calls = []
    real = engine._invoke
    monkeypatch.setattr(engine, "_invoke", lambda arrays: calls.append(len(arrays[0])) or real(arrays))
    assert engine.run({"image": crops[:3]})["heatmaps"].shape == (3, 14, 8, 8)
    assert calls == [1, 1, 1]


def test_a_library_that_does_not_tell_its_graph(tiny, accelerator, monkeypatch):
    def refuse(self):
        raise AttributeError

    monkeypatch.setattr(accelerator, "_get_ops_details", refuse)
    assert open_engine(tiny / "fp32.tflite", None, "cpu", None).placement() == {"CPU": 13}
    assert open_engine(tiny / "fp32.tflite", None, "gpu", None).placement() == {"gpu": 13}


def test_threads(tiny, monkeypatch):
    asked = []
    real = import_tflite().module.Interpreter
    monkeypatch.setattr(
        import_tflite().module,
        "Interpreter",
        lambda **settings: asked.append(settings["num_threads"]) or real(**settings),
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(7)), raising=False)
    for threads in (None, 3):
        open_engine(tiny / "fp32.tflite", None, "cpu", threads)
    assert asked == [7, 3]


def test_nothing_but_our_own_lines_on_the_terminal(tiny):
    script = (
        "import sys, pathlib; from edgepose.runtimes.tflite import TfliteEngine\n"
        f"engine = TfliteEngine(pathlib.Path({str(tiny / 'fp32.tflite')!r}))\n"
        "print(len(engine.placement()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not done.stderr
    assert done.stdout


def test_what_else_is_written_meanwhile_is_not_lost():
    script = (
        "import os; from edgepose.runtimes.tflite import _quiet\n"
        "with _quiet():\n    os.write(2, b'INFO: chatter\\nERROR: a fault\\n')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == "ERROR: a fault\n"


@pytest.mark.parametrize(
    ("here", "engine", "device", "variant"),
    [
        (("onnxruntime", "ai_edge_litert"), None, "auto", "onnx-int8"),
        (("tflite_runtime",), None, "auto", "tflite-int8"),  # a 32-bit board: onnxruntime has no wheel
        (("onnxruntime", "ai_edge_litert"), "tflite", "auto", "tflite-int8"),
        (("onnxruntime", "ai_edge_litert"), None, "edgetpu", "tflite-int8"),
        (("onnxruntime", "ai_edge_litert"), None, "delegate:/lib/x.so", "tflite-int8"),
        (("onnxruntime", "torch"), None, "auto", "onnx-int8"),
        (("torch",), None, "auto", "torch-fp32"),
        (("onnxruntime", "torch"), None, "cuda", "torch-fp32"),
        (("onnxruntime",), None, "cuda", "onnx-fp32"),
        ((), None, "auto", "onnx-int8"),  # nothing is installed: the error names the first
    ],
)
def test_a_bundle_gives_what_is_installed_here(installed, monkeypatch, here, engine, device, variant):
    monkeypatch.setattr(registry, "_third_party", lambda: iter(()))
    installed(*here)
    names = {"onnx-fp32": ".onnx", "onnx-int8": ".onnx", "tflite-fp32": ".tflite", "tflite-int8": ".tflite"}
    names["torch-fp32"] = ".pt2"
    rows = tuple(Variant(name, (name + suffix,), {}, 0.0) for name, suffix in names.items())
    (first, *_), _ = rank_variants(Bundle(Path("b"), SPEC, rows, {}, {}), engine, device)
    assert first.variant.name == variant
