"""Files of results: an annotated video, JSON lines and COCO results. Each is whole under its name, or not there."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePath

import cv2
import numpy as np
from numpy.typing import NDArray

from edgepose.annotate import annotated
from edgepose.errors import SinkError
from edgepose.files import PartialFile, replace_file
from edgepose.messages import compact_json, frame_message
from edgepose.sources import IMAGE_SUFFIXES, Frame, quiet_opencv
from edgepose.types import Poses

__all__ = ["CocoResultsSink", "JsonLinesSink", "VideoSink", "check_output"]

_log = logging.getLogger(__name__)

_FOURCC = {".mp4": ("avc1", "mp4v"), ".avi": ("MJPG",), ".mkv": ("avc1", "MJPG")}
_LOOK_EVERY = 8  # frames between looks at the disk
_RESERVE = 16 << 20  # bytes left free, beside
_INDEX = 32  # bytes per frame for the index that is written at the end, and
_HELD_BACK = 64  # frames that the encoder still holds
_BUFFER = 256 << 10  # bytes that FFmpeg holds back before the file grows, as measured
_BLACK = {"avc1": 3e-5, "mp4v": 1.3e-3, "MJPG": 5e-3}  # bytes per pixel of a black frame, as measured, and of any:
_BLACK_LEAST = 16


def check_output(path: Path, *, force: bool, inputs: Iterable[Path] = ()) -> None:
    """Refuse an output that cannot or must not be written, before any work is done.

    Args:
        path: The file to write.
        force: Whether a regular file that is there may be replaced.
        inputs: What the work reads: never replaced, and nothing is written into a folder among them.

    Raises:
        SinkError: It exists and ``force`` is not given, is no regular file, is an input, or cannot be written.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise SinkError(f"{path}: is a folder, link or device, an output file is needed")
    for given in inputs:
        if given.exists() and path.absolute().is_relative_to(given.absolute()):
            raise SinkError(f"{path}: is part of the input {given}: choose another output")
    if path.exists() and not force:
        raise SinkError(f"{path}: exists: give another name, or --force to replace it")
    probe = path.with_name(f".{path.name}.check")
    try:
        with replace_file(probe) as partial:
            partial.touch()
        probe.unlink()
    except OSError as error:
        raise SinkError(f"{path}: cannot write here ({error.strerror}): choose another folder") from None


class _FileSink:
    """A file that gets its name at the end: after a whole run, or, cut short, where it replaces nothing."""

    def __init__(self, path: Path) -> None:
        self._file = PartialFile(path)
        self._frames = 0

    def _finish(self, complete: bool) -> None:
        try:
            if self._frames and (complete or not self._file.path.exists()):
                self._file.keep()
            else:
                self._file.discard()
        except OSError as error:
            raise SinkError(f"{self._file.path}: cannot be finished ({error.strerror}): is the disk there?") from None


class _Rows:
    """Rows of text in a file that is whole after each of them: a row that does not fit is taken back."""

    def __init__(self, file: PartialFile, closing: str = "") -> None:
        self._path = file.path
        self._file = file.partial.open("wb", buffering=0)
        self._closing = closing.encode()
        self._end = 0  # where the last row ends

    def add(self, text: str) -> None:
        """Write a row over the closing, and the closing after it.

        Raises:
            SinkError: The disk is full or failed.
        """
        data = text.encode()
        try:
            self._write(data + self._closing)
        except OSError as error:
            with suppress(OSError):
                self._take_back()
            raise SinkError(f"{self._path}: cannot write on ({error.strerror}): the rows so far are whole") from None
        self._end += len(data)

    def close(self) -> None:
        self._file.close()

    def _write(self, data: bytes) -> None:
        self._file.seek(self._end)
        while data:  # a disk that is nearly full takes a part first
            data = data[self._file.write(data) or 0 :]

    def _take_back(self) -> None:
        self._write(self._closing if self._end else b"")  # the blocks are there already: this fits
        self._file.truncate()


