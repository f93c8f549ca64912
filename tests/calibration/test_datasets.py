"""Labelled data sets: every layout, the protocol's arithmetic by hand, maps between skeletons, damaged files."""

from __future__ import annotations

import io
import json
import zipfile

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from edgepose import DatasetError, EngineError, ModelSpec
from edgepose.calibration.datasets.lsp import LeedsSports
from edgepose.calibration.datasets.mpii import MpiiHumanPose
from edgepose.calibration.datasets.pictures import Unlabeled
from edgepose.calibration.datasets.registry import DATASETS, PICTURES, open_pictures
from edgepose.calibration.validate import validate
from edgepose.geometry import regions_from_boxes, scale_and_shift
from edgepose.pipeline import Estimator
from edgepose.skeletons import counterparts, get_skeleton

LSP, MPII = get_skeleton("lsp14"), get_skeleton("mpii16")
RNG = np.random.default_rng(3)


class Oracle:
    """Answers with joints that were told beforehand, in the order of the pictures: (K, 2) crop pixels each."""

    name, device, metadata = "oracle", "cpu", {}

    def __init__(self, spec, answers=()):
        self.inputs, self.outputs = (spec.input,), (spec.output,)
        self.answers = list(answers)

    def run(self, feeds):
        width, height = self.inputs[0].shape[2], self.inputs[0].shape[1]
        ys, xs = np.mgrid[: height // 4, : width // 4]
        step = (width - 1) / (width // 4 - 1)
        maps = []
        for _ in feeds["image"]:
            points = self.answers.pop(0) / step
            maps.append([0.9 * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / 4.5) for x, y in points])
        return {"heatmaps": np.array(maps, np.float32)}

    def close(self):
        pass


def run(data, spec, answers_px, **options):
    """Validate a model that answers with these joints, (K, 2) picture pixels per person."""
    regions = [regions_from_boxes(b, spec.aspect, 1.25) for p in data.pictures() for b in p.boxes_xywh]
    in_crops = []
    for region, points in zip(regions, answers_px, strict=True):
        scale, shift = scale_and_shift(region, spec.input_wh)
        in_crops.append((points - shift[0]) / scale[0])
    return validate({"onnx-fp32": Estimator(Oracle(spec, in_crops), spec)}, data, baseline="onnx-fp32", **options)


def joints_lsp(count):
    """People of about 100 pixels whose torso, right shoulder to left hip, is 50 pixels."""
    joints = RNG.uniform(60, 140, (count, 14, 2))
    joints[:, LSP.joints.index("right_shoulder")] = (80, 70)
    joints[:, LSP.joints.index("left_hip")] = (110, 110)
    return np.concatenate([joints, np.ones((count, 14, 1))], axis=2)


def jpeg():
    return cv2.imencode(".jpg", np.zeros((200, 200, 3), np.uint8))[1].tobytes()


def npz(ids, joints):
    file = io.BytesIO()
    np.savez(file, ids=np.array(ids), joints=joints.astype(np.float32))
    return file.getvalue()


def lspet_zip(path, joints, ids=None):
    ids = list(range(10, 10 + len(joints))) if ids is None else ids
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("joints.npz", npz(ids, joints))
        for number in ids:
            archive.writestr(f"images/{number:05d}.jpg", jpeg())
    return path


def test_pck_by_hand(tmp_path):
    """The torso is 50 px: joint 0 is off by 9 px, joint 1 by 11, joint 2 by 4, the others are right."""
    joints = joints_lsp(4)
    answers = joints[:, :, :2].copy()
    answers[:, 0] += (9, 0)
    answers[:, 1] += (0, 11)
    answers[:, 2] += (4, 0)
    result = run(
        LeedsSports(lspet_zip(tmp_path / "a.zip", joints)), ModelSpec.pose2d("m", (256, 192), "lsp14"), answers
    )
    accuracy = result.base.accuracy
    assert (accuracy.metric, accuracy.people, accuracy.unit) == ("PCK@0.2", 4, "points")
    assert accuracy.value == pytest.approx(100 * 13 / 14)
    assert accuracy.stats["PCK@0.1"] == pytest.approx(100 * 12 / 14)
    assert accuracy.per_joint["right_ankle"] == 100
    assert accuracy.per_joint["right_knee"] == 0
    assert [b.count for b in accuracy.reliability if b.count] == [56]


def test_joints_that_are_not_labelled_do_not_count_and_the_torso_is_guessed(tmp_path):
    """Without a shoulder the torso is 0.4 times the diagonal of the joints' box."""
    joints = joints_lsp(1)
    joints[0, LSP.joints.index("right_shoulder"), 2] = 0
    joints[0, 5, 2] = 0
    (picture,) = LeedsSports(lspet_zip(tmp_path / "a.zip", joints)).pictures()
    seen = joints[0, joints[0, :, 2] > 0, :2].astype(np.float32)
    assert picture.labels.reference_px[0] == pytest.approx(0.4 * np.linalg.norm(np.ptp(seen, axis=0)))
    assert picture.labels.visible[0].sum() == 12
    assert picture.boxes_xywh[0, :2].tolist() == pytest.approx(seen.min(axis=0).tolist())


@pytest.mark.parametrize("layout", ["folder", "lspet", "lsp"])
def test_the_layouts_hold_the_same_people(tmp_path, layout):
    joints = joints_lsp(3)
    (tmp_path / "images").mkdir()
    for number in (1, 2, 3):
        name = {"folder": f"{number:05d}", "lspet": f"im{number:05d}", "lsp": f"im{number:04d}"}[layout]
        (tmp_path / "images" / f"{name}.jpg").write_bytes(jpeg())
    if layout == "folder":
        (tmp_path / "joints.npz").write_bytes(npz([1, 2, 3], joints))
    elif layout == "lspet":
        savemat(tmp_path / "joints.mat", {"joints": joints.transpose(1, 2, 0)})
    else:
        hidden = joints.transpose(2, 1, 0).copy()
        hidden[2] = 0  # the original says hidden or not: the place is labelled all the same
        savemat(tmp_path / "joints.mat", {"joints": hidden})
    data = open_pictures(tmp_path)
    assert data.kind == "lsp"
    found = np.concatenate([picture.labels.keypoints_xy for picture in data.pictures()])
    np.testing.assert_allclose(found, joints[:, :, :2], atol=1e-4)
    assert all(picture.read().shape == (200, 200, 3) for picture in data.pictures())
    assert [path.name for path in data.sources()] == ["joints.npz" if layout == "folder" else "joints.mat"]


def test_of_the_original_lsp_only_the_test_half_is_used(tmp_path):
    joints = np.tile(joints_lsp(1), (2000, 1, 1))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "im1001.jpg").write_bytes(jpeg())
    savemat(tmp_path / "joints.mat", {"joints": joints.transpose(2, 1, 0)})
    data = LeedsSports(tmp_path)
    assert len(data) == 1000
    assert next(iter(data.pictures(1))).name == "im1001.jpg"


