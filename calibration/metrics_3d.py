"""Accuracy of poses in space. In every function the first argument is the truth (or the FP32 model's answer).

Poses are (N, K, 3) in metres. Nothing here subtracts the root: for the root-relative numbers of the literature, do
that first; P-MPJPE does not depend on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgepose.calibration.datasets.base import LiftingClip
from edgepose.calibration.evidence import Accuracy
from edgepose.errors import DatasetError
from edgepose.skeletons import get_skeleton

__all__ = [
    "AUC_THRESHOLDS_MM",
    "PCK_JOINTS",
    "LiftingScorer",
    "acceleration",
    "auc_3d",
    "joint_errors_mm",
    "mpjpe_mm",
    "p_mpjpe_mm",
    "pck_3d",
    "procrustes_align",
]

Floats = NDArray[np.float64]

PCK_THRESHOLD_MM = 150.0

AUC_THRESHOLDS_MM: tuple[float, ...] = tuple(float(step) for step in range(0, 151, 5))
"""The 31 thresholds of the MPI-INF-3DHP evaluation. No error is below the first, so that AUC ends at 30/31."""

PCK_JOINTS = frozenset(
    (
        *("head", "head_top", "thorax"),
        *(f"{side}_{part}" for side in ("left", "right") for part in ("shoulder", "elbow", "wrist")),
        *(f"{side}_{part}" for side in ("left", "right") for part in ("hip", "knee", "ankle")),
    )
)
"""The 14 joints that the MPI-INF-3DHP evaluation counts, by our names: not the pelvis, the spine and the inner head."""


def joint_errors_mm(truth: ArrayLike, other: ArrayLike) -> Floats:
    """Euclidean distance of each joint to the truth.

    Args:
        truth, other: (N, K, 3) metres.

    Returns:
        (N, K) millimetres.
    """
    return np.asarray(1000 * np.linalg.norm(np.asarray(truth, float) - np.asarray(other, float), axis=-1))


def mpjpe_mm(truth: ArrayLike, other: ArrayLike, valid: ArrayLike | None = None) -> float:
    """Mean per joint position error (Ionescu et al., Human3.6M, TPAMI 2014; "protocol 1").

    Args:
        truth, other: (N, K, 3) metres, root-relative.
        valid: (N,) bool, poses that count; all by default.

    Returns:
        Millimetres; NaN where no pose counts.
    """
    errors = joint_errors_mm(truth, other)
    counted = errors if valid is None else errors[np.asarray(valid, bool)]
    return float(counted.mean()) if counted.size else float("nan")


def procrustes_align(truth: ArrayLike, other: ArrayLike) -> Floats:
    """Move each pose onto its truth by the best scale, rotation and translation (Umeyama, PAMI 1991).

    A rotation never mirrors: where the best orthogonal matrix is a reflection, the weakest axis is turned back.

    Args:
        truth, other: (N, K, 3) metres, finite.

    Returns:
        (N, K, 3): ``other``, aligned. A pose whose points all coincide lands on the truth's centroid.
    """
    goal, pose = np.asarray(truth, float), np.asarray(other, float)
    centre = goal.mean(axis=-2, keepdims=True)
    pose = pose - pose.mean(axis=-2, keepdims=True)
    u, strengths, vt = np.linalg.svd(np.swapaxes(pose, -1, -2) @ (goal - centre))
    signs = np.ones_like(strengths)
    signs[..., -1] = np.sign(np.linalg.det(u @ vt))
    size = (pose**2).sum(axis=(-2, -1))
    scale = (strengths * signs).sum(axis=-1) / np.where(size > 0, size, 1)
    return np.asarray(scale[..., None, None] * (pose @ ((u * signs[..., None, :]) @ vt)) + centre)


def p_mpjpe_mm(truth: ArrayLike, other: ArrayLike, valid: ArrayLike | None = None) -> float:
    """MPJPE after :func:`procrustes_align` of each pose ("protocol 2"); arguments and result as :func:`mpjpe_mm`."""
    return mpjpe_mm(truth, procrustes_align(truth, other), valid)


def pck_3d(truth: ArrayLike, other: ArrayLike, threshold_mm: float = PCK_THRESHOLD_MM) -> float:
    """Percentage of joints whose error is below the threshold, itself excluded (Mehta et al., MPI-INF-3DHP, 3DV 2017).

    Args:
        truth, other: (N, K, 3) metres, root-relative; the published metric counts the 14 ``PCK_JOINTS``.
        threshold_mm: Millimetres.
    """
    return float(100 * (joint_errors_mm(truth, other) < threshold_mm).mean())


def auc_3d(truth: ArrayLike, other: ArrayLike) -> float:
    """Mean of :func:`pck_3d` over ``AUC_THRESHOLDS_MM``, percent (Mehta et al., MPI-INF-3DHP, 3DV 2017)."""
    return float(np.mean([pck_3d(truth, other, threshold) for threshold in AUC_THRESHOLDS_MM]))


def acceleration(keypoints: ArrayLike) -> Floats:
    """Jitter: the length of x[t+1] - 2 x[t] + x[t-1] (Kanazawa et al., HMMR, CVPR 2019).

    Args:
        keypoints: (F, K, D) consecutive frames: pixels for D = 2, metres for D = 3.

    Returns:
        (F - 2, K), the input's unit per frame squared; empty for fewer than three frames.
    """
    return np.asarray(np.linalg.norm(np.diff(np.asarray(keypoints, float), 2, axis=0), axis=-1))


@dataclass
class _Sums:
    """What is left of the poses of one group: sums over poses, joints apart where it matters."""

    joints_mm: Floats
    aligned_mm: float = 0.0
    pck: float = 0.0
    auc: float = 0.0
    poses: int = 0

    def add(self, truth: Floats, other: Floats, pck_joints: list[int]) -> None:
        counted = truth[:, pck_joints], other[:, pck_joints]
        self.joints_mm += joint_errors_mm(truth, other).sum(axis=0)
        self.aligned_mm += p_mpjpe_mm(truth, other) * len(truth)
        self.pck += pck_3d(*counted) * len(truth)
        self.auc += auc_3d(*counted) * len(truth)
        self.poses += len(truth)


class LiftingScorer:
    """Judges one variant of a lifting model, clip by clip, and keeps sums only.

    Each group's mean is taken first, then the mean of the groups: Human3.6M averages its 15 actions this way. Where all
    clips are of one group, every frame weighs the same, as the MPI-INF-3DHP evaluation has it. Only valid frames count.
    3DPCK and AUC count those joints of ``PCK_JOINTS`` that the skeleton has; MPJPE and P-MPJPE count every joint.

    Args:
        skeleton: Name of the clips' skeleton.

    Raises:
        EdgePoseError: No skeleton has that name.
    """

    def __init__(self, skeleton: str = "h36m17") -> None:
        self._joints = get_skeleton(skeleton).joints
        self._pck_joints = [k for k, name in enumerate(self._joints) if name in PCK_JOINTS]
        self._groups: dict[str, _Sums] = {}

    def add(self, clip: LiftingClip, xyz: ArrayLike) -> None:
        """Add the answers for a clip.

        Args:
            clip: The truth.
            xyz: (F, K, 3) metres in the camera's frame, relative to the pelvis.

        Raises:
            DatasetError: The shapes differ, or a valid frame's answer or truth is not finite.
        """
        truth, answer = np.asarray(clip.keypoints_xyz, float), np.asarray(xyz, float)
        expected = (len(truth), len(self._joints), 3)
        if truth.shape != expected or answer.shape != expected:
            raise DatasetError(f"{clip.name}: expected {expected}, got truth {truth.shape} and poses {answer.shape}")
        valid = np.asarray(clip.valid, bool)
        _require_finite(clip.name, "the model's poses are", answer, valid)
        _require_finite(clip.name, "the labels are", truth, valid)
        if valid.any():
            self._sums(clip.group).add(truth[valid], answer[valid], self._pck_joints)

    def _sums(self, group: str) -> _Sums:
        return self._groups.setdefault(group, _Sums(np.zeros(len(self._joints))))

    def result(self) -> Accuracy:
        """The verdict on all that was added; 3DPCK and AUC are percent, the others millimetres.

        Raises:
            DatasetError: No valid frame was added.
        """
        if not self._groups:
            raise DatasetError("no valid frame to score: check the split and the limit")
        groups = list(self._groups.values())
        joints_mm = np.mean([sums.joints_mm / sums.poses for sums in groups], axis=0)
        return Accuracy(
            metric="MPJPE",
            value=float(joints_mm.mean()),
            unit="mm",
            higher_is_better=False,
            people=sum(sums.poses for sums in groups),
            stats={
                "MPJPE": float(joints_mm.mean()),
                "P-MPJPE": float(np.mean([sums.aligned_mm / sums.poses for sums in groups])),
                "3DPCK": float(np.mean([sums.pck / sums.poses for sums in groups])),
                "AUC": float(np.mean([sums.auc / sums.poses for sums in groups])),
            },
            joint_metric="MPJPE",
            per_joint=self._by_name(joints_mm),
            remarks=(f"3DPCK (150 mm) and AUC are percent, over {len(self._pck_joints)} joints", *self._group_remark()),
        )

    def _by_name(self, joints_mm: Floats) -> Mapping[str, float]:
        return {name: float(value) for name, value in zip(self._joints, joints_mm, strict=True)}

    def _group_remark(self) -> tuple[str, ...]:
        return (f"mean of {len(self._groups)} groups' means",) if len(self._groups) > 1 else ()


def _require_finite(name: str, whose: str, xyz: Floats, valid: NDArray[np.bool_]) -> None:
    bad = valid & ~np.isfinite(xyz).all(axis=(1, 2))
    if bad.any():
        raise DatasetError(f"{name}: {whose} not finite in {bad.sum()} frames, the first is frame {bad.argmax()}")
