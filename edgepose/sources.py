"""Where frames come from: a video file, a folder of images, one image, or a camera."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edgepose.errors import SourceError

# Read when OpenCV first opens a video: FFmpeg's complaints stay off the terminal unless they are asked for.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

__all__ = ["IMAGE_SUFFIXES", "Frame", "Source", "image_files", "open_source", "quiet_opencv", "read_image"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


@dataclass(frozen=True)
class Frame:
    """One picture: (h, w, 3) uint8 BGR, its position and name in the source, and its time in seconds."""

    image_bgr: NDArray[np.uint8] = field(repr=False)
    index: int
    name: str
    time_s: float


@dataclass
class Source:
    """An opened source: iterate over it once.

    Attributes:
        name: What was opened, for people.
        fps: Frames per second, 0 where the source has none (images) or does not say.
        count: Number of frames, 0 where unknown (camera).
        moving: Whether one frame follows from the last, as in a video; pictures in a folder do not.
        skipped: Names of files that could not be read so far.
    """

    name: str
    fps: float
    count: int
    moving: bool
    frames: Generator[Frame, None, None]
    skipped: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Frame]:
        return self.frames


@contextmanager
def quiet_opencv() -> Iterator[None]:
    """Keep OpenCV's own warnings off the terminal: we report in one line."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)


def read_image(path: Path, *, exif: bool = True) -> NDArray[np.uint8] | None:
    """Read a picture as (h, w, 3) uint8 BGR, or None where it cannot be decoded.

    Args:
        path: The file.
        exif: Turn the picture as its EXIF orientation says. Dataset protocols do not.
    """
    flags = cv2.IMREAD_COLOR if exif else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    with quiet_opencv():
        try:
            image: NDArray[np.uint8] | None = cv2.imread(str(path), flags)  # type: ignore[assignment]
        except cv2.error:  # a picture too large to decode, for instance
            return None
    return image


def image_files(folder: Path) -> list[Path]:
    """Pictures in a folder and below it, sorted by path."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def open_source(uri: str) -> Source:
    """Open a source of frames.

    Args:
        uri: A camera index (``0``), a folder of images, an image, or a video that OpenCV can read.

    Raises:
        SourceError: It cannot be opened.
    """
    if uri.isdecimal() and len(uri) <= 3:
        return _camera(int(uri))
    path = Path(uri)
    if uri and path.is_dir():
        return _images(path, image_files(path))
    if not uri or not path.exists():
        raise SourceError(f"{uri or 'empty name'}: no such file, folder or camera index")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return _images(path, [path])
    return _video(path)


def _images(path: Path, files: list[Path]) -> Source:
    if not files:
        raise SourceError(f"{path}: no images here (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
    skipped: list[str] = []

    def frames() -> Generator[Frame, None, None]:
        for index, file in enumerate(files):
            image = read_image(file)
            if image is None:
                skipped.append(file.name)
            else:
                yield Frame(image, index, file.name, time_s=float(index))
        if len(skipped) == len(files):
            raise SourceError(f"{path}: none of the {len(files)} images can be decoded")

    return Source(str(path), fps=0, count=len(files), moving=False, frames=frames(), skipped=skipped)


def _video(path: Path) -> Source:
    with quiet_opencv():
        capture = cv2.VideoCapture(str(path))
    ok, first = capture.read() if capture.isOpened() else (False, None)
    if not ok or first is None:
        raise SourceError(f"{path}: not a video that OpenCV can decode: is it whole, and is its codec common?")
    fps = capture.get(cv2.CAP_PROP_FPS)
    count = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    rate = fps if 0 < fps < 1000 else 25.0

    def frames() -> Generator[Frame, None, None]:
        index, more, image = 0, True, first
        try:
            while more:
                yield Frame(np.asarray(image, dtype=np.uint8), index, path.name, index / rate)
                more, image = capture.read()
                index += 1
        finally:
            capture.release()

    return Source(str(path), fps=rate, count=count, moving=True, frames=frames())


def _camera(index: int) -> Source:
    with quiet_opencv():
        capture = cv2.VideoCapture(index)
    if not capture.isOpened():
        raise SourceError(f"camera {index}: not there or in use: see /dev/video*, or give a file to --source")
    fps = capture.get(cv2.CAP_PROP_FPS)

    def frames() -> Generator[Frame, None, None]:
        start, number = time.monotonic(), 0
        try:
            while True:
                ok, image = capture.read()
                if not ok:
                    raise SourceError(f"camera {index}: stopped delivering frames after {number}")
                now = time.monotonic() - start
                yield Frame(np.asarray(image, dtype=np.uint8), number, f"camera {index}", now)
                number += 1
        finally:
            capture.release()

    return Source(f"camera {index}", fps=fps if 0 < fps < 1000 else 0, count=0, moving=True, frames=frames())
