"""What the torch engine does beyond the contract of every engine: devices, precisions, compiling, CUDA graphs."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import edgepose
from edgepose import BundleError, EngineError, EngineUnavailable
from edgepose.bundle import Bundle
from edgepose.converters.torch_program import export_torch
from edgepose.runtimes import torch as module
from edgepose.runtimes.load import load_file, load_model_file
from edgepose.runtimes.onnxruntime import OnnxRuntimeEngine
from edgepose.runtimes.pt2_file import Program
from edgepose.runtimes.registry import engines, open_engine
from edgepose.runtimes.torch import TorchEngine
from edgepose.types import ModelSpec

SPEC = ModelSpec.pose2d("small", (64, 32), "lsp14")
CUDA = torch.cuda.is_available()
needs_cuda = pytest.mark.skipif(not CUDA, reason="torch finds no CUDA device here")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def starter(starter_torch):
    return starter_torch / "torch-fp32.pt2"


@pytest.fixture(scope="module")
def golden(starter_bundle):
    return Bundle.open(starter_bundle).golden()


class Small(torch.nn.Module):
    """A pose model that compiles in no time."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 14, 4, stride=4)
        self.register_buffer("shift", torch.linspace(0, 1, 14).view(14, 1, 1))

    def forward(self, image):
        return torch.relu(self.conv(image)) + (self.shift + 1)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "torch-fp32.pt2"
    torch.manual_seed(0)
    export_torch(Small(), SPEC, path)
    return path


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 32, 3), dtype=np.uint8)


def heatmaps(engine, image):
    return engine.run({"image": image})["heatmaps"]


def relative(answer, truth):
    return float(np.linalg.norm(answer - truth) / np.linalg.norm(truth))


def test_fp32_is_onnxruntimes_and_torchs_fp32(starter, starter_bundle, golden):
    answers = heatmaps(TorchEngine(starter, "cpu"), golden.inputs)
    other = heatmaps(OnnxRuntimeEngine(starter_bundle / "onnx-fp32.onnx", "cpu"), golden.inputs)
    assert relative(answers, golden.answers) < 1e-5  # what torch itself gave, when the bundle was made
    assert relative(answers, other) < 1e-5


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({"channels_last": "on"}, 1e-5),
        ({"channels_last": "off"}, 1e-5),
        ({"precision": "fp16"}, 3e-3),  # 11 bits of mantissa
        ({"precision": "bf16"}, 3e-2),  # 8 bits
        ({"precision": "bf16", "channels_last": "off"}, 3e-2),
    ],
)
def test_options_change_how_and_not_what(starter, golden, options, limit):
    engine = open_engine(starter, None, "cpu", 1, options)
    answers = heatmaps(engine, golden.inputs[:2])
    assert answers.dtype == np.float32
    assert relative(answers, golden.answers[:2]) < limit
    width = {"fp16": "f16", "bf16": "bf16"}.get(options.get("precision"), "f32")
    assert engine.placement()[f"CPU {width}"] > 100


@pytest.mark.parametrize("count", [0, 1, 3, 13, 40])
def test_any_batch(small, count):
    engine = TorchEngine(small, "cpu", 1)
    together = heatmaps(engine, images(count))
    assert together.shape == (count, 14, 16, 8)
    for i in range(count):
        np.testing.assert_allclose(together[i : i + 1], heatmaps(engine, images(count)[i : i + 1]), atol=1e-5)


def test_inputs_that_are_read_only_or_scattered(small):
    engine, image = TorchEngine(small, "cpu"), images(4)
    expected = heatmaps(engine, image)
    image.setflags(write=False)
    np.testing.assert_array_equal(heatmaps(engine, image), expected)
    np.testing.assert_array_equal(heatmaps(engine, images(4)[::2]), expected[::2])


def test_answers_are_not_overwritten(small):
    engine = TorchEngine(small, "cpu")
    first = heatmaps(engine, images(1))
    kept = first.copy()
    heatmaps(engine, images(1, seed=1))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.slow
