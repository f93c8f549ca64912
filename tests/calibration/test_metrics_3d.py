"""3D metrics against hand-worked cases, SciPy's Procrustes, and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial import procrustes
from scipy.spatial.transform import Rotation

from edgepose import DatasetError
from edgepose.calibration.datasets.base import LiftingClip
from edgepose.calibration.metrics_3d import (
    AUC_THRESHOLDS_MM,
    PCK_JOINTS,
    LiftingScorer,
    acceleration,
    auc_3d,
    joint_errors_mm,
    mpjpe_mm,
    p_mpjpe_mm,
    pck_3d,
    procrustes_align,
)
from edgepose.cli._predictions import score_predictions
from edgepose.skeletons import get_skeleton

JOINTS = get_skeleton("h36m17").joints


def poses(count=5, seed=0):
    return np.random.default_rng(seed).normal(0, 0.3, (count, 17, 3))


def clip(truth, group="all", valid=None, name="S9 Walking 1"):
    truth = np.asarray(truth, np.float32)
    valid = np.ones(len(truth), bool) if valid is None else np.asarray(valid, bool)
    return LiftingClip(name, np.zeros((len(truth), 17, 2), np.float32), truth, valid, (1000, 1000), group)


def shifted(truth, millimetres):
    """Every joint off by that much."""
    return np.asarray(truth) + np.array([millimetres / 1000, 0, 0])


def test_mpjpe_by_hand():
    """Two poses of two joints: 3-4-5 in centimetres and nothing, then 10 and 20 cm."""
    truth = np.zeros((2, 2, 3))
    other = np.array([[[0.03, 0.04, 0], [0, 0, 0]], [[0, 0, 0.1], [0, 0.2, 0]]])
    assert joint_errors_mm(truth, other) == pytest.approx(np.array([[50, 0], [100, 200]]))
    assert mpjpe_mm(truth, other) == pytest.approx(87.5)
    assert mpjpe_mm(truth, other, [True, False]) == pytest.approx(25)
    assert math.isnan(mpjpe_mm(truth, other, [False, False]))


def test_alignment_undoes_scale_rotation_and_shift():
    truth = poses()
    turn = Rotation.from_rotvec([0.3, -2, 1]).as_matrix()
    other = 2.5 * truth @ turn + [1, -2, 3]
    assert mpjpe_mm(truth, other) > 1000
    assert p_mpjpe_mm(truth, other) == pytest.approx(0, abs=1e-9)
    assert procrustes_align(truth, other) == pytest.approx(truth)


def test_alignment_agrees_with_scipy():
    """SciPy scales the truth to unit norm and reports the squared distance. Near poses: no reflection is in play."""
    truth, other = poses(), poses() + poses(seed=1) / 3
    aligned = procrustes_align(truth, other)
    for goal, pose, fitted in zip(truth, other, aligned, strict=True):
        size = ((goal - goal.mean(axis=0)) ** 2).sum()
        assert ((goal - fitted) ** 2).sum() / size == pytest.approx(procrustes(goal, pose)[2])


def test_alignment_never_mirrors():
    """The best proper rotation is SciPy's Kabsch; scale and shift follow in closed form."""
    truth = poses()
    mirrored = truth * [-1, 1, 1]
    assert p_mpjpe_mm(truth, mirrored) > 50
    for goal, pose, fitted in zip(truth, mirrored, procrustes_align(truth, mirrored), strict=True):
        goal_0, pose_0 = goal - goal.mean(axis=0), pose - pose.mean(axis=0)
        turned = Rotation.align_vectors(goal_0, pose_0)[0].apply(pose_0)
        expected = turned * (turned * goal_0).sum() / (turned**2).sum() + goal.mean(axis=0)
        assert fitted == pytest.approx(expected)


def test_a_collapsed_pose_lands_on_the_centre():
    truth = poses(2)
    aligned = procrustes_align(truth, np.full_like(truth, 7.0))
    assert aligned == pytest.approx(np.broadcast_to(truth.mean(axis=1, keepdims=True), truth.shape))
    assert np.isfinite(procrustes_align(np.zeros_like(truth), truth)).all()


def test_pck_and_auc_by_hand():
    """Errors of 0, 60, 150 and 400 mm: 150 itself does not count, and 60 does not count at the threshold of 60."""
    truth = np.zeros((1, 4, 3))
    other = np.zeros((1, 4, 3))
    other[0, :, 1] = [0, 0.06, 0.15, 0.4]
    assert pck_3d(truth, other) == 50
    assert pck_3d(truth, other, threshold_mm=151) == 75
    # 0 is below 30 of 31 thresholds, 60 below those from 65 to 150: 18.
    assert auc_3d(truth, other) == pytest.approx(100 * (30 + 18) / 4 / 31)
    assert len(AUC_THRESHOLDS_MM) == 31


def test_pck_and_auc_by_a_loop():
    truth, other = poses(20), poses(20) + poses(20, seed=2) / 4
    errors = [1000 * math.dist(a, b) for t, o in zip(truth, other, strict=True) for a, b in zip(t, o, strict=True)]
    curve = [100 * sum(e < 5 * step for e in errors) / len(errors) for step in range(31)]
    assert pck_3d(truth, other) == pytest.approx(curve[-1])
    assert auc_3d(truth, other) == pytest.approx(sum(curve) / 31)


def test_the_published_pck_counts_14_joints():
    assert {"pelvis", "spine", "neck"} == set(JOINTS) - PCK_JOINTS


