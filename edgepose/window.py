"""A window on the board's own screen."""

from __future__ import annotations

import os
import sys

import cv2

from edgepose.annotate import annotated
from edgepose.errors import SinkError, StopRequested
from edgepose.sources import Frame
from edgepose.types import Poses

__all__ = ["WindowSink"]

_QUIT = (ord("q"), 27)  # and Esc


class WindowSink:
    """Shows each frame with its skeletons; ``q``, Esc or closing the window ends the run.

    The window belongs to the thread that writes.

    Raises:
        SinkError: This OpenCV has no windows, or there is no screen.
    """

    def __init__(self, title: str = "edgepose", caption: str = "", threshold: float = 0.2) -> None:
        _check_screen()
        self._title = title
        self._caption = caption
        self._threshold = threshold
        self._open = False

    def write(self, frame: Frame, poses: Poses) -> None:
        """Show a frame.

        Raises:
            StopRequested: ``q`` or Esc was pressed, or the window was closed.
        """
        canvas = annotated(frame.image_bgr, poses, self._threshold, self._caption)
        if not self._open:
            cv2.namedWindow(self._title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
            cv2.resizeWindow(self._title, canvas.shape[1], canvas.shape[0])
            self._open = True
        cv2.imshow(self._title, canvas)
        pressed = cv2.waitKey(1) & 0xFF  # also lets the window draw itself
        if pressed in _QUIT or cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) < 1:
            raise StopRequested(self._title)

    def close(self, complete: bool) -> None:
        """Close the window; see :class:`edgepose.streaming.Sink`."""
        if self._open:
            cv2.destroyAllWindows()
            cv2.waitKey(1)
            self._open = False


def _check_screen() -> None:
    """Ask before OpenCV is asked: without a screen its windows end the whole process."""
    gui = next((line for line in cv2.getBuildInformation().splitlines() if line.strip().startswith("GUI:")), "")
    if gui.split()[1:2] == ["NONE"]:
        raise SinkError(
            "window: this OpenCV has no windows (opencv-python-headless): "
            "pip uninstall opencv-python-headless, then pip install opencv-python"
        )
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise SinkError("window: there is no screen (DISPLAY is not set): run it on the desktop, or use --serve")
