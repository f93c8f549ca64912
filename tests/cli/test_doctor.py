"""``edgepose doctor``: what it prints, what it says of broken engines, and which variant it would take."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgepose.accelerators import Accelerator
from edgepose.board import Board
from edgepose.bundle import Bundle, Variant, create
from edgepose.child import ask_python
from edgepose.cli import doctor
from edgepose.cli._advise import advise
from edgepose.cli._examine import EXTRAS, Engine, Report, examine
from edgepose.converters.recipes import get_recipe
from edgepose.errors import BundleError
from edgepose.heat import Heat, Zone
from edgepose.host import Host
from edgepose.machine import Cpu
from edgepose.runtimes import inventory
from edgepose.runtimes.advice import how_to_install, how_to_reach
from edgepose.runtimes.preference import rank_variants, why_first
from edgepose.runtimes.registry import engines
from edgepose.targets import Facts
from edgepose.types import ModelSpec

ROOT = Path(__file__).parent.parent.parent
PC = Board("pc", "Dell", "Debian", "6.1", "x86_64", "glibc 2.36", "")
ORIN = Board(
    "jetson",
    "NVIDIA Jetson Orin Nano Developer Kit",
    "Ubuntu 22.04.4 LTS",
    "5.15.136-tegra",
    "aarch64",
    "glibc 2.35",
    "docker",
    {"l4t": "36.3.0", "jetpack": "6.0", "power mode": "15W"},
)
VNNI = Cpu("Xeon", ("avx2", "avx512_vnni"), 8, 8, None, None)
AVX2 = Cpu("Core i5", ("avx2",), 4, 4, None, None)
A72 = Cpu("4 x Cortex-A72", ("asimd",), 4, 4, None, 1800)


def report(**changes) -> Report:
    """A PC with every engine."""
    plain = Report(
        board=PC,
        cpu=VNNI,
        memory=None,
        accelerators=(),
        targets=("intel-cpu",),
        engines=tuple(engine(name) for name in ("onnxruntime", "openvino", "tflite")),
        opencv="5.0",
        gstreamer=False,
        cameras=(),
        camera_libraries={},
        heat=None,
        missing={},
        python="3.11",
    )
    return replace(plain, **changes)


def engine(name: str, state: str = "ready", devices: tuple[str, ...] = ("cpu",), problem: str = "") -> Engine:
    return Engine(name, state, name, dict.fromkeys(devices, ""), {}, problem, f"pip install {name}")


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    """What the command finds on this machine."""
    done = subprocess.run(
        [sys.executable, "-m", "edgepose", "doctor", "--json", "-"], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_json_has_every_part_and_nothing_failed(found):
    assert (found["schema"], found["bundle"], found["problems"]) == (1, None, {})
    assert found["python"] == ".".join(map(str, sys.version_info[:2]))
    assert {row["name"] for row in found["engines"]} == set(engines())
    assert set(found) == set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/doctor.md").read_text(), re.MULTILINE))


def test_engines_tell_their_devices_themselves(found):
    (row,) = [row for row in found["engines"] if row["name"] == "onnxruntime"]
    assert (row["state"], row["library"]) == ("ready", f"onnxruntime {version('onnxruntime')}")
    assert row["devices"]["cpu"] == "CPUExecutionProvider"


@pytest.mark.parametrize("row", engines().values(), ids=lambda row: row.name)
def test_every_engine_of_ours_can_tell_its_devices(row):
    if not row.installed:
        pytest.skip(f"{row.name} is not installed: {row.install}")
    devices = inventory.devices_of(row.name)
    assert set(devices) <= set(row.devices)
    assert "cpu" in devices or "cpu" not in row.devices


def test_the_terminal_shows_the_same(edgepose, found, tmp_path):
    text = edgepose("doctor", "--json", tmp_path / "doctor.json").stdout
    for part in (
        "this machine",
        found["cpu"]["name"],
        found["board"]["system"],
        f"onnxruntime {version('onnxruntime')}",
    ):
        assert part in text
    written = json.loads((tmp_path / "doctor.json").read_text())
    assert {row["name"]: row["state"] for row in written["engines"]} == {
        row["name"]: row["state"] for row in found["engines"]
    }


CRASHES = [
    # a wheel that was built for a newer processor
    ("os.kill(os.getpid(), signal.SIGILL)", "(SIGILL): its wheel was built for a newer processor"),
    ("raise ImportError('libfoo.so.1: cannot open shared object file')", "libfoo.so.1: cannot open shared object file"),
    ("os._exit(3)", "exit code 3"),
]


@pytest.mark.parametrize(("body", "problem"), CRASHES)
def test_an_engine_that_breaks_on_import_is_a_row(body, problem, tmp_path, monkeypatch):
    package = tmp_path / "onnxruntime"
    package.mkdir()
    (package / "__init__.py").write_text(f"import os, signal\n{body}\n")
    monkeypatch.syspath_prepend(tmp_path)
    here = inventory._look_at(engines()["onnxruntime"], ask=True)
    assert here.state == "broken"
    assert problem in here.problem


def test_modules_in_the_present_folder_are_not_run(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("print('from here'); raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    assert ask_python("import json; print(json.dumps('theirs'))") == ('"theirs"', "")


def test_without_numpy_the_machine_is_described_all_the_same(edgepose, tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise ImportError('numpy is broken')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    text = edgepose("doctor").stdout
    assert "processor" in text
    assert re.search(r"could not be found out\n(.*\n)*engines +numpy is broken", text)


def test_neither_engines_nor_numpy_are_imported_by_the_report_itself():
    script = "import sys, edgepose.cli.doctor; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"numpy", "cv2", "torch", "onnxruntime", "openvino"} & set(done.stdout.split())


def test_a_probe_that_fails_costs_its_own_row_alone(tmp_path, monkeypatch):
    def run(command):
        raise OSError(f"{command[0]} fails: no driver")

    monkeypatch.setattr("edgepose.cli._examine._take_inventory", lambda accelerators: {})
    monkeypatch.setattr("edgepose.cli._examine._opencv", lambda: ("5.0", False))
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nmodel name\t: Xeon\n")
    got = examine(Host(tmp_path, run, "x86_64", "glibc 2.36", (3, 11)))
    assert got.problems == {"NVIDIA GPU": "nvidia-smi fails: no driver"}
    assert got.cpu.name == "Xeon"
    assert got.targets == ("intel-cpu-old",)


def test_cuda_without_a_gpu_is_not_offered(monkeypatch, tmp_path):
    here = inventory.EngineHere("onnxruntime", "ready", "onnxruntime-gpu 1.2", {"cpu": "CPU", "cuda": "CUDA"})
    monkeypatch.setattr("edgepose.cli._examine._take_inventory", lambda accelerators: {"onnxruntime": here})
    monkeypatch.setattr("edgepose.cli._examine._opencv", lambda: ("5.0", False))
    (row,) = examine(Host(tmp_path, lambda command: None, "x86_64", "glibc 2.36", (3, 11))).engines
    assert set(row.devices) == {"cpu"}
    assert row.remarks == ("is built for cuda, and none is found",)
    with_gpu = Host(tmp_path, lambda command: "L4, 550, 1, 8.9" if "name," in command[1] else "", "x86_64", "", (3, 11))
    assert set(examine(with_gpu).engines[0].devices) == {"cpu", "cuda"}


PLACES = [
    # engine, board, machine, accelerators, python -> what to do
    ("onnxruntime", PC, "x86_64", (), (3, 11), "pip install onnxruntime"),
    ("onnxruntime", PC, "x86_64", ("cuda",), (3, 11), "pip install onnxruntime-gpu"),
    ("onnxruntime", PC, "armv7l", (), (3, 11), "has no wheel for 32-bit ARM: use tflite"),
    ("tflite", PC, "armv7l", (), (3, 11), "pip install --no-deps tflite-runtime, beside Debian's numpy 1"),
    ("tflite", PC, "armv7l", (), (3, 13), "tflite-runtime has wheels up to Python 3.11, this is 3.13"),
    ("tflite", PC, "aarch64", (), (3, 11), "pip install 'edgepose[tflite]'"),
    (
        "onnxruntime",
        replace(PC, kind="jetson", details={"jetpack": "6.1"}),
        "aarch64",
        ("cuda",),
        (3, 10),
        "NVIDIA's onnxruntime-gpu wheel for JetPack 6.1, Python 3.10",
    ),
]


@pytest.mark.parametrize(("name", "board", "machine", "devices", "python", "advice"), PLACES)
def test_what_is_missing_comes_with_what_to_do_on_this_machine(name, board, machine, devices, python, advice):
    host = Host(Path("/nowhere"), lambda command: None, machine, "glibc 2.36", python)
    facts = Facts(board, VNNI, [Accelerator(device, "NVIDIA L4") for device in devices])
    assert how_to_install(engines()[name], facts, host).startswith(advice)


def test_a_device_that_no_engine_offers_comes_with_what_is_missing():
    host = Host(Path("/nowhere"), lambda command: None, "x86_64", "glibc 2.36", (3, 11))
    laptop = Facts(PC, VNNI, [Accelerator("gpu", "Intel GPU"), Accelerator("npu", "Intel NPU")])
    missing = how_to_reach(engines()["openvino"], ["cpu", "gpu"], laptop, host)
    assert missing == {"npu": "Intel's NPU driver (linux-npu-driver), and this user in the group render"}
    server = Facts(PC, VNNI, [Accelerator("cuda", "NVIDIA L4")])
    assert how_to_reach(engines()["onnxruntime"], ["cpu"], server, host) == {
        "cuda": "a build with CUDA: pip install onnxruntime-gpu"
    }
    assert how_to_reach(engines()["onnxruntime"], ["cpu", "cuda"], server, host) == {}
    assert how_to_reach(engines()["tflite"], ["cpu"], server, host) == {}


def test_extras_are_those_of_the_package():
    text = (ROOT / "pyproject.toml").read_text()
    distributions = {"paho": "paho-mqtt", "litert_torch": "litert-torch"}
    for extra, modules in EXTRAS.items():
        (names,) = re.findall(rf"^{extra} = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
        wanted = set(re.findall(r'"([\w-]+)', names))
        assert {distributions.get(name, name.replace("_", "-")) for name in modules} == wanted


@pytest.fixture
def bundle(tmp_path) -> Path:
    """A bundle's manifest; doctor opens no model file."""
    path = tmp_path / "bundle"
    recipe = {"quantizer": get_recipe("onnxruntime-x86").to_dict()}
    rows = [Variant("onnx-fp32", ("onnx-fp32.onnx",), {}, 0.0), Variant("onnx-int8", ("onnx-int8.onnx",), recipe, 0.1)]
    about = {"model": "tiny", "checkpoint": {}, "notes": [], "seed": 0, "created": "", "versions": {}}
    with create(path) as writer:
        writer.finish(ModelSpec.pose2d("tiny", (32, 32), "lsp14"), rows, about)
    return path


