"""Boxes, regions and affine maps, in plain numpy.

Conventions, all from the top-down protocol of the TransPose and Simple Baselines code (docs/architecture.md,
"Pixels"): coordinates are pixel *centres*, so an image is ``size - 1`` units wide and the centre of a crop is
``((W - 1) / 2, (H - 1) / 2)``. A *region* is a ``(4,)`` float array ``cx, cy, w, h`` in image pixels, already
grown to the model's aspect ratio and padding: exactly what becomes a crop.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "boxes_around",
    "clip_boxes_xywh",
    "regions_from_boxes",
    "scale_and_shift",
    "xywh_to_xyxy",
    "xyxy_to_xywh",
]

Floats = NDArray[np.float64]


def xywh_to_xyxy(boxes_xywh: ArrayLike) -> Floats:
    """Boxes (N, 4) as x, y, width, height -> x1, y1, x2, y2."""
    boxes = np.array(boxes_xywh, dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def xyxy_to_xywh(boxes_xyxy: ArrayLike) -> Floats:
    """Boxes (N, 4) as x1, y1, x2, y2 -> x, y, width, height."""
    boxes = np.array(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


def clip_boxes_xywh(boxes_xywh: ArrayLike, image_wh: tuple[int, int]) -> Floats:
    """Clip boxes (N, 4) to the image as the COCO top-down protocol does; empty ones come back as NaN rows.

    x1 = max(0, x); x2 = min(W - 1, x1 + max(0, w - 1)); the width is x2 - x1 + 1; likewise in y.
    """
    boxes = np.array(boxes_xywh, dtype=np.float64).reshape(-1, 4)
    size = np.array(image_wh, dtype=np.float64)
    top_left = np.maximum(boxes[:, :2], 0)
    bottom_right = np.minimum(size - 1, top_left + np.maximum(boxes[:, 2:] - 1, 0))
    clipped = np.concatenate([top_left, bottom_right - top_left + 1], axis=1)
    empty = (boxes[:, 2:] <= 0).any(axis=1) | (bottom_right < top_left).any(axis=1)
    clipped[empty] = np.nan
    return clipped


def regions_from_boxes(boxes_xywh: ArrayLike, aspect: float, padding: float) -> Floats:
    """Grow boxes (N, 4) to the crop's aspect ratio, then by ``padding``.

    Args:
        boxes_xywh: x, y, width, height in image pixels.
        aspect: Crop width / height.
        padding: Factor on both sides, 1.25 in the published models.

    Returns:
        Regions (N, 4): cx, cy, w, h in image pixels. The centre is that of the pixel centres, x + (w - 1) / 2.
    """
    boxes = np.asarray(boxes_xywh, dtype=np.float64).reshape(-1, 4)
    x, y, w, h = boxes.T
    width = np.maximum(w, h * aspect)
    return np.stack([x + (w - 1) / 2, y + (h - 1) / 2, width * padding, width / aspect * padding], axis=1)


def scale_and_shift(regions: ArrayLike, size_wh: tuple[int, int]) -> tuple[Floats, Floats]:
    """The affine maps from crop (or heatmap) pixels of ``size_wh`` to image pixels: x * scale + shift.

    The pixel-centre extent ``size - 1`` of the crop lands on ``size - 1`` of the region. Both axes share the
    width's scale, as in the reference: heights differ by less than a pixel.

    Args:
        regions: (N, 4) cx, cy, w, h in image pixels.
        size_wh: Width and height of the crop or heatmap.

    Returns:
        Scales (N,) and shifts (N, 2).
    """
    boxes = np.asarray(regions, dtype=np.float64).reshape(-1, 4)
    width, height = size_wh
    scale = np.maximum(boxes[:, 2] - 1, 1) / (width - 1)  # a box below a pixel must not mirror its crop
    return scale, boxes[:, :2] - scale[:, None] * np.array([(width - 1) / 2, (height - 1) / 2])


def boxes_around(points_xy: ArrayLike) -> Floats:
    """Smallest box xywh (4,) around points (K, 2); NaN without points."""
    points = np.asarray(points_xy, dtype=np.float64).reshape(-1, 2)
    if not len(points):
        return np.full(4, np.nan)
    low, high = points.min(axis=0), points.max(axis=0)
    return np.concatenate([low, high - low])
