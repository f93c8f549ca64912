"""Where results go: an annotated video and JSON lines. Each is whole under its name, or not there."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

import cv2
import numpy as np
from numpy.typing import NDArray

from edgepose.draw import draw_poses, draw_text
from edgepose.errors import SinkError
from edgepose.files import replace_file
from edgepose.sources import Frame, quiet_opencv
from edgepose.types import Poses

__all__ = ["JsonLinesSink", "VideoSink", "check_output"]

_FOURCC = {".mp4": "mp4v", ".avi": "MJPG", ".mkv": "MJPG"}


def check_output(path: Path, *, force: bool) -> None:
    """Refuse an output that cannot be written, before any work is done.

    Raises:
        SinkError: The file exists and ``force`` is not given, or its folder cannot be written.
    """
    if path.is_dir():
        raise SinkError(f"{path}: is a folder, an output file is needed")
    if path.exists() and not force:
        raise SinkError(f"{path}: exists: give another name, or --force to replace it")
    try:
        with replace_file(path.with_name(f".{path.name}.check")) as probe:
            probe.touch()
        path.with_name(f".{path.name}.check").unlink()
    except OSError as error:
        raise SinkError(f"{path}: cannot write here ({error.strerror}): choose another folder") from None


class JsonLinesSink:
    """One JSON object per frame: ``frame``, ``name``, ``time_s``, ``skeleton``, ``people``."""

    def __init__(self, path: Path) -> None:
        self._stack = ExitStack()
        partial = self._stack.enter_context(replace_file(path))
        self._file: TextIO = self._stack.enter_context(partial.open("w", encoding="utf-8"))

    def write(self, frame: Frame, poses: Poses) -> None:
        """Add a line."""
        head = {"frame": frame.index, "name": frame.name, "time_s": round(frame.time_s, 4)}
        self._file.write(json.dumps(head | poses.to_dict(), separators=(",", ":")) + "\n")

    def close(self) -> None:
        """Finish the file and give it its name."""
        self._stack.close()


class VideoSink:
    """The frames with skeletons drawn on them. The first frame sets the size; others are fitted into it."""

    def __init__(self, path: Path, fps: float, caption: str = "", threshold: float = 0.2) -> None:
        if path.suffix.lower() not in _FOURCC:
            raise SinkError(f"{path}: unknown video type: use {', '.join(_FOURCC)}")
        self._path = path
        self._fps = fps if fps > 0 else 10.0
        self._caption = caption
        self._threshold = threshold
        self._stack = ExitStack()
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)

    def write(self, frame: Frame, poses: Poses) -> None:
        """Add a frame.

        Raises:
            SinkError: OpenCV cannot write such a video here.
        """
        canvas = draw_poses(frame.image_bgr, poses, self._threshold)
        if self._caption:
            draw_text(canvas, self._caption)
        if self._writer is None:
            self._writer = self._open(canvas.shape[1], canvas.shape[0])
        if (canvas.shape[1], canvas.shape[0]) != self._size:
            canvas = _letterbox(canvas, self._size)
        self._writer.write(canvas)

    def close(self) -> None:
        """Finish the file and give it its name; without a frame there is none."""
        if self._writer is not None:
            self._writer.release()
        self._stack.close()

    def _open(self, width: int, height: int) -> cv2.VideoWriter:
        code = cv2.VideoWriter.fourcc(*_FOURCC[self._path.suffix.lower()])
        with ExitStack() as stack:
            partial = stack.enter_context(replace_file(self._path))
            with quiet_opencv():
                writer = cv2.VideoWriter(str(partial), code, self._fps, (width, height))
            if not writer.isOpened():
                raise SinkError(f"{self._path}: OpenCV cannot write a {width}x{height} video here: try .avi")
            self._stack = stack.pop_all()
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