def mpii_root(folder, joints, heads=None):
    (folder / "annot").mkdir()
    (folder / "images").mkdir()
    rows = []
    for i, person in enumerate(joints):
        (folder / "images" / f"{i}.jpg").write_bytes(jpeg())
        row = {"image": f"{i}.jpg", "center": [101.0, 93.5], "scale": 0.5, "joints_vis": [1] * 16}
        rows.append(row | {"joints": (person + 1).tolist()})  # these files count from 1
    (folder / "annot" / "valid.json").write_text(json.dumps(rows))
    if heads is not None:
        savemat(folder / "annot" / "gt_valid.mat", {"headboxes_src": heads})
    return folder


def joints_mpii(count):
    joints = RNG.uniform(60, 140, (count, 16, 2))
    joints[:, MPII.joints.index("upper_neck")] = (100, 80)
    joints[:, MPII.joints.index("head_top")] = (100, 60)
    return joints


def test_pckh_by_hand(tmp_path):
    """Head boxes of 30 x 40: 0.6 x 50 = 30, half of it 15 px. One joint is off by 14, one by 16; pelvis by 50."""
    joints = joints_mpii(2)
    heads = np.stack([np.tile([[10.0], [10.0]], (1, 2)), np.tile([[40.0], [50.0]], (1, 2))])
    answers = joints.copy()
    answers[:, MPII.joints.index("left_knee")] += (14, 0)
    answers[:, MPII.joints.index("right_knee")] += (16, 0)
    answers[:, MPII.joints.index("pelvis")] += (50, 0)
    data = open_pictures(mpii_root(tmp_path, joints, heads))
    assert data.kind == "mpii"
    result = run(data, ModelSpec.pose2d("m", (256, 256), "mpii16"), answers)
    accuracy = result.base.accuracy
    assert accuracy.metric == "PCKh@0.5"
    assert accuracy.value == pytest.approx(100 * 13 / 14)  # pelvis and thorax do not count
    assert accuracy.per_joint["pelvis"] == 0
    assert accuracy.remarks == ()