def test_a_bundle_is_judged_as_load_does(bundle):
    advice = advise(bundle, report())
    ranked, here = rank_variants(Bundle.open(bundle))
    (taken,) = advice.taken
    assert (taken.variant, taken.why) == (ranked[0].variant.name, why_first(ranked, here))
    assert (taken.variant, taken.why) == (
        "onnx-int8",
        "before onnx-fp32: --device auto takes int8, then fp16, then fp32",
    )
    assert taken.command == f"edgepose run {bundle} --source 0"
    assert advice.variants == {"onnx-fp32": "onnxruntime cpu", "onnx-int8": "onnxruntime cpu"}
    assert advice.notes == (f"what is fastest here is measured, not known: edgepose bench {bundle}",)


def test_a_gpu_gets_its_own_line(bundle):
    gpu = report(engines=(engine("onnxruntime", devices=("cpu", "cuda")),))
    auto, cuda = advise(bundle, gpu).taken
    assert (auto.device, auto.variant) == ("auto", "onnx-int8")
    assert (cuda.variant, cuda.command) == ("onnx-fp32", f"edgepose run {bundle} --device cuda --source 0")
    assert cuda.why == "before onnx-int8: --device cuda takes fp16, then fp32, then int8"


def test_int8_on_a_processor_without_dot_products_is_doubted(bundle):
    notes = advise(bundle, report(cpu=AVX2)).notes
    assert notes[0] == "this processor has no 8-bit dot products: INT8 may be slower than FP32 here"