@pytest.mark.parametrize("dimensions", [2, 3])
def test_acceleration(dimensions):
    """One joint moves evenly, one as t^2, one hops by 5 at frame 3."""
    time = np.arange(6.0)
    motion = np.zeros((6, 3, dimensions))
    motion[:, 0] = time[:, None]
    motion[:, 1, 0] = time**2
    motion[3, 2, :2] = (3, 4)
    result = acceleration(motion)
    assert result.shape == (4, 3)
    assert result == pytest.approx(np.array([[0, 2, 0], [0, 2, 5], [0, 2, 10], [0, 2, 5]]))


@pytest.mark.parametrize("frames", [0, 1, 2])
def test_acceleration_needs_three_frames(frames):
    assert acceleration(np.zeros((frames, 17, 3))).shape == (0, 17)


def test_scorer_of_one_group_weighs_frames_alike():
    truth, other = poses(30), poses(30) + poses(30, seed=3) / 5
    scorer = LiftingScorer("h36m17")
    for part in (slice(0, 4), slice(4, 5), slice(5, 30)):
        scorer.add(clip(truth[part]), other[part])
    accuracy = scorer.result()
    truth = truth.astype(np.float32)
    counted = [k for k, name in enumerate(JOINTS) if name in PCK_JOINTS]
    assert (accuracy.metric, accuracy.unit, accuracy.higher_is_better) == ("MPJPE", "mm", False)
    assert accuracy.people == 30
    assert accuracy.value == accuracy.stats["MPJPE"] == pytest.approx(mpjpe_mm(truth, other))
    assert accuracy.stats["P-MPJPE"] == pytest.approx(p_mpjpe_mm(truth, other))
    assert accuracy.stats["3DPCK"] == pytest.approx(pck_3d(truth[:, counted], other[:, counted]))
    assert accuracy.stats["AUC"] == pytest.approx(auc_3d(truth[:, counted], other[:, counted]))
    assert accuracy.joint_metric == "MPJPE"
    assert accuracy.per_joint == {
        name: pytest.approx(joint_errors_mm(truth, other)[:, k].mean()) for k, name in enumerate(JOINTS)
    }
    assert accuracy.remarks == ("3DPCK (150 mm) and AUC are percent, over 14 joints",)


def test_scorer_averages_groups_first():
    """Nine frames of Walking are off by 10 mm and one of Sitting by 200 mm."""
    scorer = LiftingScorer()
    scorer.add(clip(poses(9), "Walking"), shifted(poses(9), 10))
    scorer.add(clip(poses(1), "Sitting"), shifted(poses(1), 200))
    accuracy = scorer.result()
    assert accuracy.value == pytest.approx(105, abs=1e-3)
    assert accuracy.stats["P-MPJPE"] == pytest.approx(0, abs=1e-3)
    assert accuracy.stats["3DPCK"] == pytest.approx(50)
    assert accuracy.people == 10
    assert accuracy.remarks[1] == "mean of 2 groups' means"


def test_scorer_counts_valid_frames_only():
    truth, other = poses(3), shifted(poses(3), 20)
    truth[1], other[1] = np.nan, np.inf
    scorer = LiftingScorer()
    scorer.add(clip(truth, valid=[True, False, True]), other)
    assert scorer.result().value == pytest.approx(20, abs=1e-3)
    assert scorer.result().people == 2


def test_scorer_refuses_what_it_cannot_judge():
    scorer = LiftingScorer()
    with pytest.raises(DatasetError, match="no valid frame to score: check the split and the limit"):
        scorer.result()
    broken = poses(4)
    broken[2, 5, 1] = broken[3] = np.nan
    with pytest.raises(DatasetError, match="S9 Walking 1: the model's poses are not finite in 2 frames, the first is "):
        scorer.add(clip(poses(4)), broken)
    with pytest.raises(DatasetError, match="S9 Walking 1: the labels are not finite in 2 frames, the first is frame 2"):
        scorer.add(clip(broken), poses(4))
    with pytest.raises(DatasetError, match=r"Walking 1: expected \(4, 17, 3\), got .* and poses \(3, 17, 3\)"):
        scorer.add(clip(poses(4)), poses(3))
    scorer.add(clip(poses(2), valid=[False, False]), poses(2))
    with pytest.raises(DatasetError, match="no valid frame"):
        scorer.result()


# --- other tools' poses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, r"poses\.npz: holds no arrays: save one \(F, K, 3\) of metres for each clip, by its name"),
        ({"TS1": np.full((5, 17, 3), "1")}, r"poses\.npz: TS1: expected an array of numbers, got an array of <U1"),
        ({"TS1": np.full((5, 17, 3), b"1")}, r"TS1: expected an array of numbers, got an array of \|S1"),
        ({"TS1": np.full((5, 17, 3), None, object)}, "TS1: expected an array of numbers, got an array of object"),
        ({"TS1": np.array({"a": 1}, object)}, "TS1: expected an array of numbers, got dict"),
        ({"TS1": np.zeros((5, 17, 3), complex)}, "TS1: expected an array of numbers, got an array of complex128"),
        ({"TS1": np.zeros((5, 17))}, r"TS1: expected shape \(any, any, 3\), got \(5, 17\)"),
    ],
)
def test_3d_poses_that_are_no_numbers_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "data_test_3dhp.npz", data=np.array({}, object))
    np.savez(tmp_path / "poses.npz", **arrays)
    with pytest.raises(DatasetError, match=message):
        score_predictions(tmp_path / "poses.npz", "mpi-inf-3dhp", tmp_path)


def test_a_file_that_is_no_npz(tmp_path):
    np.savez(tmp_path / "data_test_3dhp.npz", data=np.array({}, object))
    (tmp_path / "poses.npz").write_bytes(b"no zip")
    with pytest.raises(DatasetError, match=r"poses\.npz: it is damaged or not an \.npz member"):
        score_predictions(tmp_path / "poses.npz", "mpi-inf-3dhp", tmp_path)
