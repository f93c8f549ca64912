"""`edgepose validate` and `reproduce` as a user sees them: gates, faults, reports, other tools' poses."""

from __future__ import annotations

import json
import math
import shutil
import zipfile

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgepose.assets import SAMPLE_CLIP, STARTER_WEIGHTS
from edgepose.bundle import Bundle
from edgepose.skeletons import get_skeleton


@pytest.fixture
def people(tmp_path, starter_bundle, clip_frames):
    """An LSPET archive of six frames, labelled with what the starter finds there, moved a little."""
    from edgepose import load

    estimator = load(starter_bundle, variant="onnx-fp32")
    rng = np.random.default_rng(0)
    joints = []
    path = tmp_path / "people.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i, frame in enumerate(clip_frames[36:60:4]):
            region, *_ = estimator.best_region(frame)
            points = estimator.poses_at(frame, region).keypoints_xy[0] + rng.normal(0, 3, (14, 2))
            joints.append(np.c_[points, np.ones(14)])
            archive.writestr(f"images/{i:05d}.jpg", cv2.imencode(".jpg", frame)[1].tobytes())
        with archive.open("joints.npz", "w") as file:
            np.savez(file, ids=np.arange(6), joints=np.array(joints, np.float32))
    return path


def with_a_planted_fault(bundle, folder):
    """The bundle with one layer's weight scale of INT8 multiplied by four, as a converter's bug would."""
    shutil.copytree(bundle, folder)
    model = onnx.load(folder / "onnx-int8.onnx")
    dequantized = next(n for n in model.graph.node if n.op_type == "DequantizeLinear" and "conv" in n.input[0].lower())
    scale = next(t for t in model.graph.initializer if t.name == dequantized.input[1])
    scale.CopyFrom(numpy_helper.from_array(4 * numpy_helper.to_array(scale), scale.name))
    onnx.save(model, folder / "onnx-int8.onnx")
    return folder


def test_a_planted_fault_is_measured_named_and_fails_the_gate(edgepose, starter_bundle, people, tmp_path):
    broken = with_a_planted_fault(starter_bundle, tmp_path / "broken")
    arguments = ("--data", "lsp", "--root", people, "--max-drop", 1)
    assert "within the 1.0 allowed" in edgepose("validate", starter_bundle, *arguments).stdout
    done = edgepose("validate", broken, *arguments, code=1)
    assert "warning: onnx-int8:" in done.stderr
    assert "SHA-256 differs from the manifest" in done.stderr
    assert "measured all the same" in done.stderr
    verdict = next(line for line in done.stdout.splitlines() if line.startswith("onnx-int8: PCK@0.2"))
    assert "FAILED: drops" in verdict
    assert "1.0 allowed" in verdict
    edgepose("validate", broken, *arguments[:-2])  # without a limit nothing fails


def test_the_fault_is_seen_without_labels_too(edgepose, starter_bundle, tmp_path):
    broken = with_a_planted_fault(starter_bundle, tmp_path / "broken")
    arguments = ("--data", "unlabeled", "--root", SAMPLE_CLIP, "--limit", 32, "--max-drop", 1)
    edgepose("validate", starter_bundle, *arguments)
    assert "FAILED: drops" in edgepose("validate", broken, *arguments, code=1).stdout


def test_the_table_has_metric_drop_agreement_joints_and_sizes(edgepose, starter_bundle, people):
    text = edgepose("validate", starter_bundle, "--root", people).stdout
    for words in ("PCK@0.2", "PCK@0.1", "drop", "mean OKS", "moves most", "score x", "right_ankle", "large people"):
        assert words in text
    assert "(95 %: a drop of " in text or "equal to onnx-fp32" in text


def test_a_report_is_written_and_not_overwritten(edgepose, starter_bundle, people, tmp_path):
    arguments = ("validate", starter_bundle, "--root", people, "--report", tmp_path / "out")
    edgepose(*arguments)
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"report.html", "report.md", "evidence.json"}
    evidence = json.loads((tmp_path / "out" / "evidence.json").read_text())
    provenance = evidence["provenance"]
    assert provenance["command"][:2] == ["edgepose", "validate"]
    assert provenance["machine"]["isa"]
    assert (
        provenance["model"]["files"]["onnx-int8.onnx"] == Bundle.open(starter_bundle).files["onnx-int8.onnx"]["sha256"]
    )
    assert evidence["validation"]["data_sha256"]["people.zip"]
    fp32, int8 = evidence["validation"]["rows"]
    assert fp32["latency_ms"] > 0
    assert int8["megabytes"] < fp32["megabytes"]
    done = edgepose(*arguments, code=2)
    assert "exists" in done.stderr
    edgepose(*arguments, "--force")