def test_compiled_gives_the_same_for_every_batch(small, tmp_path, monkeypatch):
    if not shutil.which("g++"):
        pytest.skip("torch.compile needs g++")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no pool of processes, which would outlive the test
    plain, compiled = TorchEngine(small, "cpu", 1), TorchEngine(small, "cpu", 1, compile="on")
    for count in (1, 3):  # 3 runs as 2 + 1
        np.testing.assert_allclose(heatmaps(compiled, images(count)), heatmaps(plain, images(count)), atol=1e-5)
    with pytest.raises(EngineError, match="compiled or recorded, operators are no longer apart"):
        compiled.profile({"image": images(1)}, 1)
    compiled.close()


@pytest.mark.slow
def test_compiled_ahead_is_compiled_once_and_kept(small, tmp_path, monkeypatch):
    if not shutil.which("g++"):
        pytest.skip("AOTInductor needs g++")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ahead = TorchEngine(small, "cpu", 1, compile="ahead")
    for count in (1, 3, 40):
        expected = heatmaps(TorchEngine(small, "cpu", 1), images(count))
        np.testing.assert_allclose(heatmaps(ahead, images(count)), expected, atol=1e-5)
    ahead.close()
    [package] = (tmp_path / "edgepose" / "torch").iterdir()
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", None)  # is not needed again
    kept = TorchEngine(small, "cpu", 1, compile="ahead")
    np.testing.assert_allclose(heatmaps(kept, images(3)), heatmaps(TorchEngine(small, "cpu", 1), images(3)), atol=1e-5)
    with pytest.raises(EngineUnavailable, match="compile=ahead does not work here"):
        TorchEngine(small, "cpu", 1, compile="ahead", precision="bf16")  # is another model: to be compiled
    package.parent.chmod(0o777)
    with pytest.raises(EngineUnavailable, match=r"torch: compiled models are kept there, and others may write"):
        TorchEngine(small, "cpu", 1, compile="ahead")


def test_a_machine_that_cannot_compile_says_so_when_the_model_is_loaded(small, monkeypatch):
    def broken(*_args, **_kwargs):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nand a page of more")

    monkeypatch.setattr(module.torch, "compile", lambda *args, **kwargs: broken)
    with pytest.raises(
        EngineUnavailable,
        match=r"compile=on does not work here \(InvalidCxxCompiler: No working C\+\+ compiler found\): it needs",
    ):
        TorchEngine(small, "cpu", compile="on")


def test_fp32_is_not_tf32_and_settings_of_the_process_stay(small, monkeypatch):
    seen = []
    engine = TorchEngine(small, "cpu", 1)
    real = engine._call

    def looking(*inputs):
        precision = torch.get_float32_matmul_precision()
        seen.append((torch.get_num_threads(), precision, torch.backends.cudnn.allow_tf32))
        return real(*inputs)

    monkeypatch.setattr(engine, "_call", looking)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # torch's own default
    torch.set_float32_matmul_precision("medium")
    torch.set_num_threads(2)
    try:
        heatmaps(engine, images(1))
        after = torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.set_num_threads(1)
    assert seen == [(1, "highest", False)]
    assert after == (2, "medium", True)


@pytest.mark.parametrize(
    ("device", "options", "message"),
    [
        ("cpu", {"precision": "tf32"}, "torch has precision=tf32 on CUDA alone, and this is cpu: leave it out"),
        ("cpu", {"cuda_graphs": "on"}, "torch has cuda_graphs=on on CUDA alone, and this is cpu: leave it out"),
        ("cpu", {"precision": "int8"}, "torch has no precision 'int8': choose fp32, tf32, fp16, bf16"),
        ("cpu", {"compile": "yes"}, "torch has no compile 'yes': choose off, on, ahead"),
        ("cpu", {"compile": "ahead", "cuda_graphs": "on"}, "torch has compile=ahead or cuda_graphs=on, not both"),
        ("cpu", {"mode": "latency"}, "torch has no option 'mode': it has precision, compile, channels_last, cuda_gr"),
        ("gpu", {}, "torch has no device 'gpu': choose auto, cpu, cuda"),
    ],
)
def test_what_it_cannot_do_is_named(small, device, options, message):
    with pytest.raises(EngineUnavailable, match=message):
        open_engine(small, None, device, None, options)


