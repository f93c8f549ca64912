"""What edgepose asks of OpenCV for a crop, in numpy: there is no OpenCV wheel for 32-bit ARM."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

INTER_LINEAR = 1
WARP_INVERSE_MAP = 16
COLOR_BGR2RGB = 4


def warpAffine(  # noqa: N802 - OpenCV's name
    image: NDArray[np.uint8], to_image: NDArray[np.float64], size_wh: tuple[int, int], flags: int
) -> NDArray[np.uint8]:
    """Bilinear, black outside the image."""
    x, y = np.meshgrid(np.arange(size_wh[0]), np.arange(size_wh[1]))
    u, v = (row[0] * x + row[1] * y + row[2] for row in to_image)
    left, top = np.floor(u).astype(int), np.floor(v).astype(int)
    answer = np.zeros((size_wh[1], size_wh[0], 3))
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        column, row = left + dx, top + dy
        weight = (1 - np.abs(u - column)) * (1 - np.abs(v - row))
        inside = (column >= 0) & (column < image.shape[1]) & (row >= 0) & (row < image.shape[0])
        answer[inside] += weight[inside, None] * image[row[inside], column[inside]]
    return np.rint(answer).astype(np.uint8)


def cvtColor(image: NDArray[np.uint8], code: int, dst: NDArray[np.uint8]) -> None:  # noqa: N802 - OpenCV's name
    """BGR to RGB."""
    dst[:] = image[..., ::-1]