def test_int8_made_for_another_processor_is_told(bundle):
    notes = advise(bundle, report(cpu=A72)).notes
    assert (
        notes[0]
        == "onnx-int8 was quantized by onnxruntime-x86; for this processor convert with --recipe onnxruntime-arm"
    )


ORDERS = [
    # names in the bundle's order, device -> what is taken, and why
    (("onnx-fp32",), "auto", "onnx-fp32", "nothing else in the bundle runs here"),
    (("onnx-int8", "onnx-fp16", "onnx-fp32"), "cuda", "onnx-fp16",
     "before onnx-fp32, onnx-int8: --device cuda takes fp16, then fp32, then int8"),
    (("tflite-fp32", "onnx-int8", "tflite-int8"), "cpu", "onnx-int8",
     "before tflite-int8: the bundle lists it first; "
     "before tflite-fp32: --device cpu takes int8, then fp16, then fp32"),
]  # fmt: skip


@pytest.mark.parametrize(("names", "device", "taken", "why"), ORDERS)
def test_the_reason_is_the_rule_that_decided(names, device, taken, why, monkeypatch):
    monkeypatch.setattr(type(engines()["onnxruntime"]), "installed", True)
    rows = tuple(Variant(name, (f"{name}.{name.partition('-')[0]}",), {}, 0.0) for name in names)
    ranked, here = rank_variants(
        Bundle(Path("b"), ModelSpec.pose2d("tiny", (32, 32), "lsp14"), rows, {}, {}), None, device
    )
    assert (ranked[0].variant.name, why_first(ranked, here)) == (taken, why)


