"""Several people, followed from frame to frame.

        regions() ──▶ poses ──▶ update() ──▶ people with track_ids
            ▲                      │
            └── next_region of each person's last pose
        with_detections(boxes): those regions, and one for each detection where nobody is followed

A person begins with a detection, and is followed by their own pose. Whoever is lost is waited for, for a while, and is
found again by a detection near the place. Who is who: ``association.py``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgepose.association import Candidates, Person, areas_of, insides, nearest, untangled
from edgepose.errors import EdgePoseError
from edgepose.geometry import boxes_around, regions_from_boxes, xywh_to_xyxy, xyxy_to_xywh
from edgepose.similarity import ious
from edgepose.types import ModelSpec, Poses

__all__ = ["Detector", "People"]

Floats = NDArray[np.float64]

_SAME_BOX = 0.45
"""IoU from which a detection is the box of someone who is followed."""

_INSIDE = 0.8
"""A detection is also a part of someone (or the reverse) if so much of the smaller box is in the larger."""

_SMALLEST_PART = 0.25
"""But not if its area is a smaller share of theirs: a child before an adult is nobody's part."""

_CONFIRM_S = 0.5
"""For so long a newcomer may have doubtful poses before they are confirmed."""

_LOOKS = 4
"""So often, at most, one looks for someone who is missing."""

_STEADY_S = 0.2
"""Time constant of a person's velocity."""


_LARGEST = 1e6
"""Pixels: coordinates beyond are damaged."""


