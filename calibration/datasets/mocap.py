"""Motion-capture poses without pictures: cameras are placed around them, for lifting models to learn and be scored.

A file is an ``.npz`` with ``poses`` (N, 17, 3): metres, Z up, pelvis at the origin, Human3.6M's joints in their order;
and ``seq_id`` (N,), the sequence that each pose is of. Poses of one sequence resemble each other, so that a split holds
out whole sequences.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from edgepose.calibration.datasets.arrays import number_array, read_npz
from edgepose.calibration.datasets.base import LiftingClip
from edgepose.errors import DatasetError
from edgepose.lifting import FEWEST_JOINTS
from edgepose.skeletons import get_skeleton

__all__ = ["IMAGE_WH", "MocapPoses", "body_size", "noisy", "other_bodies", "read_poses", "split_sequences", "view"]

Floats = NDArray[np.float32]

IMAGE_WH = (1000, 1000)
"""Of every picture that :func:`view` takes."""

_BODY = get_skeleton("h36m17")
_FLIP = list(_BODY.flip_order)
_H36M_MM = {"hip": 132.9, "knee": 442.9, "ankle": 454.2, "spine": 233.4, "thorax": 257.1, "neck": 121.1, "head": 115.0}
_H36M_MM |= {"shoulder": 151.0, "elbow": 278.9, "wrist": 251.7}
"""Bones of Human3.6M's bodies, by the joint that they lead to."""
_JOINTS = _BODY.joints
_HIP, _KNEE, _ANKLE, _HEAD = (_JOINTS.index(name) for name in ("right_hip", "right_knee", "right_ankle", "head"))
_HELD_OUT = 0.15


class MocapPoses:
    """The held-out sequences of a file, one clip each, through cameras like Human3.6M's; implements ``LiftingData``."""

    kind = "mocap"
    skeleton = "h36m17"

    def __init__(self, path: Path, *, seed: int = 0) -> None:
        """Read the file; ``seed`` chooses the sequences and the cameras. See :func:`read_poses` for the errors."""
        self.path, self.seed = path, seed
        self._poses, self._sequences = read_poses(path)

    def sources(self) -> list[Path]:
        """The file."""
        return [self.path]

    def clips(self, limit: int | None = None) -> Iterator[LiftingClip]:
        """Clips by number of the sequence; each frame has a camera of its own."""
        held = split_sequences(self._sequences, self.seed)
        return itertools.islice(map(self._clip, np.unique(self._sequences[held])), limit)

    def _clip(self, number: int) -> LiftingClip:
        poses = self._poses[self._sequences == number]
        xy, xyz = view(poses, np.random.default_rng((self.seed, number)), wide=0)
        return LiftingClip(f"sequence {number}", xy, xyz, np.ones(len(poses), bool), IMAGE_WH, "all")


def read_poses(path: Path) -> tuple[Floats, NDArray[np.int64]]:
    """Poses (N, 17, 3) and the sequence (N,) of each: see the module.

    Raises:
        DatasetError: The file is missing, damaged, in another unit or order, not finite, or of a single sequence.
    """
    if not path.is_file():
        raise DatasetError(f"{path}: no such file: an .npz file with poses (N, 17, 3) and seq_id (N,) is needed")
    poses = number_array(read_npz(path, "poses"), (None, len(_JOINTS), 3), f"{path}: poses").astype(np.float32)
    sequences = number_array(read_npz(path, "seq_id"), (len(poses),), f"{path}: seq_id").astype(np.int64)
    finite = np.isfinite(poses).all(axis=(1, 2))
    if not finite.all():
        raise DatasetError(f"{path}: {(~finite).sum()} poses are not finite, the first is pose {finite.argmin()}")
    if len(np.unique(sequences)) < 2 or sequences.min() < 0:
        raise DatasetError(f"{path}: seq_id: numbers from 0 of at least two sequences are needed, one to score with")
    thigh = float(np.median(np.linalg.norm(poses[:, _KNEE] - poses[:, _HIP], axis=1)))
    height = float(np.median(poses[:, _HEAD, 2] - poses[:, _ANKLE, 2]))
    if not (0.2 < thigh < 0.8 and height > 0.5 and np.abs(poses[:, 0]).max() < 1e-3):
        raise DatasetError(
            f"{path}: expected metres, Z up, the pelvis at the origin and joints {', '.join(_JOINTS[:4])}, ...; "
            f"here the thigh is {thigh:.3g} long, and the head {height:.3g} above the ankle"
        )
    return poses, sequences