def test_mpii_boxes_are_those_of_the_top_down_codebases(tmp_path):
    """Scale 0.5 is 100 px; the centre (counting from 0) moves down by 15 x 0.5; then times 1.25."""
    (picture,) = MpiiHumanPose(mpii_root(tmp_path, joints_mpii(1))).pictures()
    region = regions_from_boxes(picture.boxes_xywh, 1.0, 1.25)[0]
    assert region.tolist() == pytest.approx([100, 100, 125, 125])


def test_without_head_boxes_the_head_is_measured_and_that_is_said(tmp_path):
    joints = joints_mpii(1)
    data = MpiiHumanPose(mpii_root(tmp_path, joints))
    assert next(iter(data.pictures())).labels.reference_px[0] == pytest.approx(20)
    result = run(data, ModelSpec.pose2d("m", (256, 256), "mpii16"), joints)
    assert "not by MPII's head boxes" in result.base.accuracy.remarks[0]


def test_head_boxes_of_other_people_are_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"headboxes_src is .*does not belong to valid.json"):
        MpiiHumanPose(mpii_root(tmp_path, joints_mpii(2), np.zeros((2, 2, 5))))


def test_a_model_with_other_joints_is_judged_by_those_that_both_have(tmp_path):
    """A COCO model on LSP: twelve joints are the same; the face, and LSP's neck and head, have no counterpart."""
    joints = joints_lsp(2)
    names = get_skeleton("coco17").joints
    answers = RNG.uniform(60, 140, (2, 17, 2))
    for k, name in enumerate(names):
        if name in LSP.joints:
            answers[:, k] = joints[:, LSP.joints.index(name), :2]
    data = LeedsSports(lspet_zip(tmp_path / "a.zip", joints))
    accuracy = run(data, ModelSpec.pose2d("m", (256, 192), "coco17"), answers).base.accuracy
    assert accuracy.value == 100
    assert len(accuracy.per_joint) == 12
    assert accuracy.remarks[0].startswith("12 of 17 joints are judged; no labels for nose, left_eye")
    assert accuracy.remarks[1] == "labels without counterpart in coco17: neck, head_top"


def test_one_place_on_the_body_under_two_names():
    assert counterparts(("upper_neck", "pelvis"), ("neck", "left_hip")) == (0, None)
    assert counterparts(LSP.joints, MPII.joints)[MPII.joints.index("upper_neck")] == LSP.joints.index("neck")


def coco_json(folder, joints, names):
    (folder / "a.jpg").write_bytes(jpeg())
    person = {"id": 1, "image_id": 0, "category_id": 1, "iscrowd": 0, "num_keypoints": len(names), "area": 6400.0}
    person |= {"bbox": [60, 60, 80, 80], "keypoints": np.c_[joints, np.full(len(names), 2)].ravel().tolist()}
    data = {
        "images": [{"id": 0, "file_name": "a.jpg", "width": 200, "height": 200}],
        "annotations": [person],
        "categories": [{"id": 1, "name": "person", "keypoints": list(names)}],
    }
    path = folder / "person_keypoints_x.json"
    path.write_text(json.dumps(data))
    return path


