"""The crops on which a variant and the baseline differ, with both skeletons drawn."""

from __future__ import annotations

import base64

import cv2
import numpy as np
from numpy.typing import NDArray

from edgepose.calibration.evidence import Exhibit
from edgepose.skeletons import Skeleton

__all__ = ["BASELINE_RGB", "VARIANT_RGB", "draw_exhibit", "jpeg_uri"]

BASELINE_RGB, VARIANT_RGB = (60, 200, 255), (255, 128, 0)
_OUTLINE = (20, 20, 20)
_HEIGHT = 320


def draw_exhibit(exhibit: Exhibit, skeleton: Skeleton, threshold: float = 0.2) -> NDArray[np.uint8]:
    """The crop, 320 pixels high, RGB: the baseline in light blue, the variant in orange above it.

    Joints that score below the threshold have no dot, and their limbs are thin.
    """
    factor = _HEIGHT / exhibit.crop.shape[0]
    size = (max(1, round(exhibit.crop.shape[1] * factor)), _HEIGHT)
    canvas = np.ascontiguousarray(cv2.resize(exhibit.crop, size, interpolation=cv2.INTER_CUBIC), dtype=np.uint8)
    _draw(canvas, skeleton, _points(exhibit.baseline_xy, factor), exhibit.baseline_scores >= threshold, BASELINE_RGB)
    _draw(canvas, skeleton, _points(exhibit.variant_xy, factor), exhibit.variant_scores >= threshold, VARIANT_RGB)
    return canvas


def _points(keypoints_xy: NDArray[np.float32], factor: float) -> list[tuple[int, int] | None]:
    """Pixel centres of the enlarged crop; None for a joint that is nowhere."""
    scaled = (keypoints_xy + 0.5) * factor - 0.5
    return [
        (round(float(x)), round(float(y))) if np.isfinite([x, y]).all() else None
        for x, y in np.clip(scaled, -4096, 4096)
    ]


def _draw(
    canvas: NDArray[np.uint8],
    skeleton: Skeleton,
    points: list[tuple[int, int] | None],
    found: NDArray[np.bool_],
    color: tuple[int, int, int],
) -> None:
    for a, b in skeleton.edges:
        start, end = points[a], points[b]
        if start and end:
            both = found[a] and found[b]
            cv2.line(canvas, start, end, _OUTLINE, 4 if both else 2, cv2.LINE_AA)
            cv2.line(canvas, start, end, color, 2 if both else 1, cv2.LINE_AA)
    for point, seen in zip(points, found, strict=True):
        if point and seen:
            cv2.circle(canvas, point, 4, _OUTLINE, -1, cv2.LINE_AA)
            cv2.circle(canvas, point, 3, color, -1, cv2.LINE_AA)


def jpeg_uri(picture_rgb: NDArray[np.uint8]) -> str:
    """A picture as a data URI; full colour resolution, which thin coloured lines need."""
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        85,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    _, data = cv2.imencode(".jpg", picture_rgb[..., ::-1], options)
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")