class Detector(Protocol):
    """Finds people's boxes in a frame."""

    def detect(self, frame_bgr: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Boxes (N, 4) float32 x1, y1, x2, y2 in pixels of ``frame_bgr`` (h, w, 3), and scores (N,) float32."""
        ...


class People:
    """Follows the people of one video.

    For each frame ask for the regions (:meth:`regions`, or :meth:`with_detections` where a detector has looked), and
    hand the poses found there to :meth:`update`.
    """

    def __init__(self, spec: ModelSpec, *, most: int = 10, patience_s: float = 1.0) -> None:
        """Start with nobody.

        Args:
            spec: Of the pose model.
            most: So many people at most are followed.
            patience_s: How long someone who is not seen is waited for: some frames at least. After a longer pause
                between two frames everybody is new.

        Raises:
            EdgePoseError: ``most`` is less than one, or ``patience_s`` not positive.
        """
        if most < 1 or not patience_s > 0:
            raise EdgePoseError(f"people: expected most >= 1 and patience_s > 0, got {most} and {patience_s:g}")
        self._spec = spec
        self._most = most
        self._patience_s = patience_s
        self._ids = itertools.count()
        self._time_s = self._looked_s = -math.inf
        self._asked = 0
        self._followed: list[Person] = []
        self._missing: list[Person] = []

    @property
    def lost(self) -> bool:
        """Whether a detector should look at once: for someone who was lost since it last did, or is still missing."""
        return bool(self._missing) and self._time_s - self._looked_s >= self._patience_s / _LOOKS

    @property
    def count(self) -> int:
        """How many people are followed."""
        return len(self._followed)

    def regions(self) -> Floats:
        """Where the followed people are expected: (T, 4) cx, cy, w, h."""
        return self._ask(np.zeros((0, 4)))

    def with_detections(self, boxes_xyxy: ArrayLike, scores: ArrayLike) -> Floats:
        """The regions of the followed people, and of those detections that are none of them.

        Args:
            boxes_xyxy: (N, 4) x1, y1, x2, y2 pixels.
            scores: (N,): better ones come first, and count where there are too many.

        Returns:
            (M, 4) cx, cy, w, h; M is at most ``most``.

        Raises:
            EdgePoseError: The shapes do not fit.
        """
        boxes, order = _checked(boxes_xyxy, scores)
        taken = [_box(person.points[person.found]) for person in self._followed]
        news: list[Floats] = []
        for box in boxes[order]:
            if len(taken) >= self._most:
                break
            if not _covered(box, taken):
                taken.append(box)
                news.append(box)
        self._looked_s = self._time_s
        return self._ask(regions_from_boxes(xyxy_to_xywh(news), self._spec.aspect, self._spec.crop_padding))

    def update(self, poses: Poses, time_s: float, frame_wh: tuple[int, int] | None = None) -> Poses:
        """The people of a frame.

        Args:
            poses: One for each of the regions that were last asked for, in their order.
            time_s: When the frame was taken. If time goes back, or jumps by more than the patience, everybody is new.
            frame_wh: Size of the frame: whoever has more joints outside than in it has left.

        Returns:
            Those of the poses that are people, each one once, with ``track_ids``, oldest first. An id is never used
            again.

        Raises:
            EdgePoseError: There are more or fewer poses than regions.
        """
        if len(poses) != self._asked:
            raise EdgePoseError(f"people: {self._asked} regions were asked for, and {len(poses)} poses came")
        if not 0 <= time_s - self._time_s <= self._patience_s:
            self._followed, self._missing = [], []
        self._time_s = time_s
        self._missing = [person for person in self._missing if time_s - person.seen_s <= self._patience_s]
        if not len(poses):
            return replace(poses, track_ids=np.zeros(0, np.int64))
        frame = Candidates(poses, self._spec, frame_wh)
        who = frame.expected(self._followed, time_s)
        who |= frame.near(self._missing, [i for i in frame.distinct if i not in who], time_s)
        return self._settle(frame, untangled(frame, who, time_s))

    def _ask(self, new: Floats) -> Floats:
        regions = np.concatenate([*(person.region[None] for person in self._followed), new])
        self._asked = len(regions)
        return regions

    def _settle(self, frame: Candidates, who: dict[int, Person]) -> Poses:
        """Everybody's new state, given who the poses are."""
        seen = {i: self._seen(frame, i, person) for i, person in who.items()}
        seen |= {i: self._born(frame, i) for i in frame.distinct if i not in who and frame.strict[i]}
        self._miss(frame, {person.id for person in seen.values()})
        stay = {i: person for i, person in seen.items() if frame.strict[i] or not _doubtful(person)}
        rows = sorted(stay, key=lambda i: stay[i].id)
        self._followed = [stay[i] for i in rows]
        self._asked = len(rows)
        return replace(frame.poses[rows], track_ids=np.array([person.id for person in self._followed], np.int64))

    def _miss(self, frame: Candidates, seen: set[int]) -> None:
        """Wait for those who were confirmed, are in none of the poses, and have not left the frame."""
        others = [person for person in self._followed if person.id in seen]
        gone = [
            replace(person, rival=nearest(person, others))
            for row, person in enumerate(self._followed)
            if person.id not in seen and person.confirmed and not frame.outside[row]
        ]
        if gone:
            self._looked_s = -math.inf
        self._missing = [person for person in self._missing if person.id not in seen] + gone

    def _born(self, frame: Candidates, i: int) -> Person:
        return Person(next(self._ids), *frame.place(i), np.zeros(2), self._time_s, self._time_s, 1)

    def _seen(self, frame: Candidates, i: int, person: Person) -> Person:
        points, found, region = frame.place(i)
        both, dt_s = found & person.found, self._time_s - person.seen_s
        velocity = person.velocity
        if both.any() and dt_s > 0:
            speed = np.median((points - person.points)[both], axis=0) / dt_s
            velocity = velocity + dt_s / (dt_s + _STEADY_S) * (speed - velocity)
        sure = person.sure + bool(frame.strict[i])
        return Person(person.id, points, found, region, velocity, self._time_s, person.born_s, sure)


def _doubtful(person: Person) -> bool:
    """Whether someone should have been confirmed by now."""
    return not person.confirmed and person.seen_s - person.born_s > _CONFIRM_S


def _box(points: Floats) -> Floats:
    """(4,) x1, y1, x2, y2 around joints."""
    return np.asarray(xywh_to_xyxy(boxes_around(points))[0])


def _checked(boxes_xyxy: ArrayLike, scores: ArrayLike) -> tuple[Floats, NDArray[np.int64]]:
    """Boxes (N, 4), and the rows of those that have an area and sane coordinates, best first."""
    boxes, found = np.asarray(boxes_xyxy, float), np.asarray(scores, float)
    boxes = boxes.reshape(0, 4) if not boxes.size else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4 or found.shape != (len(boxes),):
        raise EdgePoseError(
            f"detections: expected boxes (N, 4) x1, y1, x2, y2 and scores (N,), got {boxes.shape} and {found.shape}"
        )
    usable = (np.abs(boxes) < _LARGEST).all(axis=1) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    order = np.argsort(-found, kind="stable")
    return boxes, order[usable[order]]


def _covered(box_xyxy: Floats, taken_xyxy: Sequence[Floats]) -> bool:
    """Whether a box (4,) is that of someone whose box is taken, or of a part of them."""
    if not taken_xyxy:
        return False
    box, taken = box_xyxy[None], np.array(taken_xyxy)
    area, areas = areas_of(box), areas_of(taken)
    alike = np.minimum(area, areas) >= _SMALLEST_PART * np.maximum(area, areas)
    part = alike & (insides(box, taken)[0] >= _INSIDE)
    return bool((part | (ious(box, taken)[0] >= _SAME_BOX)).any())