@pytest.mark.skipif(CUDA, reason="CUDA is here")
@pytest.mark.parametrize(
    ("built_for", "warning", "message"),
    [
        (None, None, r"torch .* is built without CUDA: install a CUDA wheel of torch .* or use --device cpu"),
        ("12.6", None, r"torch .* finds no CUDA device: check the driver with nvidia-smi, or use --device cpu"),
        (
            "12.6",
            "The NVIDIA driver is too old\n(found 11040)",
            r"finds no CUDA device \(The NVIDIA driver is too old\):",
        ),
    ],
)
def test_cuda_that_is_not_there_is_no_silent_fallback(small, monkeypatch, built_for, warning, message):
    def available():
        if warning:
            module.warnings.warn(warning, UserWarning, stacklevel=1)
        return False

    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(torch.cuda, "is_available", available)
    with pytest.raises(EngineUnavailable, match=message):
        TorchEngine(small, "cuda")
    assert TorchEngine(small).device == "cpu"


def test_a_closed_engine_says_so(small):
    engine = TorchEngine(small, "cpu")
    engine.close()
    with pytest.raises(EngineError, match=r"torch-fp32.pt2: torch failed on cpu \(the engine is closed\)"):
        heatmaps(engine, images(1))
    with pytest.raises(EngineError, match="the engine is closed"):
        engine.placement()


def test_a_program_that_does_not_fit_together_is_an_engine_error(small, tmp_path, monkeypatch):
    program = module.read_pt2(small)
    weights = {name: np.zeros((1, 2, 3), np.float32) for name in program.weights}
    monkeypatch.setattr(module, "read_pt2", lambda path: Program(**{**vars(program), "weights": weights}))
    with pytest.raises(EngineError, match=r"torch-fp32.pt2: torch failed on cpu \(.{10,}\)") as caught:
        heatmaps(TorchEngine(small, "cpu"), images(1))
    assert "\n" not in str(caught.value)


def test_constants_are_computed_once(small):
    """``shift + 1`` depends on no input; convolution, sum, ReLU and normalisation do."""
    assert TorchEngine(small, "cpu").placement() == {"CPU f32": 6, "CPU u8": 1}


def test_a_lone_file_is_a_model(starter, golden, tmp_path):
    shutil.copy(starter, tmp_path / "copied.pt2")
    model = edgepose.load(tmp_path / "copied.pt2", device="cpu")
    np.testing.assert_allclose(model.infer(golden.inputs), golden.answers, atol=1e-4)
    assert json.loads(model.engine.metadata["edgepose.origin"]) == {"made": "here"}


def test_a_file_without_a_specification(small, tmp_path, monkeypatch):
    program = module.read_pt2(small)
    monkeypatch.setattr(module, "read_pt2", lambda path: Program(**{**vars(program), "metadata": {}}))
    with pytest.raises(BundleError, match="carries no edgepose specification"):
        load_file(small, device="cpu")


@pytest.mark.parametrize(("precision", "passes"), [("bf16", True), ("fp32", False)])
def test_the_self_test_knows_how_few_bits_were_asked_for(starter, small, precision, passes, monkeypatch):
    """Answers 3 % off are what bfloat16 may give, and FP32 never."""
    from edgepose.bundle import Golden, Variant
    from edgepose.runtimes.load import self_test

    model = load_model_file(small, device="cpu", options={"precision": precision})
    answers = model.infer(images(2))
    bundle = SimpleNamespace(golden=lambda: Golden(images(2), answers * 1.03), path=small.parent)
    row = Variant("torch-fp32", ("torch-fp32.pt2",), {}, 0.0)
    with contextlib.nullcontext() if passes else pytest.raises(EngineError, match="self-test failed on torch cpu"):
        self_test(model, bundle, row)


@pytest.mark.parametrize("code", ["import edgepose.runtimes.load", "import edgepose.runtimes.pt2_file"])
def test_nobody_else_imports_torch(code):
    script = (
        f"import sys; {code}; from edgepose.runtimes.registry import engines; engines(); print('torch' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"
    )


def test_the_row_names_the_options_that_the_engine_takes():
    assert engines()["torch"].options["precision"] == tuple(module.PRECISIONS)


