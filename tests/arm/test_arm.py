"""The device path on emulated ARM processors, with the wheels that a board installs."""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from arm_bed import BEDS, Unavailable, _call, set_up
from arm_cells import Answer, Cell, compare, judge

from edgepose.runtimes.load import load

pytestmark = pytest.mark.arm

ALL = [Cell(bed.name, library, cpu) for bed in BEDS.values() for cpu in bed.cpus for library in bed.libraries]
QUICK = {
    *((library, "cortex-a76") for library in ("onnxruntime", "openvino", "ai-edge-litert")),
    *((library, "cortex-a72") for library in ("onnxruntime", "ai-edge-litert")),
    ("onnxruntime", "max,sme=off"),
}
FULL = os.environ.get("EDGEPOSE_ARM") == "all"
CELLS = ALL if FULL else [cell for cell in ALL if cell[1:] in QUICK]
WRONG = [Cell("arm64", "openvino", "max")] if FULL else []


@pytest.mark.parametrize("cell", CELLS, ids="-".join)
def test_arm_answers_as_this_machine_does(cell, arm_rows):
    rows = arm_rows(cell)
    if not rows:
        pytest.skip(f"this edgepose makes no variant for {cell.library}")
    assert not [row for row in rows if row.verdict.startswith("FAIL")]


@pytest.fixture
def a_cell() -> Cell:
    return next(cell for cell in CELLS if cell.library == "onnxruntime")


@pytest.fixture
def estimator(starter_bundle):
    return {name: load(starter_bundle, variant=name) for name in ("onnx-fp32", "onnx-int8")}


def answer_of(estimator, scene) -> Answer:
    """What a board that computes exactly as this machine would answer."""
    log = []
    heatmaps = estimator.heatmaps
    estimator.heatmaps = lambda crops, flip=False: log.append((crops, heatmaps(crops, flip))) or log[-1][1]
    poses = [estimator.estimate(frame, box[None]) for frame, box in zip(scene.frames, scene.boxes_xyxy, strict=True)]
    del estimator.heatmaps
    return Answer(
        crops=np.concatenate([crops for crops, _ in log]),
        heatmaps=np.concatenate([maps for _, maps in log]),
        keypoints_xy=np.concatenate([pose.keypoints_xy for pose in poses]),
        scores=np.concatenate([pose.scores for pose in poses]),
        seconds=0.0,
    )


@pytest.mark.parametrize("cpu", ["cortex-a72", "cortex-a76"])
def test_doctor_describes_the_emulated_board(cpu, arm_bed_of, tmp_path):
    """Its Python cannot start another, so engines are not asked there; click and rich are this machine's."""
    for name in ("click", "rich", "markdown_it", "mdurl", "pygments"):
        spec = importlib.util.find_spec(name)
        assert spec
        (tmp_path / name).symlink_to(Path(str(spec.origin)).parent)
    script = (
        "import sys; sys.path.append(sys.argv.pop()); from edgepose.cli import main; main(['doctor', '--json', '-'])"
    )
    done = arm_bed_of("arm64").run("onnxruntime", cpu, ["-c", script, tmp_path], 60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["board"]["machine"], found["targets"][0]) == ("aarch64", "arm64")
    assert found["cpu"]["name"] == f"1 x {cpu.title()}"
    assert ("asimddp" in found["cpu"]["isa"]) == (cpu == "cortex-a76")
    states = {row["name"]: row["state"] for row in found["engines"]}
    assert (states["onnxruntime"], states["tflite"]) == ("not asked", "missing")


BROKEN = [
    ("onnx-fp32", lambda a: a, ""),
    # a kernel that rounds to 11 bits
    ("onnx-fp32", lambda a: replace(a, heatmaps=a.heatmaps + 3e-4 * a.heatmaps.max()), "heatmaps are 3.0e-04 off"),
    # the same is no fault of INT8
    ("onnx-int8", lambda a: replace(a, heatmaps=a.heatmaps + 3e-4 * a.heatmaps.max()), ""),
    # joints beside their places, as after a wrong kernel or a wrong decoder
    ("onnx-int8", lambda a: replace(a, keypoints_xy=a.keypoints_xy + 8), "poses agree by OKS"),
    ("onnx-int8", lambda a: replace(a, keypoints_xy=a.keypoints_xy * np.nan), "poses agree by OKS nan"),
    ("onnx-fp32", lambda a: replace(a, heatmaps=a.heatmaps * np.nan), "heatmaps are nan off"),
    # a pre-processing that swaps red and blue
    ("onnx-int8", lambda a: replace(a, crops=a.crops[..., ::-1]), "grey levels off"),
]


@pytest.mark.parametrize(("variant", "change", "problem"), BROKEN)
def test_a_wrong_answer_fails(variant, change, problem, a_cell, estimator, arm_scene):
    there = answer_of(estimator[variant], arm_scene)
    row = compare(a_cell, variant, estimator[variant], arm_scene, change(there))
    assert problem in row.problem
    assert bool(problem) == bool(row.problem)


def test_an_error_on_the_board_fails(a_cell, starter_bundle, arm_scene):
    (row,) = judge(a_cell, starter_bundle, arm_scene, {"onnx-int8": "exit code -11: Illegal instruction"})
    assert row.verdict == "FAIL: exit code -11: Illegal instruction"


@pytest.mark.parametrize("cell", WRONG, ids="-".join)
def test_a_processor_that_computes_wrongly_is_caught(cell, arm_bed_of, arm_rows):
    """The SME of qemu 7.2 is not what OpenVINO takes it for: the self-test refuses the answers, on the board."""
    if " 7.2" not in arm_bed_of("arm64").version():
        pytest.skip("known of qemu 7.2 alone")
    rows = arm_rows(cell)
    assert [row.verdict for row in rows] == ["known: self-test failed on openvino cpu"] * 2


def test_without_the_tools_the_reason_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEPOSE_ARM_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="no apt-get here: the bed is made of Debian's packages"):
        set_up("arm64")


def test_a_download_that_hangs_is_given_up():
    with pytest.raises(Unavailable, match="sleep 30: not done within the 120 s of a set-up"):
        _call(["sleep", "30"], 0.0)
