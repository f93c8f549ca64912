"""2D keypoints of any skeleton -> the input of a lifting model, in plain numpy.

Two normalisations, and a model knows one (``ModelSpec.normalisation``):

``screen``: x / w * 2 - 1 and y / w * 2 - h / w, with the picture's width w and height h: x runs from -1 to 1, both axes
have one scale, and the optical axis is (0, 0). Where in the picture a person stands stays known, so perspective can be
undone; the pictures must be whole, not crops. Back: x = (u + 1) * w / 2, y = (v + h / w) * w / 2.

``bbox``: relative to the pelvis (where that is missing, to the middle of the box around the known joints), divided by
half the longer side of that box. Needs no picture size. What was subtracted and divided by is gone: it is not to be had
back from the model's input.

A **missing joint** is NaN in the picture's pixels and ``MISSING`` in a model's input. There the model puts an embedding
that it has learned for that joint. It is a number, since neither quantized nor half-precision engines keep a NaN, and
it is far from every picture, since zero would be a joint in the middle of it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgepose.errors import EdgePoseError
from edgepose.skeletons import get_skeleton, skeleton_map
from edgepose.types import NORMALISATIONS

__all__ = ["FEWEST_JOINTS", "MISSING", "liftable", "map_joints", "mirror", "normalise"]

Floats = NDArray[np.float32]

MISSING = -10.0
"""Both coordinates of a missing joint in a model's input."""

FEWEST_JOINTS = 6
"""So many joints must be known: from fewer, a pose is invented rather than lifted."""

_FARTHEST = 8.0
"""Normalised coordinates end here, at four picture widths from the centre; beyond it lies ``MISSING``."""


def map_joints(keypoints_xy: ArrayLike, source: str, target: str = "h36m17") -> Floats:
    """Keypoints of one skeleton as those of another.

    Args:
        keypoints_xy: (N, K, 2) picture pixels in the order of ``source``; NaN where a joint is missing.
        source, target: Names of skeletons.

    Returns:
        (N, K', 2) float32 in the order of ``target``. A joint is NaN where any that it is made from is missing.

    Raises:
        EdgePoseError: There is no map between the skeletons, or the number of joints is not that of ``source``.
    """
    joints = skeleton_map(source, target)
    points = np.asarray(keypoints_xy, np.float64)
    expected = len(get_skeleton(source).joints)
    if points.ndim != 3 or points.shape[1:] != (expected, 2):
        raise EdgePoseError(f"lifting: expected keypoints (N, {expected}, 2) for {source}, got {points.shape}")
    weights = np.zeros((len(joints.rows), expected))
    for i, row in enumerate(joints.rows):
        for index, weight in row:
            weights[i, index] = weight
    known = _known(points)
    mapped = weights @ np.where(known[:, :, None], points, 0)
    lost = (~known).astype(float) @ (weights != 0).T > 0
    mapped[lost | ~weights.any(axis=1)] = np.nan
    return mapped.astype(np.float32)


def liftable(keypoints_xy: ArrayLike) -> NDArray[np.bool_]:
    """(N,) which people have at least ``FEWEST_JOINTS`` known joints, not all in one place.

    Args:
        keypoints_xy: (N, K, 2) pixels in a lifting model's order; NaN where a joint is missing.
    """
    points = np.asarray(keypoints_xy, np.float64)
    known = _known(points)
    low, high = _ends(points, known)
    return np.asarray((known.sum(axis=1) >= FEWEST_JOINTS) & (high - low > 0).any(axis=1))


def normalise(keypoints_xy: ArrayLike, image_wh: tuple[float, float], how: str) -> Floats:
    """Keypoints in pixels -> the ``keypoints`` input of a lifting model.

    Args:
        keypoints_xy: (N, K, 2) pixels of the whole picture, in the model's order; NaN where a joint is missing.
        image_wh: Width and height of the picture.
        how: ``ModelSpec.normalisation``: see the module.

    Returns:
        (N, K, 2) float32; ``MISSING`` where a joint is missing.

    Raises:
        EdgePoseError: Someone is not :func:`liftable`, or there is no such normalisation or picture.
    """
    points = np.asarray(keypoints_xy, np.float64)
    known = _known(points)
    if how not in NORMALISATIONS or min(image_wh) <= 0:
        raise EdgePoseError(f"lifting: no normalisation {how!r} for a picture of {image_wh[0]}x{image_wh[1]}")
    unfit = np.flatnonzero(~liftable(points))
    if len(unfit):
        raise EdgePoseError(
            f"lifting: person {unfit[0]} has {known[unfit[0]].sum()} of {points.shape[1]} joints; "
            f"at least {FEWEST_JOINTS} in different places are needed"
        )
    scaled = _screen(points, image_wh) if how == "screen" else _bbox(points, known)
    return np.where(known[:, :, None], np.clip(scaled, -_FARTHEST, _FARTHEST), MISSING).astype(np.float32)


def mirror(keypoints: Floats, skeleton: str = "h36m17") -> Floats:
    """A model's input or answer of the mirrored picture: x changes sign, left and right trade places.

    Args:
        keypoints: (N, K, 2) from :func:`normalise`, or (N, K, 3) metres.
        skeleton: Name of the joints' order.
    """
    mirrored: Floats = keypoints[:, list(get_skeleton(skeleton).flip_order)].copy()
    mirrored[..., 0] *= np.where(mirrored[..., 0] == MISSING, 1, -1)
    return mirrored


def _known(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(N, K) which joints are there."""
    return np.asarray(np.isfinite(points).all(axis=2), bool)


def _screen(points: NDArray[np.float64], image_wh: tuple[float, float]) -> NDArray[np.float64]:
    w, h = image_wh
    return np.asarray(points / w * 2 - np.array([1, h / w]))


def _bbox(points: NDArray[np.float64], known: NDArray[np.bool_]) -> NDArray[np.float64]:
    low, high = _ends(points, known)
    root = np.where(known[:, :1], points[:, 0], (low + high) / 2)
    half = (high - low).max(axis=1) / 2
    return np.asarray((points - root[:, None]) / half[:, None, None])


def _ends(points: NDArray[np.float64], known: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Corners (N, 2) of the box around the known joints; infinite without any."""
    mask = known[:, :, None]
    return np.where(mask, points, np.inf).min(axis=1), np.where(mask, points, -np.inf).max(axis=1)
