"""A frame becomes poses, and a source of frames becomes poses in sinks.

frame ──▶ regions ──▶ crops ──▶ engine ──▶ heatmaps ──▶ keypoints ──▶ Poses
          boxes, or    one       uint8 in,               decode.py
          search and   warp      float32 out
          follow
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgepose.decode import decode, flip_back
from edgepose.errors import EdgePoseError
from edgepose.geometry import regions_from_boxes, xywh_to_xyxy, xyxy_to_xywh
from edgepose.model import LoadedModel
from edgepose.preprocess import crop
from edgepose.sources import Frame
from edgepose.tracking import Follower, find_person, looks_like_a_person, next_region
from edgepose.types import ModelSpec, Poses

__all__ = ["Estimator", "Sink", "Totals", "run"]


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
        boxes_xywh = xyxy_to_xywh(_check_boxes(boxes))
        return self.poses_at(frame_bgr, regions_from_boxes(boxes_xywh, self.spec.aspect, self.spec.crop_padding))

    def poses_at(self, frame_bgr: NDArray[np.uint8], regions: NDArray[np.float64]) -> Poses:
        """One pose for each region (N, 4) cx, cy, w, h in frame pixels."""
        if not len(regions):
            return Poses.empty(self.spec.skeleton)
        crops = crop(frame_bgr, regions, self.spec.input_wh)
        keypoints, scores = decode(self.heatmaps(crops), regions)
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


class Sink(Protocol):
    """Takes each frame with its poses."""

    def write(self, frame: Frame, poses: Poses) -> None:
        """Take one frame."""
        ...

    def close(self, complete: bool) -> None:
        """Finish; called once, with ``complete`` false after an error or Ctrl-C."""
        ...


@dataclass
class Totals:
    """What a run did: frames, people found, seconds spent reading, estimating and writing."""

    frames: int = 0
    people: int = 0
    read_s: float = 0.0
    estimate_s: float = 0.0
    write_s: float = 0.0


def run(
    source: Iterable[Frame],
    poses_of: Callable[[Frame], Poses],
    sinks: Sequence[Sink],
    progress: Callable[[Totals], None] = lambda totals: None,
) -> Totals:
    """Send every frame of a source through ``poses_of`` into the sinks, one after the other.

    The sinks are closed whatever happens, so that what was written is whole.
    """
    totals = Totals()
    with ExitStack() as stack:
        for sink in sinks:
            stack.push(_Closing(sink))
        frames = iter(source)
        while True:
            start = time.perf_counter()
            frame = next(frames, None)
            read = time.perf_counter()
            totals.read_s += read - start
            if frame is None:
                return totals
            poses = poses_of(frame)
            estimated = time.perf_counter()
            for sink in sinks:
                sink.write(frame, poses)
            totals.estimate_s += estimated - read
            totals.write_s += time.perf_counter() - estimated
            totals.frames += 1
            totals.people += len(poses)
            progress(totals)


class _Closing:
    """Closes a sink when the run ends, and tells it how."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def __enter__(self) -> Sink:
        return self._sink

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._sink.close(complete=kind is None)


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
