"""Who is who: the poses of one frame against the people who were there before.

Poses that are alike are one person (regions that have run together). Someone who is followed is the pose that looks
most like what was expected of them, by OKS, and rather the one of their own region. Someone who was lost is a pose near
where they were last, or were heading.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgepose.similarity import intersections, oks
from edgepose.tracking import looks_like_a_person, next_region
from edgepose.types import ModelSpec, Poses

__all__ = ["Candidates", "Person", "areas_of", "insides", "nearest", "untangled"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_COPY = 0.8
"""OKS of the better half of the joints from which two poses of one frame are one person. Not of all joints: two crops
of one person often differ in an arm or a leg."""

_EXPECTED = 0.5
"""OKS from which a pose of another's region is taken for someone who was expected there."""

_OWN = 0.3
"""What a pose of a person's own region is ahead of others: more than ``_CLOSE``."""

_NEAR = 0.5
"""So much of the smaller region lies in the other where a newcomer may be someone who was lost: the last poses before
a person is lost are often a part of them only."""

_SLIPPED = 0.6
"""People have changed places if, that way round, they are nearer to where they were heading by that factor."""

_CLOSE = 0.05
"""Two people fit a pose alike if the difference is smaller: then it is the older one's."""

_CONFIRMATIONS = 3
_MIN_JOINTS = 4


@dataclass(frozen=True)
class Person:
    """Someone who is followed, or lost.

    Attributes:
        id: Never another's.
        points: (K, 2) pixels, when last seen.
        found: (K,) which joints were found then.
        region: (4,) cx, cy, w, h around them.
        velocity: (2,) pixels per second.
        seen_s: When last seen.
        born_s: When first seen.
        sure: How often the pose would have done for a newcomer.
        rival: Of someone lost: who was followed nearby, as they were then. Poses slip from one to the other.
    """

    id: int
    points: Floats
    found: Bools
    region: Floats
    velocity: Floats
    seen_s: float
    born_s: float
    sure: int
    rival: Person | None = None

    @property
    def confirmed(self) -> bool:
        """Whether this is a person for sure."""
        return self.sure >= _CONFIRMATIONS

    def moved(self, time_s: float) -> Floats:
        """(2,) pixels that the person has moved since, if nothing changed."""
        return self.velocity * (time_s - self.seen_s)

    def ahead(self, time_s: float) -> Floats:
        """(4,) the region where the person should be now."""
        return np.concatenate([self.region[:2] + self.moved(time_s), self.region[2:]])

    def off(self, points: Floats, found: Bools, time_s: float) -> float:
        """Pixels from where the person should be now to a pose (K, 2): the median over joints that both have."""
        both = self.found & found
        way = (points - self.points)[both if both.any() else found] - self.moved(time_s)
        return float(np.linalg.norm(np.median(way, axis=0)))

    def places(self, time_s: float) -> tuple[Floats, Floats, Floats]:
        """Regions (4,) for someone lost: the last one, where they should be now, and where their rival should be."""
        return self.region, self.ahead(time_s), (self.rival or self).ahead(time_s)


class Candidates:
    """The poses of one frame: at least one.

    Attributes:
        poses: All of them.
        strict: (N,) which would do for a newcomer.
        outside: (N,) which have more joints outside the frame than in it.
        distinct: Rows of those that look like people, each person once, best first.
    """

    def __init__(self, poses: Poses, spec: ModelSpec, frame_wh: tuple[int, int] | None) -> None:
        self.poses = poses
        self._sigmas = spec.joints.sigmas
        self._points = poses.keypoints_xy.astype(float)
        self._found = _found(poses.scores, spec.score_threshold)
        self._regions = np.concatenate([next_region(poses, i, spec) for i in range(len(poses))])
        self._areas = self._regions[:, 2:].prod(axis=1) / spec.crop_padding**2  # as the agreement of variants has it
        self.strict = looks_like_a_person(poses, spec)
        self.outside = _outside(self._points, self._found, frame_wh)
        order = np.argsort(-poses.scores.mean(axis=1), kind="stable").tolist()
        self._same = self._copies(order, looks_like_a_person(poses, spec, followed=True) & ~self.outside)
        self.distinct = [i for i in order if self._same[i] == i]

    def place(self, i: int) -> tuple[Floats, Bools, Floats]:
        """Joints (K, 2), which of them are found (K,), and the region (4,) around them."""
        return self._points[i], self._found[i], self._regions[i]

    def expected(self, people: Sequence[Person], time_s: float) -> dict[int, Person]:
        """Who of the followed ``people``, oldest first, is which pose; their own regions' poses are the first rows."""
        if not people or not self.distinct:
            return {}
        member = self._same == np.array(self.distinct)[:, None]
        own = member[:, : len(people)].T
        fit = (self._fit(people, time_s)[:, None] * member).max(axis=2)  # the best of the poses that are one person
        pairs = _pairs(fit + _OWN * own, own | (fit >= _EXPECTED))
        return {self.distinct[column]: people[row] for row, column in pairs}

    def near(self, people: Sequence[Person], rows: Sequence[int], time_s: float) -> dict[int, Person]:
        """Who of the lost ``people`` is which of the poses ``rows``."""
        if not people or not rows:
            return {}
        places = zip(*(person.places(time_s) for person in people), strict=True)
        here = _corners(self._regions[rows])
        close = np.max([insides(_corners(np.array(place)), here) for place in places], axis=0)
        pairs = _pairs(close + self._fit(people, time_s)[:, rows], close >= _NEAR)
        return {rows[column]: people[row] for row, column in pairs}

    def _copies(self, order: Sequence[int], usable: Bools) -> NDArray[np.int64]:
        """(N,) for each pose the first in ``order`` that is alike (itself if it is that); -1 where it is no person."""
        areas = np.maximum(self._areas[:, None], self._areas)
        alike = _better_half(*self._joints_alike(self._points, self._found, areas)) > _COPY
        first = np.full(len(usable), -1)
        for i in order:
            if usable[i] and first[i] < 0:
                first[(first < 0) & usable & alike[i]] = i
                first[i] = i
        return first

    def _fit(self, people: Sequence[Person], time_s: float) -> Floats:
        """(M, N) OKS of the poses that are expected of ``people`` with these; few common joints count for less."""
        points = np.array([person.points + person.moved(time_s) for person in people])
        areas = np.broadcast_to(self._areas, (len(people), len(self._areas)))
        alike, both = self._joints_alike(points, np.array([person.found for person in people]), areas)
        return np.asarray(alike.sum(axis=2) / np.maximum(both.sum(axis=2), _MIN_JOINTS))

    def _joints_alike(self, points: Floats, found: Bools, areas: Floats) -> tuple[Floats, Bools]:
        """(M, N, K) similarity of joints, zero where one is not found, and which joints are found in both."""
        both = found[:, None] & self._found
        return oks(self._points, points[:, None], areas, self._sigmas) * both, both


