"""Pictures and videos without labels: one person each, whom the baseline model finds and follows."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from edgepose.calibration.datasets.base import Image, Picture, Scorer
from edgepose.calibration.datasets.files import read_picture
from edgepose.errors import DatasetError, SourceError
from edgepose.sources import IMAGE_SUFFIXES, image_files, open_source, quiet_opencv
from edgepose.types import ModelSpec

__all__ = ["Unlabeled"]

CLIP_FRAMES = 16
_STROLL = 32  # so many frames ahead are sooner decoded than sought
_T = TypeVar("_T")


class Unlabeled:
    """A folder of images, one image, or a video; implements ``PictureData`` without labels."""

    kind = "unlabeled"
    boxes = "search"
    joints: tuple[str, ...] | None = None

    def __init__(self, root: Path) -> None:
        """List the pictures.

        Args:
            root: A folder (with its sub-folders), an image, or a video.

        Raises:
            DatasetError: There are none.
        """
        self.path = root
        single = root.suffix.lower() in IMAGE_SUFFIXES and root.is_file()
        self._is_video = root.is_file() and not single
        self._files = [root] if single else image_files(root) if root.is_dir() else []
        self._video = _Video(root) if self._is_video else None
        if not len(self):
            raise DatasetError(f"{root}: no images here (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")

    @staticmethod
    def recognises(root: Path) -> bool:
        """Whatever is there."""
        return root.exists()

    def __len__(self) -> int:
        return self._video.count if self._video else len(self._files)

    def pictures(self, limit: int | None = None) -> Iterator[Picture]:
        """All in order, or ``limit`` of them spread evenly: of a video, clips of 16 consecutive frames."""
        if self._video is not None:
            return (self._frame(i, clip) for i, clip in _clips(self._video.count, limit))
        return (self._image(path) for path in _spread(self._files, limit))

    def scorer(self, spec: ModelSpec) -> Scorer | None:
        """None: there are no labels."""
        return None

    def sources(self) -> list[Path]:
        """The one file, where it is one."""
        return [self.path] if self.path.is_file() else []

    def _image(self, path: Path) -> Picture:
        name = str(path.relative_to(self.path)) if self.path.is_dir() else path.name
        return Picture(name=name, file=name, read=partial(read_picture, path, exif=True))

    def _frame(self, index: int, clip: int) -> Picture:
        assert self._video is not None
        name = f"{self.path.name}#{index:06d}"
        return Picture(name=name, file=name, read=partial(self._video.read, index), clip=clip)


class _Video:
    """Random access to the frames of a video; seeks only where it must."""

    def __init__(self, path: Path) -> None:
        try:
            source = open_source(str(path))
        except SourceError as error:
            raise DatasetError(str(error)) from None
        self.count = source.count or sum(1 for _ in source)
        source.frames.close()
        with quiet_opencv():
            self._capture = cv2.VideoCapture(str(path))
        self._next = 0
        self._lock = threading.Lock()

    def read(self, index: int) -> Image | None:
        with self._lock:
            if not 0 <= index - self._next <= _STROLL:
                self._capture.set(cv2.CAP_PROP_POS_FRAMES, index)
                self._next = index
            for _ in range(index - self._next):
                self._capture.grab()
            ok, image = self._capture.read()
            self._next = index + 1
        return np.asarray(image, dtype=np.uint8) if ok else None


def _spread(items: Sequence[_T], limit: int | None) -> list[_T]:
    """At most ``limit`` items, evenly over the whole."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]


def _clips(count: int, limit: int | None) -> Iterator[tuple[int, int]]:
    """Frame numbers, each with the number of its clip: all as one, or blocks of 16 from the first to the last."""
    if limit is None or limit >= count:
        yield from ((i, 0) for i in range(count))
        return
    blocks, wanted = math.ceil(count / CLIP_FRAMES), math.ceil(limit / CLIP_FRAMES)
    for clip in range(wanted):
        start = CLIP_FRAMES * (clip * (blocks - 1) // max(wanted - 1, 1))
        length = min(CLIP_FRAMES, count - start, limit - clip * CLIP_FRAMES)
        yield from ((start + i, clip) for i in range(length))
