"""Draw poses on a frame."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from edgepose.skeletons import Skeleton, get_skeleton
from edgepose.types import Poses

__all__ = ["JOINT", "OUTLINE", "draw_poses", "draw_text", "limb_color"]

_LEFT, _RIGHT, _MIDDLE = (80, 220, 60), (60, 130, 255), (255, 200, 60)  # BGR
JOINT, OUTLINE = (255, 255, 255), (30, 30, 30)


def draw_poses(frame_bgr: NDArray[np.uint8], poses: Poses, threshold: float = 0.2) -> NDArray[np.uint8]:
    """A copy of the frame with skeletons: left limbs green, right limbs orange, others blue.

    Args:
        frame_bgr: (h, w, 3) uint8.
        poses: People in pixels of this frame.
        threshold: Joints that score less are left out, and so are their limbs.
    """
    canvas = frame_bgr.copy()
    skeleton = get_skeleton(poses.skeleton)
    for keypoints, scores, box in zip(poses.keypoints_xy, poses.scores, poses.boxes_xyxy, strict=True):
        width = max(2, round(float(box[3] - box[1]) / 110))
        points = [(round(float(x)), round(float(y))) for x, y in np.clip(keypoints, -9999, 9999)]
        limbs = [edge for edge in skeleton.edges if min(scores[list(edge)]) >= threshold]
        for thickness, outline in ((width + 2, True), (width, False)):
            for a, b in limbs:
                color = OUTLINE if outline else limb_color(skeleton, a, b)
                cv2.line(canvas, points[a], points[b], color, thickness, cv2.LINE_AA)
        for point, score in zip(points, scores, strict=True):
            if score >= threshold:
                cv2.circle(canvas, point, width + 1, OUTLINE, -1, cv2.LINE_AA)
                cv2.circle(canvas, point, width, JOINT, -1, cv2.LINE_AA)
    return np.asarray(canvas, dtype=np.uint8)


def draw_text(canvas: NDArray[np.uint8], text: str) -> None:
    """Write one line of ASCII text on a dark bar at the top left, in place."""
    scale = max(0.45, canvas.shape[0] / 1000)
    font, pad = cv2.FONT_HERSHEY_SIMPLEX, round(10 * scale)
    (width, height), below = cv2.getTextSize(text, font, scale, 1)
    cv2.rectangle(canvas, (0, 0), (width + 2 * pad, height + below + 2 * pad), OUTLINE, -1)
    cv2.putText(canvas, text, (pad, height + pad), font, scale, (255, 255, 255), 1, cv2.LINE_AA)


def limb_color(skeleton: Skeleton, a: int, b: int) -> tuple[int, int, int]:
    """BGR of the limb between two joints: green on the left side of the body, orange on the right, blue between."""
    names = {skeleton.joints[a].split("_")[0], skeleton.joints[b].split("_")[0]}
    if "left" in names and "right" not in names:
        return _LEFT
    return _RIGHT if "right" in names and "left" not in names else _MIDDLE
