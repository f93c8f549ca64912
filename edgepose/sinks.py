"""Where results go: an annotated video and JSON lines. Each is whole under its name, or not there."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

import cv2
import numpy as np
from numpy.typing import NDArray

from edgepose.draw import draw_poses, draw_text
from edgepose.draw3d import draw_panel
from edgepose.errors import SinkError
from edgepose.files import PartialFile, replace_file
from edgepose.sources import Frame, quiet_opencv
from edgepose.types import Poses

__all__ = ["JsonLinesSink", "VideoSink", "check_output"]

_PANEL = 0.6  # width of the panel with poses in space, in heights of the picture
_FOURCC = {".mp4": "mp4v", ".avi": "MJPG", ".mkv": "MJPG"}


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
        if self._frames and (complete or not self._file.path.exists()):
            self._file.keep()
        else:
            self._file.discard()


class JsonLinesSink(_FileSink):
    """One JSON object per frame: ``frame``, ``name``, ``time_s``, ``skeleton``, ``people``."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._lines: TextIO = self._file.partial.open("w", encoding="utf-8")

    def write(self, frame: Frame, poses: Poses) -> None:
        """Add a line."""
        head = {"frame": frame.index, "name": frame.name, "time_s": round(frame.time_s, 4)}
        self._lines.write(json.dumps(head | poses.to_dict(), separators=(",", ":")) + "\n")
        self._frames += 1

    def close(self, complete: bool) -> None:
        """Finish the file; see :class:`edgepose.pipeline.Sink`."""
        self._lines.close()
        self._finish(complete)


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
        self._size = (0, 0)

    def write(self, frame: Frame, poses: Poses) -> None:
        """Add a frame.

        Raises:
            SinkError: OpenCV cannot write such a video here.
        """
        canvas = draw_poses(frame.image_bgr, poses, self._threshold)
        if poses.skeleton_xyz is not None:
            height = canvas.shape[0]
            canvas = np.hstack([canvas, draw_panel(poses, (round(_PANEL * height) // 2 * 2, height))])
        if self._caption:
            draw_text(canvas, self._caption)
        if self._writer is None:
            self._writer = self._open(canvas.shape[1], canvas.shape[0])
        if (canvas.shape[1], canvas.shape[0]) != self._size:
            canvas = _letterbox(canvas, self._size)
        self._writer.write(canvas)
        self._frames += 1

    def close(self, complete: bool) -> None:
        """Finish the file; see :class:`edgepose.pipeline.Sink`."""
        if self._writer is not None:
            self._writer.release()
        self._finish(complete)

    def _open(self, width: int, height: int) -> cv2.VideoWriter:
        path = self._file.path
        code = cv2.VideoWriter.fourcc(*_FOURCC[path.suffix.lower()])
        with quiet_opencv():
            writer = cv2.VideoWriter(str(self._file.partial), code, self._fps, (width, height))
        if not writer.isOpened() or not self._file.partial.exists():
            raise SinkError(f"{path}: OpenCV cannot write a {width}x{height} video of this type here: try .avi")
        self._size = (width, height)
        return writer


def _letterbox(image: NDArray[np.uint8], size_wh: tuple[int, int]) -> NDArray[np.uint8]:
    """Fit an image into a size, with black bars."""
    height, width = image.shape[:2]
    scale = min(size_wh[0] / width, size_wh[1] / height)
    fitted = cv2.resize(image, (max(1, round(width * scale)), max(1, round(height * scale))))
    bottom, right = size_wh[1] - fitted.shape[0], size_wh[0] - fitted.shape[1]
    framed = cv2.copyMakeBorder(fitted, 0, bottom, 0, right, cv2.BORDER_CONSTANT)
    return np.asarray(framed, dtype=np.uint8)
