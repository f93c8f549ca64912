"""A frame becomes poses.

frame ──▶ regions ──▶ crops ──▶ engine ──▶ heatmaps ──▶ keypoints ──▶ Poses ──▶ smooth ──▶ lift
          boxes,       one       uint8 in,               decode.py
          detector, or warp      float32 out
          search; then
          follow

``Estimator`` does it for a single frame, ``Pipeline`` for a stream of them; ``streaming.py`` has source and sinks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgepose.decode import decode, flip_back
from edgepose.errors import EdgePoseError
from edgepose.geometry import regions_from_boxes, xywh_to_xyxy, xyxy_to_xywh
from edgepose.lifter import Lifter
from edgepose.lookout import Lookout
from edgepose.metrics import Metrics
from edgepose.model import LoadedModel
from edgepose.people import Detector, People
from edgepose.preprocess import crop
from edgepose.sources import Frame
from edgepose.tracking import Follower, find_person, looks_like_a_person, next_region
from edgepose.types import ModelSpec, Poses

__all__ = ["Begun", "Estimator", "Pipeline"]


_LARGEST = 1e6  # pixels: box coordinates beyond this are damaged data


class Estimator(LoadedModel):
    """Poses of single frames, with one engine. Made by :func:`edgepose.load`."""

    def estimate(self, frame_bgr: NDArray[np.uint8], boxes: ArrayLike | None = None) -> Poses:
        """Poses of the people in one frame.

        Args:
            frame_bgr: (h, w, 3) uint8, BGR as OpenCV reads it.
            boxes: (N, 4) x1, y1, x2, y2 in pixels, one per person. Without boxes the frame is searched for
                one person, and nobody is a possible answer.

        Raises:
            EdgePoseError: The frame or the boxes have another shape or dtype.
            EngineError: The engine failed, or answered with NaN.
        """
        _check_frame(frame_bgr)
        if boxes is None:
            poses = find_person(frame_bgr, self.poses_at, self.spec)
            return poses[looks_like_a_person(poses, self.spec)]
        return self.poses_at(frame_bgr, self.regions(boxes))

    def regions(self, boxes: ArrayLike) -> NDArray[np.float64]:
        """Boxes (N, 4) x1, y1, x2, y2 in pixels -> what is cropped around them: (N, 4) cx, cy, w, h."""
        return regions_from_boxes(xyxy_to_xywh(_check_boxes(boxes)), self.spec.aspect, self.spec.crop_padding)

    def poses_at(self, frame_bgr: NDArray[np.uint8], regions: NDArray[np.float64]) -> Poses:
        """One pose for each region (N, 4) cx, cy, w, h in frame pixels."""
        if not len(regions):
            return Poses.empty(self.spec.skeleton)
        return self._poses(self.heatmaps(crop(frame_bgr, regions, self.spec.input_wh)), regions)

    def start_at(self, frame_bgr: NDArray[np.uint8], regions: NDArray[np.float64]) -> Callable[[], Poses]:
        """The same, while the caller does something else: what comes back waits for the poses when it is called."""
        if not len(regions):
            return lambda: Poses.empty(self.spec.skeleton)
        heatmaps = self.start(crop(frame_bgr, regions, self.spec.input_wh))
        return lambda: self._poses(heatmaps(), regions)

    def _poses(self, heatmaps: NDArray[np.float32], regions: NDArray[np.float64]) -> Poses:
        keypoints, scores = decode(heatmaps, regions)
        return Poses(keypoints, scores, _boxes_of(regions, self.spec), self.spec.skeleton)

    def heatmaps(self, crops: NDArray[np.uint8], flip: bool = False) -> NDArray[np.float32]:
        """Run the engine.

        Args:
            crops: (N, H, W, 3) uint8 RGB.
            flip: Average with the answers for the mirrored crops (flip test).

        Returns:
            (N, K, H / 4, W / 4) float32.

        Raises:
            EngineError: The engine failed, or answered with NaN or infinity.
        """
        answer = self.infer(crops)
        if flip:
            mirrored = flip_back(self.infer(np.ascontiguousarray(crops[:, :, ::-1])), self.spec.joints.flip_order)
            answer = np.mean([answer, mirrored], axis=0, dtype=np.float32)
        return answer

    def best_region(self, frame_bgr: NDArray[np.uint8]) -> tuple[NDArray[np.float64], float, bool]:
        """Region (1, 4) around the most person-like pose of a frame, its mean score, and whether it is a person."""
        poses = find_person(frame_bgr, self.poses_at, self.spec)
        person = bool(looks_like_a_person(poses, self.spec)[0])
        return next_region(poses, 0, self.spec), float(poses.scores.mean()), person

    def follow(self) -> Follower:
        """A fresh single-person tracker that uses this estimator."""
        return Follower(self.poses_at, self.spec)


@dataclass(frozen=True, eq=False)
class Begun:
    """A frame that :meth:`Pipeline.begin` began.

    Attributes:
        frame: The frame.
        regions: Where people are expected, (N, 4) cx, cy, w, h; None where the frame before must be done first.
        poses: Waits for the poses there; None without regions.
        seconds: What beginning took.
    """

    frame: Frame
    regions: NDArray[np.float64] | None = None
    poses: Callable[[], Poses] | None = None
    seconds: float = 0.0


class Pipeline:
    """Poses of the people in a stream of frames: call it with one frame after the other.

    With a detector several people are followed: it looks every ``detect_every`` frames, and at once when somebody is
    lost; in between, regions follow the last poses. Without one, a single person is searched and followed, or people
    are where ``boxes`` says. Frames that do not follow each other are searched one by one.

    Calling is :meth:`begin` and :meth:`finish`. Who begins the next frame before finishing this one keeps the engine
    busy while the host crops and decodes; a single person is then followed by the pose of the frame before last.

    Args:
        estimator: The 2D model.
        detector: Finds people's boxes.
        detect_every: Frames from one look of the detector to the next.
        detect_aside: Whether the detector looks in a thread of its own, while frames pass.
        most: So many people at most are followed.
        boxes: People's boxes (N, 4) x1, y1, x2, y2 of a frame, where they are known.
        moving: Whether frames follow each other.
        smooth: Steadies the poses of those who are followed.
        lifter: Lifts them into space.
        metrics: Times the steps.
    """

    def __init__(
        self,
        estimator: Estimator,
        *,
        detector: Detector | None = None,
        detect_every: int = 10,
        detect_aside: bool = False,
        most: int = 10,
        boxes: Callable[[Frame], ArrayLike] | None = None,
        moving: bool = True,
        smooth: Callable[[Poses, float], Poses] | None = None,
        lifter: Lifter | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.estimator, self.lifter = estimator, lifter
        self._metrics = metrics or Metrics()
        self._boxes, self._smooth, self._detector = boxes, smooth, detector
        self._people, self._lookout = None, None
        if detector and moving:
            self._people = People(estimator.spec, most=most)
            self._lookout = Lookout(detector, detect_every, aside=detect_aside, metrics=self._metrics)
        self._follow = estimator.follow() if moving and not detector and not boxes else None

    def __call__(self, frame: Frame) -> Poses:
        """The people of a frame, with ids where they are followed, and in space where there is a lifting model."""
        return self.finish(self.begin(frame))

    def begin(self, frame: Frame) -> Begun:
        """Start the engine on a frame, where its regions are known already."""
        _check_frame(frame.image_bgr)
        regions = self._expected(frame)
        if regions is None:
            return Begun(frame)
        start = time.perf_counter()
        poses = self.estimator.start_at(frame.image_bgr, regions)
        return Begun(frame, regions, poses, time.perf_counter() - start)

    def finish(self, begun: Begun) -> Poses:
        """The people of a frame that was begun; frames are finished in their order."""
        frame, start = begun.frame, time.perf_counter() - begun.seconds
        poses = self._found(begun)
        self._metrics.add("pose", time.perf_counter() - start)
        height, width = frame.image_bgr.shape[:2]
        if self._people is not None:
            with self._metrics.stage("follow"):
                poses = self._people.update(poses, frame.time_s, (width, height))
        if self._smooth is not None:
            with self._metrics.stage("smooth"):
                poses = self._smooth(poses, frame.time_s)
        if self.lifter is not None:
            with self._metrics.stage("lift"):
                poses = self.lifter.lift(poses, (width, height), self.estimator.spec.score_threshold)
        return poses

    def close(self) -> None:
        """End the detector's thread. The models stay loaded."""
        if self._lookout is not None:
            self._lookout.close()

    def _expected(self, frame: Frame) -> NDArray[np.float64] | None:
        """Regions that are known before the frame before this one is done."""
        if self._boxes is not None:
            return self.estimator.regions(self._boxes(frame))
        if self._follow is not None:
            return self._follow.region
        if self._detector is not None and self._lookout is None:
            with self._metrics.stage("detect"):
                boxes, _ = self._detector.detect(frame.image_bgr)
            return self.estimator.regions(boxes)
        return None

    def _found(self, begun: Begun) -> Poses:
        """The 2D poses, in the way that this stream is worked on."""
        image = begun.frame.image_bgr
        if self._people is not None and self._lookout is not None:
            people = self._people
            seen = self._lookout.look(image, now=people.lost, alone=not people.count)
            return self.estimator.poses_at(image, people.with_detections(*seen) if seen else people.regions())
        poses = begun.poses() if begun.poses else None
        if self._follow is not None:
            return self._follow.settle(image, begun.regions, poses)
        return self.estimator.estimate(image) if poses is None else poses