def test_openvino_int8_is_known_not_to_load_on_a_raspberry_pi_4(bundle):
    manifest = bundle / "manifest.json"
    manifest.write_text(manifest.read_text().replace("onnx-int8", "openvino-int8"))
    assert "openvino-int8 will not load here: OpenVINO has no INT8 for ARM without dot products (docs/arm.md)" in (
        advise(bundle, report(cpu=A72)).notes
    )


def test_a_broken_engine_is_told_beside_the_choice(bundle):
    broken = report(engines=(engine("onnxruntime", "broken", (), "SIGILL"),))
    advice = advise(bundle, broken)
    assert advice.variants["onnx-int8"] == "no: onnxruntime is broken"
    assert advice.notes[0] == (
        "onnx-int8 would be taken, and onnxruntime is broken: repair it, or name another with --variant"
    )


def test_what_is_no_bundle_is_one_line(edgepose, tmp_path):
    done = edgepose("doctor", tmp_path, code=2)
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    with pytest.raises(BundleError):
        advise(tmp_path, report())


@pytest.mark.parametrize("width", [80, 120])
def test_it_fits_the_terminal(width, monkeypatch, bundle):
    full = report(
        board=ORIN,
        accelerators=(Accelerator("cuda", "NVIDIA Orin (Ampere)", {"driver": "540"}),),
        targets=("jetson-orin",),
        engines=(engine("onnxruntime", "broken", (), "crashes when it is imported (SIGILL): take an older version"),
                 engine("openvino", "missing", ()), engine("tflite")),
        heat=Heat((Zone("cpu-thermal", 51.5, 99.0),) * 6, ("clock limited to 1510 MHz",), (), "schedutil", (729,)),
        missing={"mqtt": ("paho",)},
        problems={"cameras": "no sysfs here"},
    )  # fmt: skip
    monkeypatch.setattr(doctor, "examine", lambda host: full)
    monkeypatch.setattr(doctor.out, "width", width)
    monkeypatch.chdir(bundle.parent)
    done = CliRunner().invoke(doctor.command, ["bundle"])
    assert done.exit_code == 0, done.output
    for line in done.output.splitlines():
        assert len(line.rstrip()) <= width or "edgepose run" in line  # a command is one line, to be copied
    words = " ".join(done.output.split())
    for part in (
        "JetPack 6.0",
        "power mode 15W",
        "broken: crashes",
        "and 2 cooler",
        "no sysfs here",
        "--target jetson-orin",
    ):
        assert part in words