def test_json_holds_what_the_report_holds(edgepose, starter_bundle, people, tmp_path):
    edgepose("validate", starter_bundle, "--root", people, "--json", tmp_path / "v.json", "--max-drop", 5)
    data = json.loads((tmp_path / "v.json").read_text())
    assert data["max_drop"] == 5
    assert data["validation"]["rows"][0]["accuracy"]["metric"] == "PCK@0.2"
    assert set(data["drops"]) == {"onnx-int8"}


def test_statistics_of_results_from_any_tool(edgepose, tmp_path):
    """Two of three people found exactly, the third not at all: AR is two thirds, AP a little more by its 101 steps."""
    names = list(get_skeleton("coco17").joints)
    rng = np.random.default_rng(0)
    people, found = [], []
    for i in range(3):
        joints = rng.uniform(50, 200, (17, 2))
        person = {"id": i + 1, "image_id": i, "category_id": 1, "iscrowd": 0, "num_keypoints": 17, "area": 10000.0}
        people.append(
            person | {"bbox": [50, 50, 150, 150], "keypoints": np.c_[joints, np.full(17, 2)].ravel().tolist()}
        )
        found.append(
            {"image_id": i, "category_id": 1, "score": 0.9, "keypoints": np.c_[joints, np.ones(17)].ravel().tolist()}
        )
        cv2.imwrite(str(tmp_path / f"{i}.jpg"), np.zeros((300, 300, 3), np.uint8))
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 300, "height": 300} for i in range(3)]
    categories = [{"id": 1, "name": "person", "keypoints": names}]
    root = tmp_path / "person_keypoints_x.json"
    root.write_text(json.dumps({"images": images, "annotations": people, "categories": categories}))
    (tmp_path / "found.json").write_text(json.dumps(found[:2]))
    done = edgepose(
        "validate", tmp_path / "found.json", "--data", "coco", "--root", root, "--json", tmp_path / "s.json"
    )
    assert "66.67" in done.stdout
    assert json.loads((tmp_path / "s.json").read_text())["stats"]["AR"] == pytest.approx(200 / 3)
    found[1]["keypoints"][4] = float("nan")
    (tmp_path / "nan.json").write_text(json.dumps(found))
    done = edgepose("validate", tmp_path / "nan.json", "--root", root, code=2)
    assert "row 1 has not 3 x 17 finite keypoint numbers" in done.stderr


def test_the_golden_statistics(edgepose, shared, tmp_path):
    folder = shared / "data" / "coco-sample"
    arguments = ("--data", "coco", "--root", folder, "--json", tmp_path / "s.json")
    edgepose("validate", folder / "noisy_predictions.json", *arguments)
    found = json.loads((tmp_path / "s.json").read_text())["stats"]
    expected = json.loads((shared / "golden" / "noisy_predictions_stats.json").read_text())
    assert found == {name: pytest.approx(100 * value, abs=1e-4) for name, value in expected.items()}


def lifting_data(folder):
    """Two clips of MPI-INF-3DHP's test set; returns the poses in our order, in metres."""
    rng = np.random.default_rng(0)
    data = {}
    for name in ("TS1", "TS6"):
        xyz = rng.normal(0, 300, (5, 17, 3))
        xyz[:, 8], xyz[:, 9] = (100, 0, 0), (100, 450, 0)  # thigh
        xyz[:, 3], xyz[:, 4] = (300, -300, 0), (300, -50, 0)  # forearm
        xyz[:, 11], xyz[:, 12] = (-100, 0, 0), (-100, 450, 0)
        xyz[:, 6], xyz[:, 7] = (-300, -300, 0), (-300, -50, 0)
        arrays = {"data_2d": rng.uniform(0, 1000, (5, 17, 2)), "data_3d": xyz, "valid": np.array([1, 1, 0, 1, 1])}
        data[name] = arrays
    np.savez_compressed(folder / "data_test_3dhp.npz", data=np.array(data, dtype=object))


def test_3d_poses_from_any_tool_are_scored_by_clip(edgepose, tmp_path):
    from edgepose.calibration.datasets.registry import open_lifting

    lifting_data(tmp_path)
    clips = {clip.name: clip.keypoints_xyz for clip in open_lifting(tmp_path, "mpi-inf-3dhp").clips()}
    np.savez(tmp_path / "poses.npz", **{name: xyz + np.float32([0.03, 0, 0.036]) for name, xyz in clips.items()})
    arguments = ("--data", "mpi-inf-3dhp", "--root", tmp_path, "--json", tmp_path / "s.json")
    edgepose("validate", tmp_path / "poses.npz", *arguments)
    stats = json.loads((tmp_path / "s.json").read_text())["stats"]
    assert stats["MPJPE"] == pytest.approx(1000 * math.hypot(0.03, 0.036), abs=0.01)  # everybody is 4.7 cm off
    assert stats["P-MPJPE"] == pytest.approx(0, abs=0.01)  # and only that
    assert stats["3DPCK"] == 100
    assert stats["AUC"] == pytest.approx(100 * 21 / 31)  # 50, 55, ... 150 mm of the 31 thresholds
    np.savez(tmp_path / "other.npz", nobody=np.zeros((5, 17, 3)))
    done = edgepose("validate", tmp_path / "other.npz", *arguments[:-2], code=2)
    assert "1 of its 1 clips are not in" in done.stderr


