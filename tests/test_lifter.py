"""2D poses become poses in space: missing joints, people who cannot be lifted, the mirror, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from edgepose import EdgePoseError, EngineError, Lifter, ModelSpec, Poses
from edgepose.lifting import MISSING, mirror
from edgepose.skeletons import get_skeleton
from edgepose.types import TensorSpec

SPEC = ModelSpec.lift3d("lifter", "bbox")
LSP = get_skeleton("lsp14")


class Doubler:
    """An engine that answers (x, y, 1 + x) and remembers its batches; ``x`` of a missing joint shows as it came."""

    name, device, metadata = "double", "cpu", {}

    def __init__(self, batch=None):
        self.inputs = (TensorSpec("keypoints", "float32", (batch, 17, 2)),)
        self.outputs = (TensorSpec("keypoints_xyz", "float32", (batch, 17, 3)),)
        self.batches = []

    def run(self, feeds):
        x = feeds["keypoints"]
        self.batches.append(len(x))
        return {"keypoints_xyz": np.concatenate([x, 1 + x[..., :1]], axis=-1)}


def people(count=2):
    """LSP people: a standing figure, 100 pixels tall, and others beside."""
    places = {"ankle": 100, "knee": 75, "hip": 50, "wrist": 55, "elbow": 35, "shoulder": 15, "neck": 10, "top": 0}
    xy = np.zeros((count, 14, 2), np.float32)
    for k, name in enumerate(LSP.joints):
        xy[:, k] = [10 if name.startswith("left") else -10, places[name.rpartition("_")[2]]]
    xy += np.arange(count)[:, None, None] * [50, 0] + [100, 20]
    return Poses(xy, np.ones((count, 14)), np.tile([0, 0, 9, 9], (count, 1)), "lsp14")


def test_everyone_gets_a_pose_in_space():
    poses = people()
    lifted = Lifter(Doubler(), SPEC).lift(poses, (640, 480), flip=False)
    assert lifted.skeleton_xyz == "h36m17"
    assert lifted.keypoints_xyz.shape == (2, 17, 3)
    np.testing.assert_array_equal(lifted.keypoints_xy, poses.keypoints_xy)
    # The two stand alike in different places: bbox normalisation makes them equal.
    np.testing.assert_allclose(lifted.keypoints_xyz[0], lifted.keypoints_xyz[1], atol=1e-6)


def test_joints_below_the_threshold_are_missing_and_not_zero():
    poses = people(1)
    wrist = LSP.joints.index("left_wrist")
    poses.scores[0, wrist] = 0.1
    engine = Doubler()
    lifted = Lifter(engine, SPEC).lift(poses, (640, 480), threshold=0.2, flip=False)
    target = get_skeleton("h36m17").joints.index("left_wrist")
    np.testing.assert_array_equal(lifted.keypoints_xyz[0, target], [MISSING, MISSING, 1 + MISSING])
    assert np.isfinite(lifted.keypoints_xyz).all()
    assert (lifted.keypoints_xyz[0, :, 0] == MISSING).sum() == 1


def test_who_has_too_few_joints_is_not_lifted_and_the_others_are():
    poses = people(3)
    poses.scores[1, 4:] = 0
    engine = Doubler()
    lifted = Lifter(engine, SPEC).lift(poses, (640, 480), flip=False)
    assert engine.batches == [2]
    assert np.isnan(lifted.keypoints_xyz[1]).all()
    assert np.isfinite(lifted.keypoints_xyz[[0, 2]]).all()
    rows = json.loads(json.dumps(lifted.to_dict(), allow_nan=False))
    assert rows["skeleton_xyz"] == "h36m17"
    assert rows["people"][1]["keypoints_xyz"] is None
    assert np.shape(rows["people"][0]["keypoints_xyz"]) == (17, 3)


def test_nobody_is_nobody_in_space_too():
    lifted = Lifter(Doubler(), SPEC).lift(Poses.empty("coco17"), (640, 480))
    assert lifted.keypoints_xyz.shape == (0, 17, 3)
    assert lifted.to_dict() == {"skeleton": "coco17", "skeleton_xyz": "h36m17", "people": []}


def test_the_mirror_averages_what_the_mirrored_pose_gives():
    """The engine is not symmetric: z = 1 + x. Averaged with its mirror image z is the mean over left and right."""
    lifter = Lifter(Doubler(), SPEC)
    keypoints = np.random.default_rng(0).normal(0, 0.5, (3, 17, 2)).astype(np.float32)
    straight, averaged = lifter.lifted(keypoints, flip=False), lifter.lifted(keypoints)
    other = mirror(lifter.lifted(mirror(keypoints), flip=False))
    np.testing.assert_allclose(averaged, (straight + other) / 2, atol=1e-6)
    np.testing.assert_allclose(averaged, mirror(lifter.lifted(mirror(keypoints))), atol=1e-6)
    assert np.abs(averaged - straight).max() > 0.1


def test_an_engine_with_a_fixed_batch_never_shows():
    keypoints = np.random.default_rng(0).normal(0, 0.5, (5, 17, 2)).astype(np.float32)
    engine = Doubler(batch=2)
    np.testing.assert_array_equal(
        Lifter(engine, SPEC).lifted(keypoints, flip=False), Lifter(Doubler(), SPEC).lifted(keypoints, flip=False)
    )
    assert engine.batches == [2, 2, 2]


def test_skeletons_without_a_map_are_named():
    poses = replace(people(1), skeleton="lsp14")
    other = Lifter(Doubler(), SimpleNamespace(skeleton="coco17", joints=get_skeleton("coco17"), normalisation="bbox"))
    with pytest.raises(EdgePoseError, match=r"no map from lsp14 joints to coco17; there are: coco17 to h36m17, "):
        other.lift(poses, (640, 480))


def test_nan_from_the_engine_is_an_error():
    engine = Doubler()
    engine.run = lambda feeds: {"keypoints_xyz": np.full((len(feeds["keypoints"]), 17, 3), np.nan, np.float32)}
    with pytest.raises(EngineError, match=r"double on cpu answered with NaN or infinity \(int8\): try another device"):
        Lifter(engine, SPEC, "int8").lift(people(1), (640, 480))


def test_poses_in_space_need_the_name_of_their_skeleton():
    with pytest.raises(EdgePoseError, match="keypoints_xyz and skeleton_xyz go together"):
        replace(people(1), keypoints_xyz=np.zeros((1, 17, 3)))
    with pytest.raises(EdgePoseError, match=r"Poses.keypoints_xyz: expected shape \(1, 17, 3\), got \(1, 14, 3\)"):
        replace(people(1), keypoints_xyz=np.zeros((1, 14, 3)), skeleton_xyz="h36m17")