def _check_frame(frame: NDArray[np.uint8]) -> None:
    if (
        not isinstance(frame, np.ndarray)
        or frame.dtype != np.uint8
        or frame.ndim != 3
        or frame.shape[2] != 3
        or not frame.size
    ):
        got = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise EdgePoseError(f"frame: expected a uint8 array (h, w, 3) in BGR order, got {got}")


def _check_boxes(boxes: ArrayLike) -> NDArray[np.float64]:
    try:
        array = np.asarray(boxes, dtype=np.float64)
    except (TypeError, ValueError):
        raise EdgePoseError("boxes: expected numbers of shape (N, 4) x1, y1, x2, y2") from None
    if array.size == 0:
        return array.reshape(0, 4)
    if array.ndim != 2 or array.shape[1] != 4:
        raise EdgePoseError(f"boxes: expected shape (N, 4) x1, y1, x2, y2, got {array.shape}")
    if not (np.abs(array) < _LARGEST).all() or (array[:, 2:] <= array[:, :2]).any():
        raise EdgePoseError("boxes: expected finite x1 < x2 and y1 < y2 in every row (x1, y1, x2, y2)")
    return array


def _boxes_of(regions: NDArray[np.float64], spec: ModelSpec) -> NDArray[np.float32]:
    """The regions without their padding, as x1, y1, x2, y2."""
    size = regions[:, 2:] / spec.crop_padding
    corners = np.concatenate([regions[:, :2] - (size - 1) / 2, size], axis=1)
    return xywh_to_xyxy(corners).astype(np.float32)
