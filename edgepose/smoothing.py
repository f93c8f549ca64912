"""Steady joints without a lag that is seen: the One-Euro filter for each joint of each person.

Source: Casiez, Roussel and Vogel, "1 Euro Filter" (CHI 2012): a low-pass filter whose cutoff frequency rises with the
speed, so that a joint at rest does not tremble and a fast one is not late. What is different here:

* The speed is one number for each joint (not one for each axis), in heights of the person per second: one setting
  serves people near and far.
* A joint that is found with a low score has a lower cutoff frequency. Below the model's threshold its measurement is
  not used at all: the joint rests where it was, and after ``_HOLD_S`` it is what the model says, unfiltered.
* Time is the caller's. After a gap the filter starts anew at the next measurement, instead of sweeping there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgepose.errors import EdgePoseError
from edgepose.similarity import intersections
from edgepose.types import Poses

__all__ = ["OneEuro"]

Floats = NDArray[np.float64]

_HOLD_S = 0.4
"""A joint that was not found for longer starts anew."""

_FORGET_S = 1.0
"""A person who was not seen for longer is forgotten."""

_SURE = 3.0
"""So many times the threshold is a score that is trusted in full; below it trust is proportional."""

_HEIGHT_M = 1.7
"""Height of a person in space, for the speed of joints in metres."""


class OneEuro:
    """Smooths the poses of a video; call it with each frame's poses in turn.

    Defaults: ``benchmarks/smoothing.py --search``.
    """

    def __init__(
        self,
        min_cutoff_hz: float = 0.5,
        beta: float = 15.0,
        derivate_cutoff_hz: float = 1.0,
        threshold: float = 0.2,
    ) -> None:
        """Set the filter up.

        Args:
            min_cutoff_hz: Cutoff frequency of a joint at rest: lower is steadier.
            beta: By how many Hz the cutoff frequency rises for each height per second: higher is less late.
            derivate_cutoff_hz: Cutoff frequency of the speed.
            threshold: Joints that score less count as not found (``ModelSpec.score_threshold``).

        Raises:
            EdgePoseError: A frequency is not positive, or another value is negative or not finite.
        """
        values = (min_cutoff_hz, beta, derivate_cutoff_hz, threshold)
        if not all(map(math.isfinite, values)) or min(min_cutoff_hz, derivate_cutoff_hz) <= 0 or min(values) < 0:
            raise EdgePoseError(
                "smoothing: expected min_cutoff_hz > 0, beta >= 0, derivate_cutoff_hz > 0 and threshold >= 0, "
                f"got {', '.join(f'{v:g}' for v in values)}"
            )
        settings = _Settings(min_cutoff_hz, beta, derivate_cutoff_hz)
        self._xy, self._xyz = _Filter(settings), _Filter(settings)
        self._threshold = threshold
        self._time_s = -math.inf
        self._alone = -1
        self._box: Floats | None = None

    def __call__(self, poses: Poses, time_s: float) -> Poses:
        """The poses of one frame, smoothed in pixels and, where they are lifted, in metres.

        Args:
            poses: All people of the frame. Without ``track_ids`` it may be one person at most: the same one as in the
                last frame if the boxes overlap.
            time_s: When the frame was taken. Where it does not go on from the last one, everything starts anew.

        Raises:
            EdgePoseError: Several people without ``track_ids``.
        """
        if not time_s > self._time_s:
            self._xy.forget()
            self._xyz.forget()
        self._time_s = time_s
        ids = self._ids(poses)
        trust = self._trust(poses.scores)
        height_px = np.maximum((poses.boxes_xyxy[:, 2:] - poses.boxes_xyxy[:, :2]).max(axis=1, initial=0), 1)
        xy = self._xy(ids, poses.keypoints_xy, height_px, trust, time_s)
        xyz = poses.keypoints_xyz
        if xyz is not None:
            xyz = self._xyz(ids, xyz, np.full(len(xyz), _HEIGHT_M), trust, time_s)
        return replace(poses, keypoints_xy=xy, keypoints_xyz=xyz)

    def _ids(self, poses: Poses) -> Sequence[int]:
        """Who the people are: by track, or one person by place."""
        if poses.track_ids is not None:
            return [int(i) for i in poses.track_ids]
        if len(poses) > 1:
            raise EdgePoseError(f"smoothing: {len(poses)} people without track_ids: who is who must be known")
        if len(poses):
            box = poses.boxes_xyxy[0].astype(float)
            if self._box is not None and not intersections(box, self._box).any():
                self._alone -= 1
            self._box = box
        return [self._alone] * len(poses)

    def _trust(self, scores: NDArray[np.float32]) -> Floats:
        """(N, K) from 0, where a joint was not found, to 1."""
        sure = np.maximum(_SURE * self._threshold, np.finfo(float).tiny)
        return np.where(scores >= self._threshold, np.minimum(scores / sure, 1), 0.0)


@dataclass(frozen=True)
class _Settings:
    min_cutoff_hz: float
    beta: float
    derivate_cutoff_hz: float


@dataclass(frozen=True)
class _State:
    """What is known of one person, or of several with one more axis in front.

    Attributes:
        points: (K, D) filtered.
        velocity: (K, D) filtered, per second.
        found_s: (K,) when the joint was last found, -infinity for never.
    """

    points: Floats
    velocity: Floats
    found_s: Floats


class _Filter:
    """The filter for coordinates of one kind."""

    def __init__(self, settings: _Settings) -> None:
        self._settings = settings
        self._people: dict[int, tuple[float, _State]] = {}

    def forget(self) -> None:
        self._people.clear()

    def __call__(
        self, ids: Sequence[int], measured: NDArray[np.float32], heights: Floats, trust: Floats, time_s: float
    ) -> NDArray[np.float32]:
        """Smooth (N, K, D) of the people ``ids``, of ``heights`` (N,) in the same unit; ``trust`` is (N, K)."""
        self._people = {i: (seen, s) for i, (seen, s) in self._people.items() if time_s - seen <= _FORGET_S}
        if not len(ids):
            return measured
        found = (trust > 0) & np.isfinite(measured).all(axis=2)
        known, state = self._step(self._states(ids, measured), measured, heights, np.where(found, trust, 0), time_s)
        for row, i in enumerate(ids):
            self._people[i] = time_s, _State(state.points[row], state.velocity[row], state.found_s[row])
        return np.where((found | known)[:, :, None], state.points, measured).astype(np.float32)

    def _states(self, ids: Sequence[int], measured: NDArray[np.float32]) -> _State:
        """The people's states, one after the other."""
        zero = np.zeros(measured.shape[1:])
        unknown = math.nan, _State(zero, zero, np.full(len(zero), -np.inf))
        states = [self._people.get(i, unknown)[1] for i in ids]
        return _State(*(np.stack([getattr(s, name) for s in states]) for name in ("points", "velocity", "found_s")))

    def _step(
        self, state: _State, measured: NDArray[np.float32], heights: Floats, trust: Floats, time_s: float
    ) -> tuple[NDArray[np.bool_], _State]:
        """One time step: which joints (N, K) go on from where they were, and the new state."""
        found = trust > 0
        gap_s = time_s - state.found_s
        known = (gap_s > 0) & (gap_s <= _HOLD_S)
        dt_s = np.where(known, gap_s, 1.0)[:, :, None]
        settings = self._settings
        used = np.where(found[:, :, None], measured, state.points)
        change = (used - state.points) / dt_s
        velocity = state.velocity + _share(settings.derivate_cutoff_hz, dt_s) * (change - state.velocity)
        speed = np.linalg.norm(velocity, axis=2, keepdims=True) / heights[:, None, None]
        cutoff_hz = trust[:, :, None] * (settings.min_cutoff_hz + settings.beta * speed)
        points = state.points + _share(cutoff_hz, dt_s) * (used - state.points)
        on, start = (known & found)[:, :, None], (~known & found)[:, :, None]
        return known, _State(
            np.where(on, points, np.where(start, used, state.points)),
            np.where(on, velocity, np.where(start, 0, state.velocity)),
            np.where(found, time_s, state.found_s),
        )


def _share(cutoff_hz: float | Floats, dt_s: Floats) -> Floats:
    """How much of a measurement goes into a low-pass filter: 1 / (1 + tau / dt) with tau = 1 / (2 pi cutoff)."""
    turned = 2 * math.pi * cutoff_hz * dt_s
    return np.asarray(turned / (1 + turned))