REPRODUCE = ("--checkpoint", STARTER_WEIGHTS, "--calib", SAMPLE_CLIP)


def test_reproduce_gives_the_same_bytes_and_evidence(edgepose, starter_bundle, tmp_path):
    renamed = tmp_path / "renamed.pth"
    shutil.copy(STARTER_WEIGHTS, renamed)
    done = edgepose("reproduce", starter_bundle, "--checkpoint", renamed, "--calib", SAMPLE_CLIP)
    assert done.stdout.count("identical") == 4
    assert "the evidence is equal" in done.stderr


@pytest.mark.slow
def test_reproduce_with_another_seed_says_what_differs(edgepose, starter_bundle):
    done = edgepose("reproduce", starter_bundle, *REPRODUCE, "--seed", 7, code=1)
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.startswith(("onnx", "golden", "calib"))}
    assert "identical" in lines["onnx-fp32.onnx"]
    assert "differs" in lines["calibration.json"]
    assert "put in: another seed: 0 then, 7 now" in done.stderr
    assert "put in: other calibration crops" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "was made from transpose-r-t-lspet.pth: give it with --checkpoint"),
        (("--checkpoint", STARTER_WEIGHTS), "was calibrated on samples: give the same with --calib"),
        (("--checkpoint", "none.pth", "--calib", SAMPLE_CLIP), "none.pth: no such checkpoint file"),
    ],
)
def test_reproduce_asks_for_what_it_needs(edgepose, starter_bundle, arguments, message):
    done = edgepose("reproduce", starter_bundle, *arguments, code=2)
    assert message in done.stderr


@pytest.mark.slow
def test_a_renamed_video_is_the_same_pictures(edgepose, starter_bundle, tmp_path):
    shutil.copy(SAMPLE_CLIP, tmp_path / "renamed.mp4")
    calib = ("--checkpoint", STARTER_WEIGHTS, "--calib", tmp_path / "renamed.mp4")
    done = edgepose("reproduce", starter_bundle, *calib)
    assert "names of the pictures alone" in done.stdout
    assert "the same, then as now" in done.stderr
    assert "other pictures" not in done.stderr


def test_outputs_never_replace_inputs(edgepose, starter_bundle, people, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(starter_bundle, bundle)
    for arguments, message in (
        (("--json", people, "--force"), "is part of the input"),
        (("--json", bundle / "manifest.json", "--force"), "is part of the input"),
        (("--report", bundle, "--force"), "is a bundle, which keeps its own report"),
        (("--report", tmp_path / "r", "--json", tmp_path / "r" / "evidence.json"), "is a file of the report"),
    ):
        assert message in edgepose("validate", bundle, "--root", people, *arguments, code=2).stderr
    edgepose("inspect", bundle)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--max-drop", "nan"), "nan is no limit"),
        (("--variants", ""), "give names separated by commas"),
        (("--variants", "onnx-fp32", "--max-drop", 1), "--max-drop needs a variant besides the baseline"),
        (("--detections", "x.json"), "--detections goes with --data coco"),
    ],
)
def test_options_that_make_no_sense(edgepose, starter_bundle, people, arguments, message):
    assert message in edgepose("validate", starter_bundle, "--root", people, *arguments, code=2).stderr


def test_what_would_be_ignored_is_an_error(edgepose, tmp_path):
    (tmp_path / "p.json").write_text("[]")
    done = edgepose("validate", tmp_path / "p.json", "--root", tmp_path, "--flip", "--max-drop", 1, code=2)
    assert "scored alone, without --flip, --max-drop" in done.stderr


def test_the_baseline_comes_along_where_only_another_variant_is_named(edgepose, starter_bundle, people):
    text = edgepose("validate", starter_bundle, "--root", people, "--variants", "onnx-int8").stdout
    assert "onnx-fp32: PCK@0.2" in text


@pytest.mark.slow
def test_a_bundle_without_fp32_has_a_report_that_knows_the_drop(edgepose, tmp_path):
    arguments = ("--model", "transpose-r-t", "--calib", SAMPLE_CLIP, "--calib-size", 8, "--precision", "int8")
    edgepose("convert", STARTER_WEIGHTS, *arguments, "-o", tmp_path / "b")
    evidence = json.loads((tmp_path / "b" / "evidence.json").read_text())
    assert evidence["drops"]["onnx-int8"] < 5
    assert "undefined" not in (tmp_path / "b" / "report.html").read_text()
    done = edgepose("validate", tmp_path / "b", "--root", SAMPLE_CLIP, code=2)
    assert "no FP32 variant runs here to compare with" in done.stderr