def split_sequences(sequences: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """(N,) which poses are held out: those of 15 % of the sequences, at least one, whole."""
    names = np.unique(sequences)
    count = max(round(_HELD_OUT * len(names)), 1)
    return np.isin(sequences, np.random.default_rng(seed).permutation(names)[:count])


def view(poses: Floats, rng: Generator, wide: float) -> tuple[Floats, Floats]:
    """Turn each pose, stand it before a camera, and take the picture.

    Args:
        poses: (N, 17, 3) metres, Z up.
        rng: Chooses yaw, tilt, distance, place in the picture, and focal length.
        wide: Share of cameras whose focal length is 0.6 to 2 picture widths instead of Human3.6M's 1.15; they are
            nearer, farther and more tilted too.

    Returns:
        Pixels (N, 17, 2) in a picture of ``IMAGE_WH``, and the pose (N, 17, 3) in the camera's frame, from the pelvis.
    """
    n = len(poses)
    like = rng.random(n) >= wide
    focal = np.where(like, rng.normal(1.15, 0.01, n), rng.uniform(0.6, 2, n))
    height = np.where(like, rng.uniform(0.3, 0.6, n), rng.uniform(0.25, 0.95, n))  # of a person, in picture widths
    distance = np.maximum(1.75 * focal / height, 1.8)
    place = rng.uniform(-1, 1, (n, 2)) * np.maximum(1 - height, 0.1)[:, None] * [1, 0.5]
    tilt, roll = np.radians(rng.normal(8, np.where(like, 6, 15))), np.radians(rng.normal(0, 2, n))
    body = poses @ _turn(rng.uniform(0, 2 * np.pi, n), 0, 1)
    body = np.stack([body[..., 0], -body[..., 2], body[..., 1]], axis=-1) @ _turn(tilt, 1, 2) @ _turn(roll, 0, 1)
    root = np.concatenate([place * (distance / (2 * focal))[:, None], distance[:, None]], axis=1)
    seen = body + root[:, None]
    screen = 2 * focal[:, None, None] * seen[..., :2] / np.maximum(seen[..., 2:], 0.3)
    xy = (screen + 1) / 2 * IMAGE_WH[0]
    return xy.astype(np.float32), body.astype(np.float32)


def other_bodies(poses: Floats, rng: Generator) -> Floats:
    """Poses (N, 17, 3) with other bone lengths, alike on both sides, half of them on the way to Human3.6M's bodies.

    Half of the poses are mirrored.
    """
    n = len(poses)
    share = np.where(rng.random(n) < 0.5, rng.random(n), 0)
    size, jitter = rng.uniform(0.85, 1.15, n), rng.normal(1, 0.07, (n, len(_FLIP)))
    bodies = np.zeros_like(poses)
    for parent, child in _BODY.edges:
        bone = poses[:, child] - poses[:, parent]
        length = _H36M_MM[_JOINTS[child].rpartition("_")[2]] / 1000
        towards = np.clip(length / np.maximum(np.linalg.norm(bone, axis=1), 1e-3), 0.5, 2) ** share
        factor = size * towards * jitter[:, min(child, _FLIP[child])]
        bodies[:, child] = bodies[:, parent] + bone * factor[:, None]
    mirrored = bodies[:, _FLIP] * np.array([-1, 1, 1], np.float32)
    return np.where(rng.random(n)[:, None, None] < 0.5, mirrored, bodies)


def noisy(xy: Floats, rng: Generator) -> Floats:
    """Pixels (N, 17, 2) as a 2D model finds them: up to 2 % of the body off, now and then 15 %, some lost (NaN)."""
    n, joints = xy.shape[:2]
    spread = np.clip(rng.uniform(-0.005, 0.02, (n, 1)), 0, None) + 0.15 * (rng.random((n, joints)) < 0.005)
    seen = xy + body_size(xy) * spread[:, :, None] * rng.standard_normal(xy.shape)
    lost = (rng.random((n, joints)) < 0.2) & (rng.random((n, 1)) < 0.2)
    lost &= (~lost).sum(axis=1, keepdims=True) >= FEWEST_JOINTS
    seen[lost] = np.nan
    return seen.astype(np.float32)


def body_size(xy: Floats) -> Floats:
    """(N, 1, 1) longer side of the box around each person."""
    return np.asarray(np.ptp(xy, axis=1).max(axis=1)[:, None, None])


def _turn(angle: NDArray[Any], a: int, b: int) -> NDArray[Any]:
    """Rotations (N, 3, 3) in the plane of two axes, for rows."""
    turn: NDArray[Any] = np.broadcast_to(np.eye(3), (len(angle), 3, 3)).copy()
    turn[:, a, a] = turn[:, b, b] = np.cos(angle)
    turn[:, a, b], turn[:, b, a] = np.sin(angle), -np.sin(angle)
    return turn
