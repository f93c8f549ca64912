"""How alike two poses are, and two boxes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["intersections", "ious", "oks"]

Floats = NDArray[np.float64]


def oks(truth_xy: ArrayLike, other_xy: ArrayLike, area_px: ArrayLike, sigmas: Sequence[float]) -> Floats:
    """Object keypoint similarity of each joint: exp(-d^2 / (2 area (2 sigma)^2)) (COCO keypoint evaluation).

    Args:
        truth_xy, other_xy: (..., K, 2) pixels.
        area_px: (...) person's area in square pixels.
        sigmas: K per-joint constants.

    Returns:
        (..., K) in 0-1. The similarity of a person is the mean over joints that count.
    """
    squared = ((np.asarray(truth_xy, float) - np.asarray(other_xy, float)) ** 2).sum(axis=-1)
    variance = (2 * np.asarray(sigmas)) ** 2
    area = np.asarray(area_px, float)[..., None] + np.spacing(1)
    return np.asarray(np.exp(-squared / (2 * area * variance)))


def intersections(a_xyxy: ArrayLike, b_xyxy: ArrayLike) -> Floats:
    """(N, M) areas that boxes (N, 4) and (M, 4) x1, y1, x2, y2 have in common."""
    a = np.asarray(a_xyxy, float).reshape(-1, 1, 4)
    b = np.asarray(b_xyxy, float).reshape(1, -1, 4)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    return np.asarray(np.maximum(sides, 0).prod(axis=-1))


def ious(a_xyxy: ArrayLike, b_xyxy: ArrayLike) -> Floats:
    """(N, M) intersection over union of boxes (N, 4) and (M, 4) x1, y1, x2, y2."""
    shared = intersections(a_xyxy, b_xyxy)
    a, b = (np.asarray(boxes, float).reshape(-1, 4) for boxes in (a_xyxy, b_xyxy))
    area_a, area_b = ((boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a, b))
    return np.asarray(shared / np.maximum(area_a[:, None] + area_b - shared, np.finfo(float).tiny))
