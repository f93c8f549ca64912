"""Poses in space on a panel beside the picture: seen as the camera sees them, and from the side. Orthographic."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from edgepose.draw import JOINT, OUTLINE, limb_color
from edgepose.skeletons import Skeleton, get_skeleton
from edgepose.types import Poses

__all__ = ["draw_panel"]

_PANEL, _GRID, _TEXT = (34, 30, 28), (58, 52, 50), (170, 160, 155)  # BGR
_HEIGHT_M = 2.1  # of a view: a tall person with raised arms nearly fits
_PELVIS = 0.5  # of a view's height: where the pelvis is
_STEP_M = 0.5  # of the grid
_MOST = 4  # people; more would be too small to see
_VIEWS = (("from the camera", 0, 1.0), ("from the side", 2, -1.0))
"""Name, the axis that points right on the panel, and its sign; the camera's y points down, as on the panel.

In the side view the camera is on the right.
"""


def draw_panel(poses: Poses, size_wh: tuple[int, int]) -> NDArray[np.uint8]:
    """A picture (h, w, 3) uint8 BGR of the people in space: one column for each, two views one above the other.

    Everyone is centred on the pelvis: a lifting model does not know where people stand. A grid line is half a metre.

    Args:
        poses: With ``keypoints_xyz``; people who could not be lifted are left out.
        size_wh: Of the panel.
    """
    width, height = size_wh
    canvas = np.full((height, width, 3), _PANEL, np.uint8)
    people = _lifted(poses)[:_MOST]
    skeleton = get_skeleton(poses.skeleton_xyz or poses.skeleton)
    for row, (name, axis, sign) in enumerate(_VIEWS):
        top, bottom = row * height // 2, (row + 1) * height // 2
        cell = canvas[top:bottom]
        _draw_grid(cell)
        for i, xyz in enumerate(people):
            left, right = i * width // len(people), (i + 1) * width // len(people)
            _draw_person(cell[:, left:right], skeleton, np.column_stack([sign * xyz[:, axis], xyz[:, 1]]), xyz, axis)
        _draw_label(cell, name)
    cv2.line(canvas, (0, height // 2), (width, height // 2), _TEXT, 1)
    return canvas


def _lifted(poses: Poses) -> NDArray[np.float32]:
    """(N, K, 3) of those who could be lifted."""
    if poses.keypoints_xyz is None:
        return np.zeros((0, 0, 3), np.float32)
    whole: NDArray[np.float32] = poses.keypoints_xyz[np.isfinite(poses.keypoints_xyz).all(axis=(1, 2))]
    return whole


def _draw_grid(cell: NDArray[np.uint8]) -> None:
    """Lines half a metre apart, from the pelvis outwards."""
    height, width = cell.shape[:2]
    step = height / _HEIGHT_M * _STEP_M
    for i in range(-8, 9):
        x, y = round(width / 2 + i * step), round(height * _PELVIS + i * step)
        cv2.line(cell, (x, 0), (x, height), _GRID, 1)
        cv2.line(cell, (0, y), (width, y), _GRID, 1)


def _draw_person(
    cell: NDArray[np.uint8], skeleton: Skeleton, plane: NDArray[np.float32], xyz: NDArray[np.float32], axis: int
) -> None:
    """One person's view, what is far away first; ``plane`` (K, 2) metres to the right and down."""
    height, width = cell.shape[:2]
    scale = min(height, 1.3 * width) / _HEIGHT_M
    points = np.rint(plane * scale + [width / 2, height * _PELVIS]).clip(-9999, 9999).astype(int)
    nearness = -xyz[:, 2 - axis]
    thick = max(2, round(height / 90))
    for a, b in sorted(skeleton.edges, key=lambda edge: nearness[list(edge)].mean()):
        ends = tuple(map(int, points[a])), tuple(map(int, points[b]))
        cv2.line(cell, *ends, OUTLINE, thick + 2, cv2.LINE_AA)
        cv2.line(cell, *ends, limb_color(skeleton, a, b), thick, cv2.LINE_AA)
    for x, y in points:
        cv2.circle(cell, (int(x), int(y)), thick, JOINT, -1, cv2.LINE_AA)


def _draw_label(cell: NDArray[np.uint8], name: str) -> None:
    scale = max(0.4, cell.shape[0] / 700)
    cv2.putText(cell, name, (8, cell.shape[0] - 8), cv2.FONT_HERSHEY_SIMPLEX, scale, _TEXT, 1, cv2.LINE_AA)
