"""From the keypoints of any 2D model to a lifting model's input."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from edgepose import BundleError, EdgePoseError, ModelSpec
from edgepose.lifting import FEWEST_JOINTS, MISSING, liftable, map_joints, mirror, normalise
from edgepose.skeletons import SKELETONS, get_skeleton, skeleton_map

H36M = get_skeleton("h36m17").joints


def person(seed=0, joints=17, n=1):
    return np.random.default_rng(seed).uniform([100, 50], [500, 450], (n, joints, 2))


def named(skeleton, xy):
    return dict(zip(get_skeleton(skeleton).joints, xy, strict=True))


# --- skeletons ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["coco17", "lsp14", "mpii16", "h36m17"])
def test_shared_joints_are_taken_as_they_are(source):
    xy = person(joints=len(get_skeleton(source).joints))
    before, after = named(source, xy[0]), named("h36m17", map_joints(xy, source)[0])
    for name in before.keys() & after.keys():
        np.testing.assert_allclose(after[name], before[name], rtol=1e-6)
    assert skeleton_map(source, "h36m17").missing == ()
    assert np.isfinite(list(after.values())).all()


@pytest.mark.parametrize(
    ("source", "joint", "parts"),
    [
        ("coco17", "pelvis", {"left_hip": 1 / 2, "right_hip": 1 / 2}),
        ("coco17", "thorax", {"left_shoulder": 1 / 2, "right_shoulder": 1 / 2}),
        ("coco17", "spine", {"left_hip": 0.25, "right_hip": 0.25, "left_shoulder": 0.25, "right_shoulder": 0.25}),
        ("coco17", "neck", {"nose": 1}),
        ("lsp14", "head", {"head_top": 1}),
        ("mpii16", "neck", {"upper_neck": 1}),
        ("mpii16", "spine", {"pelvis": 1 / 2, "thorax": 1 / 2}),
    ],
)
def test_other_joints_are_means(source, joint, parts):
    xy = person(joints=len(get_skeleton(source).joints))
    before = named(source, xy[0])
    expected = sum(weight * before[name] for name, weight in parts.items())
    np.testing.assert_allclose(named("h36m17", map_joints(xy, source)[0])[joint], expected, rtol=1e-5)


def test_the_head_is_above_the_eyes():
    xy = np.zeros((1, 17, 2))
    face = {"left_eye": (1, 10), "right_eye": (-1, 10), "left_ear": (2, 10), "right_ear": (-2, 10)}
    for name, place in {**face, "left_shoulder": (5, 60), "right_shoulder": (-5, 60)}.items():
        xy[0, get_skeleton("coco17").joints.index(name)] = place
    np.testing.assert_allclose(map_joints(xy, "coco17")[0, H36M.index("head")], [0, 0], atol=1e-5)


@pytest.mark.parametrize("source", SKELETONS)
def test_weights_sum_to_one(source):
    for row in skeleton_map(source, "h36m17").rows:
        assert sum(weight for _, weight in row) == pytest.approx(1)


def test_a_joint_is_missing_where_a_part_of_it_is():
    xy = person()
    xy[0, get_skeleton("coco17").joints.index("left_hip")] = np.nan
    lost = {name for name, point in named("h36m17", map_joints(xy, "coco17")[0]).items() if np.isnan(point).any()}
    assert lost == {"left_hip", "pelvis", "spine"}


def test_a_map_says_what_it_needs():
    assert set(skeleton_map("mpii16", "h36m17").needed) == set(get_skeleton("mpii16").joints)
    assert skeleton_map("h36m17", "h36m17").needed == H36M


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("h36m17", "coco17", "no map from h36m17 joints to coco17; there are: coco17 to h36m17, lsp14 to h36m17"),
        ("halpe26", "h36m17", "unknown skeleton 'halpe26'"),
    ],
)
def test_skeletons_without_a_map_are_refused(source, target, message):
    with pytest.raises(EdgePoseError, match=message):
        map_joints(person(), source, target)


def test_fewer_joints_than_the_skeleton_has_are_refused():
    with pytest.raises(EdgePoseError, match=r"expected keypoints \(N, 17, 2\) for coco17, got \(1, 12, 2\)"):
        map_joints(person(joints=12), "coco17")


# --- normalisation -----------------------------------------------------------------------------------------------


def test_screen_is_the_formula_of_the_field():
    """x / w * 2 - 1, y / w * 2 - h / w (VideoPose3D's normalize_screen_coordinates)."""
    xy, (w, h) = person(n=2), (1000, 600)
    expected = np.stack([xy[..., 0] / w * 2 - 1, xy[..., 1] / w * 2 - h / w], axis=-1)
    np.testing.assert_allclose(normalise(xy, (w, h), "screen"), expected, atol=1e-6)


def test_bbox_forgets_place_and_size():
    xy = person(n=2)
    first = normalise(xy, (640, 480), "bbox")
    np.testing.assert_allclose(normalise(3 * xy + [70, -20], (4000, 3000), "bbox"), first, atol=1e-5)
    np.testing.assert_array_equal(first[:, 0], 0)
    np.testing.assert_allclose(np.ptp(first, axis=1).max(axis=1), 2, rtol=1e-6)


@pytest.mark.parametrize("how", ["screen", "bbox"])
@pytest.mark.parametrize("lost", [[3], [0], [0, 9, 10]])  # a limb, the root, several
def test_missing_joints_are_marked_and_never_zero(how, lost):
    xy = person(n=2)
    xy[1, lost] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keypoints = normalise(xy, (640, 480), how)
    assert keypoints.dtype == np.float32
    assert (keypoints[1, lost] == MISSING).all()
    assert (np.abs(np.delete(keypoints[1], lost, axis=0)) < 8).all()
    np.testing.assert_array_equal(keypoints[0], normalise(xy[:1], (640, 480), how)[0])


def test_a_joint_of_which_one_coordinate_is_missing_is_missing():
    xy = person()
    xy[0, 5, 1] = np.inf
    assert (normalise(xy, (640, 480), "screen")[0, 5] == MISSING).all()


def test_joints_far_outside_the_picture_are_not_taken_for_missing():
    xy = person()
    xy[0, 5] = [-1e7, 1e7]
    np.testing.assert_array_equal(normalise(xy, (640, 480), "screen")[0, 5], [-8, 8])


def test_too_few_joints_are_refused_by_count():
    xy = person(n=3)
    xy[1, FEWEST_JOINTS - 1 :] = np.nan
    xy[2] = 7.0
    assert liftable(xy).tolist() == [True, False, False]
    with pytest.raises(EdgePoseError, match="person 1 has 5 of 17 joints; at least 6 in different places"):
        normalise(xy, (640, 480), "bbox")
    with pytest.raises(EdgePoseError, match="no normalisation 'imagenet'"):
        normalise(xy[:1], (640, 480), "imagenet")


def test_nobody_is_no_error():
    assert normalise(np.zeros((0, 17, 2)), (640, 480), "bbox").shape == (0, 17, 2)


def test_mirroring_is_that_of_the_picture():
    xy = person()
    xy[0, 4] = np.nan
    flipped = xy[:, list(get_skeleton("h36m17").flip_order)].copy()
    flipped[..., 0] = 640 - flipped[..., 0]
    expected = normalise(flipped, (640, 480), "screen")
    np.testing.assert_allclose(mirror(normalise(xy, (640, 480), "screen")), expected, atol=1e-6)


# --- specification -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["screen", "bbox"])
def test_a_lifting_specification_survives_json(how):
    spec = ModelSpec.lift3d("ampose-s", how)
    again = ModelSpec.from_json(spec.to_json(), "here")
    assert again == spec
    assert (again.task, again.normalisation) == ("lift3d", how)
    assert (again.input.name, again.input.shape) == ("keypoints", (None, 17, 2))
    assert (again.output.name, again.output.shape) == ("keypoints_xyz", (None, 17, 3))


def test_a_picture_specification_has_no_word_of_normalisation():
    assert "normalisation" not in ModelSpec.pose2d("m", (256, 192), "coco17").to_json()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"normalisation":"screen"', '"normalisation":"pixels"'),
        ('"normalisation":"screen",', ""),
        ("[null,17,2]", "[null,16,2]"),
        ('"task":"lift3d"', '"task":"pose2d"'),
        ('"task":"lift3d"', '"task":"lift4d"'),
        ('"h36m17"', '"lsp14"'),
    ],
)
def test_damaged_lifting_specifications_are_refused(old, new):
    text = ModelSpec.lift3d("m", "screen").to_json()
    assert old in text
    with pytest.raises(BundleError, match="here: the embedded model specification is damaged"):
        ModelSpec.from_json(text.replace(old, new), "here")


def test_a_lifting_model_takes_no_crops():
    with pytest.raises(EdgePoseError, match="lifts keypoints into space, and a model that takes pictures is needed"):
        ModelSpec.lift3d("m", "screen").input_wh  # noqa: B018
    with pytest.raises(EdgePoseError, match="unknown normalisation 'world'; known: screen, bbox"):
        ModelSpec.lift3d("m", "world")
