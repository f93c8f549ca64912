"""Labelled data sets: every layout, the protocol's arithmetic by hand, maps between skeletons, damaged files."""

from __future__ import annotations

import io
import json
import math
import zipfile
from itertools import pairwise

import cv2
import numpy as np
import numpy.lib.format as npy_format
import pytest
from scipy.io import savemat

from edgepose import DatasetError, EngineError, ModelSpec
from edgepose.calibration.datasets import lsp
from edgepose.calibration.datasets.files import decode_picture, read_picture, whole_number
from edgepose.calibration.datasets.lsp import LeedsSports
from edgepose.calibration.datasets.mpii import MpiiHumanPose
from edgepose.calibration.datasets.pictures import Unlabeled, _clips
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
    joints = np.asarray(joints)
    np.savez(file, ids=np.array(ids), joints=joints.astype(np.float32) if joints.dtype.kind == "f" else joints)
    return file.getvalue()


def npz_of_claims(**headers):
    """Members whose header claims a shape, of float64, and that hold eight bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, shape in headers.items():
            header = io.BytesIO()
            claims = {"descr": "<f8", "fortran_order": False, "shape": shape}
            npy_format.write_array_header_1_0(header, claims)
            archive.writestr(f"{name}.npy", header.getvalue() + bytes(8))
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


def test_points_by_size_of_the_person(tmp_path):
    """A person of 80 x 80 px, and the same four times smaller with 13 labelled joints, six of them off by 10 px."""
    joints = np.tile(joints_lsp(1), (2, 1, 1))
    joints[:, 0, :2], joints[:, 1, :2] = (60, 60), (140, 140)
    joints[1, :, :2] /= 4
    answers = joints[:, :, :2].copy()
    answers[1, 7:] += (10, 0)
    joints[1, 13, 2] = 0
    data = LeedsSports(lspet_zip(tmp_path / "a.zip", joints))
    accuracy = run(data, ModelSpec.pose2d("m", (256, 192), "lsp14"), answers).base.accuracy
    assert accuracy.per_size == {"small": pytest.approx(100 * 7 / 13), "medium": pytest.approx(100)}


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


def mpii_row(**changes):
    row = {"image": "a.jpg", "center": [101.0, 93.5], "scale": 0.5, "joints_vis": [1] * 16}
    return row | {"joints": (joints_mpii(1)[0] + 1).tolist()} | changes


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


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        (np.zeros((2, 2, 5)), r"headboxes_src is .*\(2, 2, 5\), expected numbers .*does not belong to valid.json"),
        (np.full((2, 2, 2), "head"), r"headboxes_src is <U4 \(2, 2, 2\), expected numbers"),
        (np.full((2, 2, 2), {"a": 1}, object), "headboxes_src is object"),
        (np.full((2, 2, 2), np.inf), "a corner of headboxes_src is in no picture"),
        (np.zeros((2, 2, 2)), "none of its 2 people has a head to divide errors by and labels"),
    ],
)
def test_head_boxes_that_cannot_be_used_are_refused(tmp_path, heads, message):
    with pytest.raises(DatasetError, match=message):
        MpiiHumanPose(mpii_root(tmp_path, joints_mpii(2), heads))


def test_one_person_has_a_head_box_too(tmp_path):
    """Reading drops the axis of length 1. 30 x 40: 0.6 x 50."""
    heads = np.array([[[10.0], [10.0]], [[40.0], [50.0]]])
    (picture,) = MpiiHumanPose(mpii_root(tmp_path, joints_mpii(1), heads)).pictures()
    assert picture.labels.reference_px.tolist() == pytest.approx([30])


def test_mpii_joints_count_from_1(tmp_path):
    """A joint at (101, 61) in the file is the 101st pixel of the 61st row, which is (100, 60)."""
    root = mpii_root(tmp_path, joints_mpii(1))
    (row,) = json.loads((root / "annot" / "valid.json").read_text())
    assert row["joints"][MPII.joints.index("head_top")] == [101, 61]
    (picture,) = MpiiHumanPose(root).pictures()
    assert picture.labels.keypoints_xy[0, MPII.joints.index("head_top")].tolist() == [100, 60]


def test_three_people_of_one_picture_are_read_once(tmp_path):
    """Rows of a.jpg, b.jpg, a.jpg, c.jpg, a.jpg; the only person of b.jpg has no head, and b.jpg is left out."""
    joints = joints_mpii(5)
    root = mpii_root(tmp_path, joints)
    rows = json.loads((root / "annot" / "valid.json").read_text())
    for row, name in zip(rows, "abaca", strict=True):
        row["image"] = f"{name}.jpg"
    rows[1]["joints_vis"][MPII.joints.index("head_top")] = 0
    (root / "annot" / "valid.json").write_text(json.dumps(rows))
    data = MpiiHumanPose(root)
    with pytest.raises(DatasetError, match=r"2 of 2 images are missing from .*images: a.jpg, c.jpg: copy"):
        data.pictures()
    for name in "ac":
        (root / "images" / f"{name}.jpg").write_bytes(jpeg())
    first, second = data.pictures()
    assert [(p.name, p.image_id, len(p.boxes_xywh)) for p in (first, second)] == [("a.jpg", 0, 3), ("c.jpg", 2, 1)]
    np.testing.assert_allclose(first.labels.keypoints_xy, joints[[0, 2, 4]])
    assert len(data) == 2
    assert [p.name for p in data.pictures(1)] == ["a.jpg"]
    result = run(data, ModelSpec.pose2d("m", (256, 256), "mpii16"), joints[[0, 2, 4, 3]])
    assert (result.images, result.crops, result.base.accuracy.value) == (2, 4, pytest.approx(100))


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


def with_headers(picture, orientation=0, thumbnail=b""):
    """A JPEG with an EXIF header: an orientation, and something that stands for a thumbnail."""
    orientation = orientation.to_bytes(1, "big")
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0" + orientation + b"\0\0\0\0\0\0" + thumbnail
    return picture[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + picture[2:]


NOISE = RNG.integers(0, 256, (40, 60, 3), np.uint8)
NOISY = cv2.imencode(".jpg", NOISE)[1].tobytes()


@pytest.mark.parametrize(
    ("content", "shape"),
    [
        (NOISY, (40, 60, 3)),
        (NOISY + bytes(100_000), (40, 60, 3)),  # a video, as telephones append one
        (with_headers(NOISY, thumbnail=NOISY), (40, 60, 3)),
        (NOISY[:2] + b"\xff\xff" + NOISY[2:], (40, 60, 3)),  # a marker may be filled up
        (cv2.imencode(".jpg", NOISE, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes(), (40, 60, 3)),
        (cv2.imencode(".png", NOISE)[1].tobytes(), (40, 60, 3)),
        (cv2.imencode(".webp", NOISE)[1].tobytes(), (40, 60, 3)),
        (NOISY[:-2], None),
        (NOISY[: len(NOISY) // 2], None),
        (with_headers(NOISY, thumbnail=NOISY)[:-2], None),  # the thumbnail is whole, the picture is not
        (with_headers(NOISY, thumbnail=NOISY)[:-1000] + bytes(100_000), None),  # room was made, and not filled
        (NOISY[:-1000] + bytes(100_000), None),
        (NOISY[:2], None),
        (b"", None),
        (b"no picture", None),
    ],
)
@pytest.mark.parametrize("exif", [False, True])
def test_pictures_that_are_cut_off_cannot_be_read(tmp_path, content, shape, exif):
    found = decode_picture(content, exif=exif)
    assert (None if found is None else found.shape) == shape
    (tmp_path / "a.jpg").write_bytes(content)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.jpg", exif=exif), found)


def test_exif_orientation_is_for_those_who_ask(tmp_path):
    turned = with_headers(NOISY, orientation=6)
    assert decode_picture(turned, exif=False).shape == (40, 60, 3)
    assert decode_picture(turned, exif=True).shape == (60, 40, 3)
    assert read_picture(tmp_path / "nothing.jpg", exif=True) is None


def test_every_data_set_counts_a_picture_that_is_cut_off_as_unreadable(tmp_path):
    folders = {kind: tmp_path / kind for kind in ("lsp", "mpii", "coco")}
    for folder in folders.values():
        folder.mkdir()
    (folders["lsp"] / "images").mkdir()
    (folders["lsp"] / "joints.npz").write_bytes(npz([1], joints_lsp(1)))
    coco_json(folders["coco"], RNG.uniform(60, 140, (17, 2)), get_skeleton("coco17").joints)
    mpii_root(folders["mpii"], joints_mpii(1))
    files = {"lsp": "images/1.jpg", "mpii": "images/0.jpg", "coco": "a.jpg"}
    for kind, name in files.items():
        (folders[kind] / name).write_bytes(NOISY[:-20])
        (picture,) = open_pictures(folders[kind], kind).pictures()
        assert picture.read() is None
    with zipfile.ZipFile(tmp_path / "cut.zip", "w") as archive:
        archive.writestr("joints.npz", npz([1], joints_lsp(1)))
        archive.writestr("images/00001.jpg", NOISY[:-20])
    (picture,) = LeedsSports(tmp_path / "cut.zip").pictures()
    assert picture.read() is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no zip", "not a zip file, or truncated"),
        ({"x.txt": b""}, "no joints.npz or joints.mat in it"),
        (
            {"joints.npz": b"no npz"},
            r"a.zip: joints.npz: ids is damaged or not an .npz member \(File is not a zip file",
        ),
        ({"joints.npz": npz([1, 2], np.zeros((2, 16, 3)))}, r"joints: expected shape \(2, 14, 3\), got \(2, 16, 3\)"),
        ({"joints.npz": npz([1], np.zeros((2, 14, 3)))}, r"joints: expected shape \(1, 14, 3\), got \(2, 14, 3\)"),
        ({"joints.npz": npz([[1], [2]], np.zeros((2, 14, 3)))}, r"ids: expected shape \(any\), got \(2, 1\)"),
        (
            {"joints.npz": npz([1.5], np.zeros((1, 14, 3)))},
            "ids are the numbers of the pictures, and some are no whole",
        ),
        ({"joints.npz": npz([float("nan")], np.zeros((1, 14, 3)))}, "some are no whole number"),
        ({"joints.npz": npz(["1"], np.zeros((1, 14, 3)))}, "ids: expected an array of numbers, got an array of <U1"),
        ({"joints.npz": npz([1], np.full((1, 14, 3), b"x"))}, r"joints: expected an array of numbers, got an array of"),
        ({"joints.npz": npz_of_claims(ids=(10**12,))}, "ids is damaged .*the content does not fit"),
        ({"joints.npz": npz_of_claims(ids=(10**30,))}, "ids is damaged .*the content does not fit"),
        ({"joints.npz": npz_of_claims(ids=(1,), joints=(10**12, 14, 3))}, "joints is damaged .*does not fit"),
        ({"joints.mat": b"MATLAB 5.0 MAT-file" + bytes(200)}, r"a.zip: joints.mat: not a MATLAB file"),
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
    with pytest.raises(DatasetError, match="joints: expected an array of numbers, got an array of object"):
        LeedsSports(tmp_path / "a.zip")


def packed(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, file.relative_to(folder))
    return path


@pytest.mark.parametrize("zipped", [False, True])
def test_the_original_files_are_read_as_a_zip_too(tmp_path, zipped):
    """Of lsp_dataset.zip only images/ counts: visualized/ holds pictures of the same names."""
    joints = joints_lsp(3)
    for folder in ("images", "visualized", "__MACOSX/images"):
        (tmp_path / "lsp" / folder).mkdir(parents=True)
    for number in (1, 2, 3):
        name = f"im{number:04d}.jpg"
        (tmp_path / "lsp" / "images" / name).write_bytes(jpeg())
        (tmp_path / "lsp" / "visualized" / name).write_bytes(b"drawn upon")
        (tmp_path / "lsp" / "__MACOSX" / "images" / f"._{name}").write_bytes(b"no picture")
    savemat(tmp_path / "lsp" / "joints.mat", {"joints": joints.transpose(2, 1, 0)})
    data = LeedsSports(packed(tmp_path / "lsp", tmp_path / "a.zip") if zipped else tmp_path / "lsp")
    found = np.concatenate([picture.labels.keypoints_xy for picture in data.pictures()])
    np.testing.assert_allclose(found, joints[:, :, :2])
    assert all(picture.read().shape == (200, 200, 3) for picture in data.pictures())


def patched(path, offset, value):
    """A zip file with two bytes changed in every entry, here and in the directory, which has them two further on."""
    content = bytearray(path.read_bytes())
    for magic, shift in ((b"PK\3\4", 0), (b"PK\1\2", 2)):
        place = content.find(magic)
        while place >= 0:
            content[place + shift + offset : place + shift + offset + 2] = value.to_bytes(2, "little")
            place = content.find(magic, place + 1)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (6, 1, "joints.npz is encrypted: unpack it, and give the folder"),
        (8, 99, "joints.npz is compressed in a way that Python cannot read: unpack it"),
    ],
)
def test_zip_files_that_cannot_be_unpacked(tmp_path, offset, value, message):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("joints.npz", b"")
        archive.writestr("images/00001.jpg", b"")
    patched(path, offset, value)
    with pytest.raises(DatasetError, match=message):
        LeedsSports(path)


@pytest.mark.parametrize("inner", [False, True])
def test_a_table_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch, inner):
    """A zip file of zeros shrinks a thousandfold, and one in a zip file a millionfold."""
    monkeypatch.setattr(lsp, "_LARGEST_TABLE", 50_000)
    file = io.BytesIO()
    (np.savez_compressed if inner else np.savez)(file, ids=np.zeros(50_000), joints=np.zeros(1))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("joints.npz", file.getvalue())
    with pytest.raises(DatasetError, match=r"unpacks to 40\d{4} bytes, over 50000: refused"):
        LeedsSports(tmp_path / "a.zip")


def test_people_whose_torso_is_guessed_are_counted_and_said(tmp_path):
    joints = joints_lsp(3)
    joints[0, LSP.joints.index("right_shoulder"), 2] = 0
    joints[2, LSP.joints.index("left_hip"), 2] = 0
    data = LeedsSports(lspet_zip(tmp_path / "a.zip", joints))
    accuracy = run(data, ModelSpec.pose2d("m", (256, 192), "lsp14"), joints[:, :, :2]).base.accuracy
    said = "2 of 3 people have no labelled torso: 0.4 times the diagonal of their box stands for it"
    assert accuracy.remarks == (said,)


def test_labels_that_are_in_no_picture_are_not_labelled(tmp_path):
    joints = joints_lsp(2)
    joints[0, 5, 0], joints[0, 6, 1], joints[1, :, :2] = 1e30, np.nan, 7  # the second person is one point
    data = LeedsSports(lspet_zip(tmp_path / "a.zip", joints))
    (picture,) = data.pictures()
    assert picture.labels.visible[0].sum() == 12
    assert data.without_labels == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, "not MPII annotations"),
        ([{"image": "a.jpg"}], r"not MPII annotations \(KeyError: 'joints'\)"),
        ([{"image": "a", "center": [1, 2], "scale": 1, "joints": [[1, 2]], "joints_vis": [1]}], "expected"),
        ([mpii_row(center=[10**400, 2])], r"not MPII annotations \(OverflowError"),
        ([mpii_row(center=[1e300, 2])], "the center or the scale of row 0 is no place or size in a picture"),
        ([mpii_row(), mpii_row(scale=float("inf"))], "the center or the scale of row 1 is no place or size"),
        ([mpii_row(scale=1e300)], "the center or the scale of row 0"),
        ([mpii_row(scale=-1)], "the center or the scale of row 0"),
        ([mpii_row(scale=[1, 2])], r"scale \(1, 2\), expected \(1,\)"),
        ([mpii_row(joints_vis=[0] * 16)], "none of its 1 people has a head to divide errors by and labels"),
        ([mpii_row(joints=[[1e300, 1e300]] * 16)], "none of its 1 people has a head"),
        ([], "not MPII annotations"),
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


@pytest.mark.parametrize("value", [7, 7.0, "7", "007"])
def test_whole_numbers(value):
    assert whole_number(value) == 7


@pytest.mark.parametrize("value", [7.5, "7.0", "", " 7", "1_0", "seven", None, True, [7], 1e300, math.inf, 10**18])
def test_what_is_no_whole_number(value):
    with pytest.raises(ValueError, match="is no whole number"):
        whole_number(value)


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
            maps = np.roll(maps, self.rng.integers(-4, 5), axis=3)
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
    result = validate(pair, Unlabeled(video), baseline="onnx-fp32")
    steady, shaky = (row.agreement.jitter_px for row in result.rows)
    assert result.crops == 48
    assert 0 < steady < shaky
    assert len(result.rows[1].worst) == 10


@pytest.mark.parametrize("count", [1, 5, 10, 15, 16, 17, 18, 48, 130, 135, 1394])
@pytest.mark.parametrize("limit", [1, 5, 8, 16, 17, 32, 128])
def test_clips_never_repeat_a_frame_and_reach_from_the_first_to_the_last(count, limit):
    clips = list(_clips(count, limit))
    frames = [frame for frame, _ in clips]
    assert len(set(frames)) == len(frames) <= limit
    assert frames[0] == 0
    assert min(count, limit) - len(frames) < 16  # no fewer than asked for but for a short last clip
    assert all(b - a == 1 for (a, i), (b, j) in pairwise(clips) if i == j)
    assert limit < 17 or max(frames) >= count - 16


def test_a_short_limit_takes_a_clip_and_none_takes_all(video):
    names = [picture.name for picture in Unlabeled(video).pictures(20)]
    assert names == [f"blob.avi#{i:06d}" for i in (*range(16), *range(32, 36))]
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
