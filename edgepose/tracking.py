"""One person without a detector: search the frame, zoom in, then follow the last pose.

The pose model itself is the detector. A few overlapping windows cover the frame; those with the best mean
joint score are zoomed into twice; what still scores like a person is one. While it does, the next frame's
region comes from this frame's joints, as single-person trackers do.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgepose.geometry import boxes_around, regions_from_boxes
from edgepose.types import ModelSpec, Poses

__all__ = ["Follower", "find_person", "looks_like_a_person", "next_region", "search_windows"]

Frame = NDArray[np.uint8]
Regions = NDArray[np.float64]
PosesAt = Callable[[Frame, Regions], Poses]
"""Poses of one frame in the given regions, one person for each region."""

_CANDIDATES = 3
_ZOOMS = 2
_MIN_JOINTS = 4
_START = 1.25  # a search must do better than a person who is already followed: fewer ghosts in empty rooms
_SLACK = 1.1  # joints end before the body does (hands, feet, crown), and the person moves


def search_windows(frame_wh: tuple[int, int], aspect: float) -> Regions:
    """The whole frame, and windows of the model's aspect ratio that overlap by half: (M, 4) cx, cy, w, h."""
    width, height = frame_wh
    w, h = min(width, height * aspect), min(height, width / aspect)
    columns = np.linspace(w / 2, width - w / 2, int(np.ceil((width - w) / (w / 2))) + 1)
    rows = np.linspace(h / 2, height - h / 2, int(np.ceil((height - h) / (h / 2))) + 1)
    whole = max(width, height * aspect)
    windows = [[width / 2, height / 2, whole, whole / aspect]]
    windows += [[x, y, w, h] for y in rows for x in columns]
    return np.unique(np.array(windows), axis=0)


def next_region(poses: Poses, person: int, spec: ModelSpec) -> Regions:
    """Region (1, 4) around a person's best joints: those above the score threshold, but at least four."""
    scores = poses.scores[person]
    threshold = min(spec.score_threshold, np.sort(scores)[-_MIN_JOINTS])
    x, y, w, h = boxes_around(poses.keypoints_xy[person][scores >= threshold])
    slack_w, slack_h = w * (_SLACK - 1), h * (_SLACK - 1)
    box = [x - slack_w / 2, y - slack_h / 2, w + slack_w, h + slack_h]
    return regions_from_boxes(np.maximum(box, [-np.inf, -np.inf, 8, 8]), spec.aspect, spec.crop_padding)


def looks_like_a_person(poses: Poses, spec: ModelSpec, *, followed: bool = False) -> NDArray[np.bool_]:
    """(N,) whether the mean joint score reaches the model's threshold, and a quarter more unless already followed."""
    threshold = spec.score_threshold * (1 if followed else _START)
    return np.asarray(poses.scores.mean(axis=1) >= threshold)


def find_person(frame: Frame, poses_at: PosesAt, spec: ModelSpec) -> Poses:
    """Best pose in a frame, whether or not it looks like a person: always one.

    Args:
        frame: (h, w, 3) uint8.
        poses_at: Runs the model.
        spec: Gives the aspect ratio and the score threshold.
    """
    h, w = frame.shape[:2]
    poses = _best(poses_at(frame, search_windows((w, h), spec.aspect)), _CANDIDATES)
    for _ in range(_ZOOMS):
        regions = [next_region(poses, person, spec) for person in range(len(poses))]
        poses = poses_at(frame, np.concatenate(regions))
    return _best(poses, 1)


def _best(poses: Poses, count: int) -> Poses:
    return poses[np.argsort(-poses.scores.mean(axis=1), kind="stable")[:count]]


class Follower:
    """Follows one person through the frames of a video.

    Call it with each frame in turn; or look at ``region`` first, and hand the poses found there to :meth:`settle`.

    Attributes:
        region: Where the person is expected, (1, 4) cx, cy, w, h; None while nobody is followed.
    """

    def __init__(self, poses_at: PosesAt, spec: ModelSpec) -> None:
        self._poses_at = poses_at
        self._spec = spec
        self.region: Regions | None = None

    def __call__(self, frame: Frame) -> Poses:
        """The person in this frame, or nobody."""
        return self.settle(frame, self.region, None if self.region is None else self._poses_at(frame, self.region))

    def settle(self, frame: Frame, region: Regions | None, poses: Poses | None) -> Poses:
        """The person in a frame, or nobody, given what was found where the person was expected.

        Where that is nobody, the latest region is tried if it is another (a frame may have been settled in between),
        and then the frame is searched.

        Args:
            frame: (h, w, 3) uint8.
            region: What ``region`` was; None where nobody was expected.
            poses: Found there.
        """
        if poses is not None and len(found := self._people(poses, followed=True)):
            return self._kept(found)
        if self.region is not None and self.region is not region:
            found = self._people(self._poses_at(frame, self.region), followed=True)
            if len(found):
                return self._kept(found)
        return self._kept(self._people(find_person(frame, self._poses_at, self._spec), followed=False))

    def _people(self, poses: Poses, followed: bool) -> Poses:
        return poses[looks_like_a_person(poses, self._spec, followed=followed)]

    def _kept(self, poses: Poses) -> Poses:
        self.region = next_region(poses, 0, self._spec) if len(poses) else None
        return poses
