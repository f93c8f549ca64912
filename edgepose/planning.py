"""How many people, and how many looks of the detector, a frame rate allows on this machine: measured, then chosen."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgepose.geometry import regions_from_boxes
from edgepose.lifter import Lifter
from edgepose.people import Detector, People
from edgepose.pipeline import Estimator
from edgepose.types import Poses

__all__ = ["HEADROOM", "Costs", "Plan", "measure_costs", "plan"]

HEADROOM = 0.9
"""Share of a frame's time that is planned with; capture and output need the rest."""

_LOOKS_PER_S = 5.0
"""The detector need not look more often: a newcomer waits 0.2 s at most."""

_ROUNDS = 5
_FRAME_WH = (1280, 720)


@dataclass(frozen=True)
class Costs:
    """Milliseconds on this machine, medians.

    Attributes:
        people_ms: By number of people, in ascending order, from one: crop, inference, decode, following and lifting.
        batch: People per engine call with which that was measured: the quickest for the largest number.
        detect_ms: One look of the detector; 0 without one.
    """

    people_ms: Mapping[int, float]
    batch: int
    detect_ms: float = 0.0

    def of(self, people: int) -> float:
        """Milliseconds for any number of people, between those that were measured and in proportion beyond."""
        counts = list(self.people_ms)
        if people > counts[-1]:
            return self.people_ms[counts[-1]] * people / counts[-1]
        return float(np.interp(people, counts, list(self.people_ms.values())))


@dataclass(frozen=True)
class Plan:
    """What fits into a frame.

    Attributes:
        fps: Asked for.
        most: People to follow at most.
        detect_every: Frames from one look of the detector to the next.
        batch: People per engine call.
        reached: Whether the frame rate is reached with ``most`` people.
        costs: What it follows from.
    """

    fps: float
    most: int
    detect_every: int
    batch: int
    reached: bool
    costs: Costs

    def frame_ms(self, people: int) -> float:
        """Mean milliseconds of a frame with so many people, the detector's share among them."""
        return self.costs.of(people) + self.costs.detect_ms / self.detect_every

    def fits(self, people: int) -> bool:
        """Whether a frame with so many people keeps the frame rate."""
        return self.frame_ms(people) <= self.budget_ms

    @property
    def budget_ms(self) -> float:
        """Milliseconds that a frame may take."""
        return HEADROOM * 1000 / self.fps


def plan(costs: Costs, fps: float, most: int, detect_every: int | None = None) -> Plan:
    """The most people, and then the most looks, that a frame rate allows.

    Args:
        costs: Measured here.
        fps: Frames per second to reach.
        most: No more people than these, even if there is time for them.
        detect_every: Frames between two looks where that is settled. Else five looks per second, and down to one where
            that allows more people.

    Returns:
        A plan for one person at least; ``reached`` tells whether that is quick enough.
    """
    often, seldom = max(1, round(fps / _LOOKS_PER_S)), max(1, math.ceil(fps))
    budget = HEADROOM * 1000 / fps
    for people in range(most, 0, -1):
        left = budget - costs.of(people)
        if left <= 0:
            continue
        every = detect_every or max(often, math.ceil(costs.detect_ms / left))
        if every <= (detect_every or seldom) and costs.detect_ms / every <= left:
            return Plan(fps, people, every, costs.batch, True, costs)
    return Plan(fps, 1, detect_every or seldom, costs.batch, False, costs)


def measure_costs(estimator: Estimator, detector: Detector | None, lifter: Lifter | None, most: int) -> Costs:
    """Time what a frame of noise costs with different numbers of people, in about ten passes each.

    Args:
        estimator: The 2D model; its ``batch`` is the quickest one afterwards.
        detector: Finds people.
        lifter: Lifts them.
        most: The largest number of people to measure.
    """
    frame = np.random.default_rng(0).integers(0, 256, (_FRAME_WH[1], _FRAME_WH[0], 3), dtype=np.uint8)
    estimator.batch = batch = _quickest_batch(estimator, frame, most)
    counts = sorted({1, most, *(count for count in (2, 4, 8, 16, 32, 64) if count < most)})
    people_ms = {count: _people_ms(estimator, lifter, frame, count) for count in counts}
    detect_ms = _median_ms(lambda: detector.detect(frame)) if detector else 0.0
    return Costs(people_ms, batch, detect_ms)


def _quickest_batch(estimator: Estimator, frame: NDArray[np.uint8], most: int) -> int:
    """Of powers of two up to the number of people; an engine that was built for a fixed batch has no choice."""
    if estimator.engine.inputs[0].shape[0] is not None:
        return estimator.batch
    regions = _apart(estimator, most)

    def one_frame(batch: int) -> float:
        estimator.batch = batch
        return _median_ms(lambda: estimator.poses_at(frame, regions))

    sizes = [size for size in (1, 2, 4, 8, 16, 32) if size < 2 * most]
    times = {size: one_frame(size) for size in sizes}
    return min(times, key=lambda size: times[size])


def _people_ms(estimator: Estimator, lifter: Lifter | None, frame: NDArray[np.uint8], count: int) -> float:
    regions, people = _apart(estimator, count), People(estimator.spec, most=count)
    boxes = np.concatenate([regions[:, :2] - regions[:, 2:] / 2, regions[:, :2] + regions[:, 2:] / 2], axis=1)

    def one_frame() -> None:
        asked = people.with_detections(boxes, np.ones(count))
        poses = estimator.poses_at(frame, asked)
        people.update(_certain(poses), time.monotonic(), _FRAME_WH)
        if lifter:
            lifter.lift(poses, _FRAME_WH, 0.0)

    return _median_ms(one_frame)


def _certain(poses: Poses) -> Poses:
    """The same with every joint found, so that all of them are followed."""
    return Poses(poses.keypoints_xy, np.ones_like(poses.scores), poses.boxes_xyxy, poses.skeleton)


def _apart(estimator: Estimator, count: int) -> NDArray[np.float64]:
    """Regions (count, 4) side by side over the frame."""
    columns = math.ceil(math.sqrt(2 * count))
    width, height = _FRAME_WH[0] / columns, _FRAME_WH[1] / math.ceil(count / columns)
    rows, cols = np.divmod(np.arange(count), columns)
    boxes = np.stack([cols * width, rows * height, np.full(count, width), np.full(count, height)], axis=1)
    return regions_from_boxes(boxes * 0.9, estimator.spec.aspect, 1.0)


def _median_ms(work: Callable[[], object]) -> float:
    """Median of a few passes, after two that warm up."""
    times = []
    for _ in range(_ROUNDS + 2):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[2:])
