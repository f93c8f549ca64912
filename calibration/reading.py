"""Pictures of a data set one after the other, read ahead, and where in them to crop."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from edgepose.calibration.datasets.base import Image, Picture, PictureData
from edgepose.pipeline import Estimator
from edgepose.tracking import looks_like_a_person, next_region
from edgepose.types import Poses

__all__ = ["RegionFinder", "read_ahead"]

Regions = NDArray[np.float64]


class RegionFinder:
    """Where to crop pictures without boxes: a search by the baseline, and within a clip its last pose."""

    def __init__(self, estimator: Estimator) -> None:
        self._estimator = estimator
        self._clip: int | None = None
        self._region: Regions | None = None

    def __call__(self, picture: Picture, image: Image) -> Regions:
        """The region (1, 4) of a picture."""
        if self._region is not None and picture.clip is not None and picture.clip == self._clip:
            return self._region
        return self._estimator.best_region(image)[0]

    def follow(self, picture: Picture, keypoints_xy: NDArray[np.float32], scores: NDArray[np.float32]) -> None:
        """Tell what the baseline found there."""
        spec = self._estimator.spec
        poses = Poses(keypoints_xy, scores, np.zeros((len(scores), 4), np.float32), spec.skeleton)
        person = len(poses) > 0 and bool(looks_like_a_person(poses, spec, followed=True)[0])
        self._region = next_region(poses, 0, spec) if person else None
        self._clip = picture.clip


_Read = tuple[Picture, Image | None, float]


def read_ahead(data: PictureData, limit: int | None, workers: int) -> Iterator[_Read]:
    """Pictures in order, their pixels, and the CPU seconds that reading took; only a few are in memory at a time.

    One thread reads a video: several would make it seek back and forth.
    """
    waiting: deque[Future[_Read]] = deque()
    with ThreadPoolExecutor(1 if _is_video(data) else workers, thread_name_prefix="read") as pool:
        for picture in data.pictures(limit):
            waiting.append(pool.submit(_read, picture))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read(picture: Picture) -> _Read:
    """Pictures in which nobody is to be cropped are not read: an empty image stands for them."""
    start = time.thread_time()
    nobody = picture.boxes_xywh is not None and not len(picture.boxes_xywh)
    image = np.zeros((1, 1, 3), np.uint8) if nobody else picture.read()
    return picture, image, time.thread_time() - start


def _is_video(data: PictureData) -> bool:
    first = next(iter(data.pictures(1)), None)
    return first is not None and first.clip is not None