def test_coco_labels_are_mapped_to_the_models_joints(tmp_path):
    """An LSP model whose limbs are right has AP 1: the face is not asked for, neck and head are not judged."""
    names = get_skeleton("coco17").joints
    joints = RNG.uniform(60, 140, (17, 2))
    answers = RNG.uniform(60, 140, (1, 14, 2))
    for k, name in enumerate(LSP.joints):
        if name in names:
            answers[0, k] = joints[names.index(name)]
    data = open_pictures(coco_json(tmp_path, joints, names))
    accuracy = run(data, ModelSpec.pose2d("m", (256, 192), "lsp14"), answers).base.accuracy
    assert accuracy.value == pytest.approx(100, abs=1e-3)
    assert set(accuracy.per_joint) == set(LSP.joints) - {"neck", "head_top"}
    assert accuracy.remarks[0] == "12 of 14 joints are judged; no labels for neck, head_top"


def test_joints_without_any_counterpart_name_the_map_that_would_be_needed(tmp_path):
    data = open_pictures(coco_json(tmp_path, RNG.uniform(60, 140, (3, 2)), ("snout", "tail", "paw")))
    message = r"labels snout, tail, paw, .* \(3 joints\), m finds .*need a map from those joints to lsp14.*unlabeled"
    with pytest.raises(DatasetError, match=message):
        run(data, ModelSpec.pose2d("m", (256, 192), "lsp14"), np.zeros((1, 14, 2)))


def test_labels_without_a_visible_joint_are_said(tmp_path):
    joints = joints_lsp(2)
    joints[:, :, 2] = 0
    with pytest.raises(DatasetError, match="none of its 2 pictures has labelled joints"):
        LeedsSports(lspet_zip(tmp_path / "a.zip", joints))


def test_pictures_that_are_missing_are_named(tmp_path):
    joints = joints_lsp(2)
    (tmp_path / "images").mkdir()
    (tmp_path / "joints.npz").write_bytes(npz([4, 5], joints))
    (tmp_path / "images" / "00004.jpg").write_bytes(jpeg())
    with pytest.raises(DatasetError, match=r"1 of 2 images are missing from .*images: 00005.jpg"):
        LeedsSports(tmp_path).pictures()


def test_a_damaged_picture_is_counted_named_and_skipped(tmp_path):
    joints = joints_lsp(3)
    path = lspet_zip(tmp_path / "a.zip", joints)
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as out, zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            out.writestr(name, b"no picture" if name == "images/00011.jpg" else archive.read(name))
    data = LeedsSports(tmp_path / "b.zip")
    spec = ModelSpec.pose2d("m", (256, 192), "lsp14")
    answers = [np.full((14, 2), 50.0)] * 2
    result = validate({"onnx-fp32": Estimator(Oracle(spec, answers), spec)}, data, baseline="onnx-fp32")
    assert (result.images, result.skipped) == (2, ("00011.jpg",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no zip", "not a zip file, or truncated"),
        ({"x.txt": b""}, "no joints.npz in it"),
        ({"joints.npz": b"no npz"}, "its table of joints cannot be read"),
        ({"joints.npz": npz([1, 2], np.zeros((2, 16, 3)))}, r"joints \(2, 16, 3\) for 2 ids"),
        ({"joints.npz": npz([1], np.zeros((2, 14, 3)))}, "for 1 ids"),
    ],
)
def test_archives_that_do_not_work(tmp_path, content, message):
    path = tmp_path / "a.zip"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in content.items():
                archive.writestr(name, data)
    with pytest.raises(DatasetError, match=message):
        open_pictures(path)


