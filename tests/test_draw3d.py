"""The panel with poses in space."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgepose import Poses
from edgepose.draw import limb_color
from edgepose.draw3d import draw_panel
from edgepose.sinks import VideoSink
from edgepose.skeletons import get_skeleton
from edgepose.sources import Frame, open_source

BODY = get_skeleton("h36m17")
GREEN, ORANGE = (
    limb_color(BODY, *(BODY.joints.index(f"{side}_{j}") for j in ("hip", "knee"))) for side in ("left", "right")
)


def person(count=1):
    """Standing straight, the camera sees the front: the left side is at x > 0, the left arm reaches to the camera."""
    heights = {"hip": 0, "knee": 0.44, "ankle": 0.88, "shoulder": -0.5, "elbow": -0.5, "wrist": -0.5}
    heights |= {"pelvis": 0, "spine": -0.23, "thorax": -0.5, "neck": -0.6, "head": -0.7}
    xyz = np.zeros((count, 17, 3), np.float32)
    for k, name in enumerate(BODY.joints):
        side = 0.15 * (name.startswith("left") - name.startswith("right"))
        xyz[:, k] = [side, heights[name.rpartition("_")[2]], 0]
    for name, depth in (("left_elbow", -0.3), ("left_wrist", -0.6)):
        xyz[:, BODY.joints.index(name), 2] = depth
    joints = np.zeros((count, 14, 2), np.float32)
    return Poses(joints, np.ones((count, 14)), np.zeros((count, 4)), "lsp14", None, xyz, "h36m17")


def where(panel, color):
    """Mean column of a colour, and how many pixels have it."""
    rows, columns = np.nonzero((panel == color).all(axis=-1))
    return columns.mean() if len(columns) else np.nan, len(rows)


def test_the_front_view_is_the_cameras_and_the_side_view_shows_depth():
    panel = draw_panel(person(), (300, 400))
    assert panel.shape == (400, 300, 3)
    front, side = panel[:200], panel[200:]
    assert where(front, GREEN)[0] > 155
    assert where(front, ORANGE)[0] < 145
    # The left arm reaches to the camera, which is on the right of the side view; in front it hides behind itself.
    arm = side[:70]
    assert np.nonzero((arm == GREEN).all(axis=-1))[1].max() > 190
    assert np.nonzero((front[:70] == GREEN).all(axis=-1))[1].max() < 175


def test_people_share_the_panel_and_those_who_cannot_be_lifted_are_left_out():
    two = draw_panel(person(2), (300, 400))
    assert where(two[:200, :150], GREEN)[1] > 20
    assert where(two[:200, 150:], GREEN)[1] > 20
    poses = person(2)
    poses.keypoints_xyz[0] = np.nan
    np.testing.assert_array_equal(draw_panel(poses, (300, 400)), draw_panel(person(1), (300, 400)))


@pytest.mark.parametrize("count", [0, 40])
def test_nobody_and_a_crowd_are_drawn(count):
    panel = draw_panel(person(count), (120, 90))
    assert (where(panel, GREEN)[1] > 0) == (count > 0)


def test_a_video_has_the_panel_beside_every_frame(tmp_path):
    frame = Frame(np.full((200, 320, 3), 90, np.uint8), 0, "f", 0.0)
    sink = VideoSink(tmp_path / "v.avi", 10)
    nobody = replace(Poses.empty("lsp14"), keypoints_xyz=np.zeros((0, 17, 3)), skeleton_xyz="h36m17")
    sink.write(frame, nobody)
    sink.write(frame, person())
    sink.close(True)
    written = [f.image_bgr for f in open_source(str(tmp_path / "v.avi"))]
    assert [image.shape for image in written] == [(200, 440, 3)] * 2
    assert np.abs(written[1][:, :320].astype(int) - 90)[:, 60:].mean() < 6
    assert (written[1][:, 320:].astype(int) - written[0][:, 320:]).std() > 2
