"""Raw BGR24 frames on standard input: what another program decodes or captures, through a pipe."""

from __future__ import annotations

import itertools
import logging
import os
import select
import sys
import threading
import time
from collections.abc import Generator

import numpy as np

from edgepose.errors import SourceError
from edgepose.sources import Frame, Source, SourceOptions

__all__ = ["standard_input"]

_NAME = "standard input"
_LOOK_S = 0.2  # how often a reader that waits for the pipe looks whether it was closed

_log = logging.getLogger(__name__)


def standard_input(options: SourceOptions) -> Source:
    """Frames from the pipe on standard input, every one in order: the pipe holds the sender back.

    Args:
        options: ``size_wh`` says what comes; with ``fps`` time goes by it, else by the clock.

    Raises:
        SourceError: The size is not given, or there is no pipe.
    """
    if options.size_wh is None:
        raise SourceError(
            "-: raw frames on standard input have no header: their size is needed (--size 1280x720, in Python size_wh)"
        )
    try:
        descriptor = sys.stdin.fileno()
    except (AttributeError, OSError, ValueError):
        raise SourceError("-: there is no standard input here: give another source") from None
    if os.isatty(descriptor):
        raise SourceError("-: standard input is a terminal: pipe raw BGR24 frames into it")
    stop = threading.Event()
    frames = _frames(descriptor, options.size_wh, options.fps, stop)
    return Source(_NAME, options.fps or 0, count=0, moving=True, frames=frames, stop=stop.set)


def _frames(
    descriptor: int, size_wh: tuple[int, int], fps: float | None, stop: threading.Event
) -> Generator[Frame, None, None]:
    width, height = size_wh
    started_s = 0.0
    for index in itertools.count():
        image = np.empty((height, width, 3), np.uint8)
        missing = _fill(descriptor, image.data.cast("B"), stop)
        if stop.is_set():
            return
        if missing:
            _check_end(index, size_wh, image.nbytes - missing)
            return
        now = time.monotonic()
        started_s = started_s if index else now
        yield Frame(image, index, _NAME, index / fps if fps else now - started_s, now)


def _fill(descriptor: int, buffer: memoryview, stop: threading.Event) -> int:
    """Read until the buffer is full, the pipe at its end, or we are stopped: bytes still missing."""
    at = 0
    while at < len(buffer) and not stop.is_set():
        if select.select([descriptor], [], [], _LOOK_S)[0]:
            count = os.readv(descriptor, [buffer[at:]])
            if not count:
                break
            at += count
    return len(buffer) - at


def _check_end(frames: int, size_wh: tuple[int, int], rest: int) -> None:
    """A pipe ends between two frames; elsewhere the sender broke down, or the frames have another size."""
    width, height = size_wh
    if not frames:
        raise SourceError(
            f"{_NAME}: ended before one whole frame of {width}x{height} came ({rest} bytes): another size?"
        )
    if rest:
        _log.warning(
            "%s: ended inside a frame of %dx%d, after %d whole ones: another size?", _NAME, width, height, frames
        )