def test_a_table_that_would_run_code_is_not_opened(tmp_path):
    file = io.BytesIO()
    np.savez(file, ids=np.array([1]), joints=np.array([{"a": 1}], dtype=object))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("joints.npz", file.getvalue())
    with pytest.raises(DatasetError, match="its table of joints cannot be read"):
        LeedsSports(tmp_path / "a.zip")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, "not MPII annotations"),
        ([{"image": "a.jpg"}], r"not MPII annotations \(KeyError: 'joints'\)"),
        ([{"image": "a", "center": [1, 2], "scale": 1, "joints": [[1, 2]], "joints_vis": [1]}], "expected"),
    ],
)
def test_mpii_files_that_do_not_work(tmp_path, rows, message):
    (tmp_path / "valid.json").write_text(json.dumps(rows))
    with pytest.raises(DatasetError, match=message):
        MpiiHumanPose(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(DatasetError, match="no such file or folder"):
        open_pictures(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="no images here"):
        open_pictures(tmp_path)
    (tmp_path / "joints.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    with pytest.raises(DatasetError, match="not a MATLAB file that can be read"):
        open_pictures(tmp_path)


def test_every_kind_can_be_loaded_and_says_what_it_is():
    assert set(PICTURES) == {"coco", "lsp", "mpii", "unlabeled"}
    for kind, row in DATASETS.items():
        assert row.load().kind == kind


class Moving:
    """Finds its person where the picture is bright; fails on demand."""

    name, device, metadata = "bright", "cpu", {}

    def __init__(self, spec, noise=0.0, fail_at=None):
        self.inputs, self.outputs = (spec.input,), (spec.output,)
        self.noise, self.fail_at, self.calls = noise, fail_at, 0
        self.rng = np.random.default_rng(0)

    def run(self, feeds):
        self.calls += 1
        if self.calls == self.fail_at:
            return {"heatmaps": np.full((len(feeds["image"]), 14, 32, 24), np.nan, np.float32)}
        small = feeds["image"][:, 1::4, 1::4].mean(axis=3, dtype=np.float32) / 255
        maps = np.stack([np.roll(small, k - 7, axis=2) for k in range(14)], axis=1)
        if self.noise:
            maps = np.roll(maps, self.rng.integers(-1, 2), axis=3)
        return {"heatmaps": maps}

    def close(self):
        pass


@pytest.fixture
def video(tmp_path):
    """A bright blob that moves evenly."""
    path = tmp_path / "blob.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (320, 240))
    for i in range(48):
        frame = np.zeros((240, 320, 3), np.uint8)
        cv2.ellipse(frame, (100 + 2 * i, 120), (14, 30), 0, 0, 360, (230, 230, 230), -1)
        writer.write(frame)
    writer.release()
    return path


def test_a_video_is_measured_in_clips_and_shows_jitter(video):
    spec = ModelSpec.pose2d("m", (128, 96), "lsp14")
    pair = {"onnx-fp32": Estimator(Moving(spec), spec), "onnx-int8": Estimator(Moving(spec, noise=1), spec)}
    result = validate(pair, Unlabeled(video), baseline="onnx-fp32", limit=32)
    steady, shaky = (row.agreement.jitter_px for row in result.rows)
    assert result.crops == 32
    assert 0 < steady < shaky
    assert len(result.rows[1].worst) == 10


def test_clips_are_spread_over_the_video(video):
    names = [picture.name for picture in Unlabeled(video).pictures(20)]
    assert names == [f"blob.avi#{i:06d}" for i in (*range(16), *range(16, 20))]
    clips = [picture.clip for picture in Unlabeled(video).pictures(20)]
    assert clips == [0] * 16 + [1] * 4
    assert len(list(Unlabeled(video).pictures())) == 48


def test_a_variant_that_answers_with_nan_is_left_out_with_the_reason(video):
    spec = ModelSpec.pose2d("m", (128, 96), "lsp14")
    pair = {
        "onnx-fp32": Estimator(Moving(spec), spec),
        "onnx-int8": Estimator(Moving(spec, fail_at=5), spec, "onnx-int8"),
    }
    result = validate(pair, Unlabeled(video), baseline="onnx-fp32", limit=8)
    assert [row.variant for row in result.rows] == ["onnx-fp32"]
    assert "answered with NaN or infinity" in result.failed["onnx-int8"]
    assert "(after 4 crops)" in result.failed["onnx-int8"]


def test_a_baseline_that_answers_with_nan_ends_the_run(video):
    spec = ModelSpec.pose2d("m", (128, 96), "lsp14")
    with pytest.raises(EngineError, match="NaN"):
        validate({"onnx-fp32": Estimator(Moving(spec, fail_at=1), spec)}, Unlabeled(video), baseline="onnx-fp32")
