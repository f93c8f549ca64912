"""Frame + regions -> crops: the only host-side pre-processing. Colour order, mean and std are in the model."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgepose.geometry import scale_and_shift

__all__ = ["crop"]


def crop(frame_bgr: NDArray[np.uint8], regions: ArrayLike, size_wh: tuple[int, int]) -> NDArray[np.uint8]:
    """Cut regions out of a frame: one affine warp each, bilinear, black outside the frame.

    Args:
        frame_bgr: (h, w, 3) uint8, BGR as OpenCV reads it.
        regions: (N, 4) cx, cy, w, h in frame pixels (``geometry.regions_from_boxes``).
        size_wh: Width and height of a crop.

    Returns:
        (N, H, W, 3) uint8 **RGB** crops, C-contiguous: the ``image`` input of every 2D artifact.
    """
    boxes = np.asarray(regions, dtype=np.float64).reshape(-1, 4)
    width, height = size_wh
    crops = np.empty((len(boxes), height, width, 3), dtype=np.uint8)
    for out, scale, (x, y) in zip(crops, *scale_and_shift(boxes, size_wh), strict=True):
        to_frame = np.array([[scale, 0, x], [0, scale, y]])
        warped = cv2.warpAffine(frame_bgr, to_frame, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        cv2.cvtColor(warped, cv2.COLOR_BGR2RGB, dst=out)
    return crops
