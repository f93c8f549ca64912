"""A frame as people see it: skeletons, a caption, and poses in space beside."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgepose.draw import draw_poses, draw_text
from edgepose.draw3d import draw_panel
from edgepose.types import Poses

__all__ = ["annotated"]

_PANEL = 0.6  # width of the panel with poses in space, in heights of the picture


def annotated(
    frame_bgr: NDArray[np.uint8], poses: Poses, threshold: float = 0.2, caption: str = ""
) -> NDArray[np.uint8]:
    """A copy (h, w', 3) uint8 BGR of a frame with its poses, wider by a panel where they are lifted.

    Args:
        frame_bgr: (h, w, 3) uint8.
        poses: Of that frame.
        threshold: Joints that score less are not drawn.
        caption: One line of ASCII text.
    """
    canvas = draw_poses(frame_bgr, poses, threshold)
    if poses.skeleton_xyz is not None:
        height = canvas.shape[0]
        panel = draw_panel(poses, (round(_PANEL * height) // 2 * 2, height))
        canvas = np.asarray(np.hstack([canvas, panel]), np.uint8)
    if caption:
        draw_text(canvas, caption)
    return canvas