class Recorder(TorchDispatchMode):
    """What a CUDA graph is: the calls of one run, to be made again with the same memory."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        answer = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, answer))
        return answer

    def replay(self):
        for func, args, kwargs, answer in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(*((a if isinstance(a, (list, tuple)) else [a]) for a in (answer, again)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Stream:
    def __init__(self, log, name):
        self.log, self.name = log, name

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")

    def synchronize(self):
        self.log.append("synchronize")


class FakeTorch:
    """torch with a CUDA whose memory is the CPU's, and which writes down what it is told."""

    def __init__(self):
        self.log = []
        main = Stream(self.log, "main")

        @contextlib.contextmanager
        def capture(graph):
            self.log.append("capture")
            with graph.recorder:
                yield

        def graph():
            recorder = Recorder()

            def replay():
                self.log.append("replay")
                recorder.replay()

            return SimpleNamespace(recorder=recorder, replay=replay)

        self.cuda = SimpleNamespace(
            is_available=lambda: True,
            Stream=lambda: Stream(self.log, "side"),
            current_stream=lambda: main,
            stream=contextlib.nullcontext,
            CUDAGraph=graph,
            graph=capture,
            empty_cache=lambda: self.log.append("empty_cache"),
        )

    def device(self, name):
        return torch.device("cpu")

    def empty(self, *args, pin_memory=False, **kwargs):
        self.log.append("pinned" if pin_memory else "pageable")
        return torch.empty(*args, **kwargs)

    def empty_like(self, like, pin_memory=False):
        self.log.append(f"pinned {like.dtype}" if pin_memory else "pageable")
        return torch.empty_like(like)

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.fixture
def fake(monkeypatch):
    double = FakeTorch()
    monkeypatch.setattr(module, "torch", double)
    return double


def test_cuda_graphs_are_recorded_once_for_each_batch_size(small, fake):
    plain = heatmaps(TorchEngine(small, "cpu"), images(7))
    engine = TorchEngine(small, "cuda", cuda_graphs="on")
    assert fake.log.count("capture") == 1  # for a batch of one, when it was loaded
    assert fake.log[:5] == ["pinned torch.uint8", "side waits for main", "main waits for side", "capture", "pinned"]
    fake.log.clear()
    np.testing.assert_allclose(heatmaps(engine, images(7)), plain, atol=1e-5)
    assert [line for line in fake.log if line in ("capture", "replay", "synchronize")] == [
        *("capture", "replay", "synchronize"),  # 4
        *("capture", "replay", "synchronize"),  # 2
        *("replay", "synchronize"),  # 1, recorded before
    ]
    fake.log.clear()
    for seed in (1, 2):  # other pixels, other answers, and the first are not overwritten
        first = heatmaps(engine, images(2, seed))
        np.testing.assert_allclose(first, heatmaps(TorchEngine(small, "cpu"), images(2, seed)), atol=1e-5)
    assert fake.log == ["replay", "synchronize"] * 2
    kept = first.copy()
    heatmaps(engine, images(2))
    np.testing.assert_array_equal(first, kept)
    engine.close()
    assert fake.log[-1] == "empty_cache"


def test_pixels_go_to_cuda_through_pinned_memory_that_is_used_again(small, fake):
    engine = TorchEngine(small, "cuda")
    for seed in range(3):
        np.testing.assert_allclose(
            heatmaps(engine, images(5, seed)), heatmaps(TorchEngine(small, "cpu"), images(5, seed)), atol=1e-5
        )
    assert fake.log == ["pinned torch.uint8"]


@needs_cuda
@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({}, 1e-5),
        ({"cuda_graphs": "on"}, 1e-5),
        ({"channels_last": "on"}, 1e-5),
        ({"compile": "on"}, 1e-5),
        ({"precision": "tf32"}, 3e-3),
        ({"precision": "fp16", "cuda_graphs": "on"}, 3e-3),
        ({"precision": "bf16"}, 3e-2),
    ],
)
def test_on_cuda(starter, golden, options, limit):
    engine = open_engine(starter, None, "cuda", None, options)
    assert relative(heatmaps(engine, golden.inputs[:3]), golden.answers[:3]) < limit
    assert all(where.startswith("CUDA") for where in engine.placement())
    engine.close()
