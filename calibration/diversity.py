"""A deterministic order of pictures in which each is as different as can be from those before it."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["DUPLICATE", "RULE", "THUMBNAIL", "diverse_order", "thumbnail"]

THUMBNAIL = 16
DUPLICATE = 0.5
"""Thumbnails closer than this, in grey levels (root mean square), are one picture twice."""

RULE = (
    f"farthest-point order of {THUMBNAIL}x{THUMBNAIL} grey thumbnails, root mean square distance; "
    f"nearer than {DUPLICATE:g} grey levels to one that is taken: a duplicate"
)


def thumbnail(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What a picture (h, w, 3) uint8 looks like from afar: (256,) float32 grey levels 0-255."""
    small = cv2.resize(image, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    return np.asarray(np.asarray(small, np.float32).mean(axis=2).ravel(), np.float32)


def diverse_order(thumbnails: ArrayLike) -> list[int]:
    """Indices by farthest-point traversal (Gonzalez 1985), near-duplicates left out.

    Args:
        thumbnails: (N, D) grey levels; the first is taken first.

    Returns:
        At most N indices: each is the one furthest from all before it.
    """
    points = np.asarray(thumbnails, np.float32)
    if not len(points):
        return []
    order = [0]
    nearest = _distance(points, points[0])
    while len(order) < len(points):
        best = int(nearest.argmax())
        if nearest[best] < DUPLICATE:
            break
        order.append(best)
        nearest = np.minimum(nearest, _distance(points, points[best]))
    return order


def _distance(points: NDArray[np.float32], one: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(np.sqrt(np.square(points - one).mean(axis=1)), np.float32)