def nearest(person: Person, others: Sequence[Person]) -> Person | None:
    """Who is next to a person, if anybody is."""
    if not others:
        return None
    close = insides(_corners(person.region[None]), _corners(np.array([other.region for other in others])))[0]
    return others[int(close.argmax())] if close.max() >= _NEAR else None


def untangled(frame: Candidates, who: dict[int, Person], time_s: float) -> dict[int, Person]:
    """Who is who, now that people who were one for a while are two again: each is where they were heading.

    While one hides the other, the pose of either's region may have slipped to the other one.
    """
    at = {person.id: i for i, person in who.items()}
    answer = dict(who)
    for i, person in who.items():
        rival = person.rival
        if rival is None or rival.id not in at:
            continue
        here, there = frame.place(i)[:2], frame.place(at[rival.id])[:2]
        straight = person.off(*here, time_s) + rival.off(*there, time_s)
        if rival.off(*here, time_s) + person.off(*there, time_s) < _SLIPPED * straight:
            answer[i], answer[at[rival.id]] = rival, person
    return answer


def _pairs(affinity: Floats, allowed: Bools) -> Iterator[tuple[int, int]]:
    """Rows and columns that belong together, best first; of rows that fit a column alike the first one has it."""
    left = np.where(allowed, affinity, -np.inf)
    while left.max() > -np.inf:
        column = int(left.max(axis=0).argmax())
        row = int(np.argmax(left[:, column] >= left.max() - _CLOSE))
        left[row] = left[:, column] = -np.inf
        yield row, column


def _better_half(similarity: Floats, both: Bools) -> Floats:
    """(M, N) mean over the better half of the joints (M, N, K) that are found in both, but at least four."""
    count = np.maximum((both.sum(axis=2) + 1) // 2, _MIN_JOINTS)
    total = np.cumsum(-np.sort(-similarity, axis=2), axis=2)
    return np.asarray(np.take_along_axis(total, count[:, :, None] - 1, axis=2)[:, :, 0] / count)


def _found(scores: NDArray[np.float32], threshold: float) -> Bools:
    """(N, K) joints above the threshold, but at least the best four of each person, as ``next_region`` has it."""
    fourth = np.sort(scores, axis=1)[:, -_MIN_JOINTS, None]
    return np.asarray(scores >= np.minimum(threshold, fourth))


def _outside(points: Floats, found: Bools, frame_wh: tuple[int, int] | None) -> Bools:
    """(N,) which poses have more found joints outside the frame than in it."""
    if frame_wh is None:
        return np.zeros(len(points), bool)
    inside = ((points >= 0) & (points <= np.array(frame_wh) - 1)).all(axis=2)
    return np.asarray((found & inside).sum(axis=1) < (found & ~inside).sum(axis=1))


def _corners(regions: Floats) -> Floats:
    """Regions (N, 4) cx, cy, w, h -> x1, y1, x2, y2."""
    return np.concatenate([regions[:, :2] - regions[:, 2:] / 2, regions[:, :2] + regions[:, 2:] / 2], axis=1)


def insides(a_xyxy: Floats, b_xyxy: Floats) -> Floats:
    """(N, M) how much of the smaller of two boxes lies in the other, for boxes (N, 4) and (M, 4)."""
    smaller = np.minimum(areas_of(a_xyxy)[:, None], areas_of(b_xyxy))
    return np.asarray(intersections(a_xyxy, b_xyxy) / np.maximum(smaller, np.finfo(float).tiny))


def areas_of(boxes_xyxy: Floats) -> Floats:
    """(N,) areas of boxes (N, 4)."""
    return np.asarray((boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=1))