class JsonLinesSink(_FileSink):
    """One JSON object per frame: ``schema``, ``frame``, ``name``, ``time_s``, ``skeleton``, ``people``."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._rows = _Rows(self._file)

    def write(self, frame: Frame, poses: Poses) -> None:
        """Add a line.

        Raises:
            SinkError: The disk is full or failed.
        """
        self._rows.add(frame_message(frame, poses) + "\n")
        self._frames += 1

    def close(self, complete: bool) -> None:
        """Finish the file; see :class:`edgepose.streaming.Sink`."""
        self._rows.close()
        self._finish(complete)


class CocoResultsSink(_FileSink):
    """COCO keypoint results: one JSON array with a row per person.

    A picture's id is its file name where that is a number, as COCO has it, else its position in the source.

    Args:
        path: The file to write.
        image_ids: Ids by file name, for pictures that are called otherwise.
    """

    def __init__(self, path: Path, image_ids: Mapping[str, int] | None = None) -> None:
        super().__init__(path)
        self._rows = _Rows(self._file, closing="\n]\n")
        self._people = 0
        self._given = image_ids
        self._names: dict[int, str] = {}  # of pictures only: a camera's frames would fill the memory

    def write(self, frame: Frame, poses: Poses) -> None:
        """Add the people of one frame.

        Raises:
            SinkError: The disk is full or failed, or the id is not given or stands for another picture.
        """
        text = "" if self._frames else "["
        for row in poses.to_coco(self._id(frame)):
            text += (",\n" if self._people else "\n") + compact_json(row)
            self._people += 1
        self._rows.add(text)
        self._frames += 1

    def close(self, complete: bool) -> None:
        """Finish the file; see :class:`edgepose.streaming.Sink`."""
        self._rows.close()
        self._finish(complete)

    def _id(self, frame: Frame) -> int:
        name = PurePath(frame.name)
        if self._given is not None:
            if frame.name not in self._given:
                raise SinkError(f"{self._file.path}: {frame.name} has no image id: is it a picture of this data set?")
            return self._given[frame.name]
        if name.suffix.lower() not in IMAGE_SUFFIXES:
            return frame.index
        number = int(name.stem) if name.stem.isdecimal() else frame.index
        if self._names.setdefault(number, frame.name) != frame.name:
            raise SinkError(
                f"{self._file.path}: {frame.name} and {self._names[number]} would both have image id {number}"
            )
        return number


class VideoSink(_FileSink):
    """The frames with skeletons drawn on them, and poses in space beside. The first frame sets the size."""

    def __init__(self, path: Path, fps: float, caption: str = "", threshold: float = 0.2) -> None:
        if path.suffix.lower() not in _FOURCC:
            raise SinkError(f"{path}: unknown video type: use {', '.join(_FOURCC)}")
        super().__init__(path)
        self._fps = fps if fps > 0 else 10.0
        self._caption = caption
        self._threshold = threshold
        self._writer: cv2.VideoWriter | None = None
        self._disk = _Disk(self._file, _BLACK_LEAST)
        self._size = (0, 0)

    def write(self, frame: Frame, poses: Poses) -> None:
        """Add a frame.

        Raises:
            SinkError: OpenCV cannot write such a video here, or the disk is full or failed.
        """
        canvas = annotated(frame.image_bgr, poses, self._threshold, self._caption)
        if self._writer is None:
            self._writer = self._open(canvas.shape[1], canvas.shape[0])
        if (canvas.shape[1], canvas.shape[0]) != self._size:
            canvas = _letterbox(canvas, self._size)
        with quiet_opencv():
            self._writer.write(canvas)
        self._frames += 1
        self._disk.check(self._frames)

    def close(self, complete: bool) -> None:
        """Finish the file; see :class:`edgepose.streaming.Sink`."""
        if self._writer is not None:
            with quiet_opencv():
                self._writer.release()
        if self._disk.failed and not _playable(self._file.partial):
            self._frames = 0  # nothing that could be kept
        self._finish(complete)

    def _open(self, width: int, height: int) -> cv2.VideoWriter:
        path = self._file.path
        for code in _FOURCC[path.suffix.lower()]:
            with quiet_opencv():
                fourcc = cv2.VideoWriter.fourcc(*code)
                writer = cv2.VideoWriter(str(self._file.partial), fourcc, self._fps, (width, height))
            if writer.isOpened() and self._file.partial.exists():
                _log.info("%s: %dx%d, codec %s", path, width, height, code)
                self._size = (width, height)
                self._disk = _Disk(self._file, _BLACK[code] * width * height + _BLACK_LEAST)
                return writer
        raise SinkError(f"{path}: OpenCV cannot write a {width}x{height} video of this type here: try .avi")


class _Disk:
    """Notices that a video is not written any more, which OpenCV does not report.

    Args:
        file: What is written.
        least_bytes: What a frame takes at least.
    """

    def __init__(self, file: PartialFile, least_bytes: float) -> None:
        self._file = file
        self._patience = 2 * _BUFFER / least_bytes
        self._size, self._grown_at = 0, 0
        self.failed = False

    def check(self, frames: int) -> None:
        """Look after every few frames.

        Raises:
            SinkError: The disk is full, read-only, gone, or takes nothing any more.
        """
        if frames % _LOOK_EVERY == 1:
            reason = self._trouble(frames)
            if reason:
                self.failed = True
                raise SinkError(f"{self._file.path}: {reason}: the recording ends here, after {frames} frames")

    def _trouble(self, frames: int) -> str:
        try:
            disk = os.statvfs(self._file.partial.parent)
            size = self._file.partial.stat().st_size
        except OSError as error:
            return f"the file or its disk is gone ({error.strerror})"
        if size != self._size:
            self._size, self._grown_at = size, frames
        if disk.f_flag & os.ST_RDONLY:
            return "the disk has become read-only"
        free = disk.f_bavail * disk.f_frsize
        if free < _RESERVE + _INDEX * frames + _HELD_BACK * size / frames:
            return f"the disk is full (the last {free / 1e6:.0f} MB are for the end of the file)"
        if frames - self._grown_at > self._patience:
            return f"the disk takes no more than these {size / 1e6:.0f} MB (a quota, a file size limit or a failure)"
        return ""


def _playable(path: Path) -> bool:
    """Whether a video has a first frame: an .mp4 that was cut off has none."""
    with quiet_opencv():
        capture = cv2.VideoCapture(str(path))
        ok, _ = capture.read() if capture.isOpened() else (False, None)
        capture.release()
    return bool(ok)


def _letterbox(image: NDArray[np.uint8], size_wh: tuple[int, int]) -> NDArray[np.uint8]:
    """Fit an image into a size, with black bars."""
    height, width = image.shape[:2]
    scale = min(size_wh[0] / width, size_wh[1] / height)
    fitted = cv2.resize(image, (max(1, round(width * scale)), max(1, round(height * scale))))
    bottom, right = size_wh[1] - fitted.shape[0], size_wh[0] - fitted.shape[1]
    framed = cv2.copyMakeBorder(fitted, 0, bottom, 0, right, cv2.BORDER_CONSTANT)
    return np.asarray(framed, dtype=np.uint8)
