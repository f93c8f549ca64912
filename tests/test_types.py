"""Poses and ModelSpec."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from edgepose import BundleError, EdgePoseError, ModelSpec, Poses
from edgepose.skeletons import SKELETONS, get_skeleton


def two_people() -> Poses:
    rng = np.random.default_rng(0)
    return Poses(
        keypoints_xy=rng.uniform(0, 100, (2, 17, 2)),
        scores=np.stack([np.full(17, 0.9), np.r_[np.full(5, 0.5), np.full(12, 0.1)]]),
        boxes_xyxy=np.array([[0, 0, 10, 20], [5, 5, 50, 60]]),
        skeleton="coco17",
        track_ids=np.array([7, 9]),
    )


def test_poses_slice_like_an_array():
    poses = two_people()
    assert len(poses) == 2
    assert len(poses[1]) == 1
    assert poses[1].track_ids.tolist() == [9]
    assert poses[-1].track_ids.tolist() == [9]
    assert len(poses[:0]) == 0
    assert poses[np.array([False, True])].boxes_xyxy.tolist() == [[5, 5, 50, 60]]
    with pytest.raises(IndexError):
        poses[2]
    assert len(Poses.empty("lsp14")) == 0


def test_poses_are_frozen_and_typed():
    poses = two_people()
    assert poses.keypoints_xy.dtype == np.float32
    with pytest.raises(dataclasses.FrozenInstanceError):
        poses.scores = poses.scores  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("scores", np.zeros((2, 16)), r"Poses.scores: expected shape \(2, 17\), got \(2, 16\)"),
        ("boxes_xyxy", np.zeros((1, 4)), r"Poses.boxes_xyxy: expected shape \(2, 4\), got \(1, 4\)"),
        ("skeleton", "coco18", "unknown skeleton 'coco18'; known: coco17"),
    ],
)
def test_poses_are_validated(field, value, message):
    with pytest.raises(EdgePoseError, match=message):
        dataclasses.replace(two_people(), **{field: value})


def test_instance_scores_leave_out_joints_that_were_not_found():
    np.testing.assert_allclose(two_people().instance_scores, [0.9, 0.5], rtol=1e-6)
    nobody = dataclasses.replace(two_people(), scores=np.zeros((2, 17)))
    assert nobody.instance_scores.tolist() == [0, 0]


def test_poses_become_coco_results_and_json():
    poses = two_people()
    row = poses.to_coco(image_id=3)[1]
    assert (row["image_id"], row["category_id"], len(row["keypoints"])) == (3, 1, 51)
    np.testing.assert_allclose(row["keypoints"][:2], poses.keypoints_xy[1, 0], atol=1e-3)
    person = json.loads(json.dumps(poses.to_dict()))["people"][1]
    assert person["track_id"] == 9
    assert len(person["keypoints"]) == 17
    assert "keypoints_xyz" not in person


def test_a_specification_survives_json():
    spec = ModelSpec.pose2d("transpose-r-a3", (256, 192), "coco17")
    assert ModelSpec.from_json(spec.to_json(), "here") == spec
    assert spec.input_wh == (192, 256)
    assert spec.output.shape == (None, 17, 64, 48)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: "not json", "m.onnx: the embedded model specification is damaged"),
        (lambda d: "[]", "m.onnx: the embedded model specification is damaged"),
        (lambda d: json.dumps(d | {"version": 9}), "m.onnx: model specification version 9, this edgepose reads 1"),
        (lambda d: json.dumps(d | {"skeleton": "alien"}), "unknown skeleton 'alien'"),
        (lambda d: json.dumps(d | {"crop_padding": -1}), "crop_padding or score_threshold out of range"),
        (lambda d: json.dumps(d | {"crop_padding": float("inf")}), "crop_padding or score_threshold out of range"),
        (lambda d: json.dumps(d | {"input": d["input"] | {"dtype": "float32"}}), "tensors TensorSpec"),
        (lambda d: json.dumps(d | {"task": "cook"}), "task 'cook'"),
        (lambda d: json.dumps({k: v for k, v in d.items() if k != "input"}), "damaged"),
        (lambda d: json.dumps(d | {"output": d["output"] | {"shape": [None, 3, 64, 48]}}), "tensors TensorSpec"),
    ],
)
def test_a_damaged_specification_is_refused(change, message):
    spec = json.loads(ModelSpec.pose2d("m", (256, 192), "coco17").to_json())
    with pytest.raises(BundleError, match=message):
        ModelSpec.from_json(change(spec), "m.onnx")


@pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=str)
def test_skeletons_are_consistent(skeleton):
    k = len(skeleton.joints)
    assert len(set(skeleton.joints)) == k == int(skeleton.name[-2:])
    assert len(skeleton.sigmas) == k
    assert {i for edge in skeleton.edges for i in edge} == set(range(k))  # every joint is drawn
    order = np.array(skeleton.flip_order)
    assert (order[order] == np.arange(k)).all()
    for i, j in enumerate(order):
        mirrored = skeleton.joints[i].replace("left_", "?").replace("right_", "left_").replace("?", "right_")
        assert skeleton.joints[j] == mirrored


def test_coco_sigmas_are_the_official_ones():
    official = [0.26, 0.25, 0.25, 0.35, 0.35, 0.79, 0.79, 0.72, 0.72, 0.62, 0.62, 1.07, 1.07, 0.87, 0.87, 0.89, 0.89]
    np.testing.assert_allclose(get_skeleton("coco17").sigmas, np.array(official) / 10)
