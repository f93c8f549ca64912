"""The newest frame and no other: what a thread that reads hands to a slower one; files that run like cameras."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace

from edgepose.sources import Counters, Frame, Source

__all__ = ["CLOSE_S", "Newest", "open_paced"]

CLOSE_S = 2.0
"""Seconds that a thread is given to free what it holds when a source is closed."""


class Newest:
    """Hands the newest frame from a capture thread to one consumer; frames that nobody took are counted."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._changed = threading.Condition()
        self._frame: Frame | None = None
        self._error: Exception | None = None
        self.ended = False

    def put(self, frame: Frame) -> None:
        """Replace what is there."""
        with self._changed:
            if not self.ended:
                self._counters.dropped += self._frame is not None
                self._frame = frame
            self._changed.notify_all()

    def finish(self, error: Exception | None = None) -> None:
        """No more frames; the consumer gets the last one, then the error. The first call counts."""
        with self._changed:
            if not self.ended:
                self.ended, self._error = True, error
            self._changed.notify_all()

    def close(self) -> None:
        """No more frames, and none of those that are there."""
        with self._changed:
            self.finish()
            self._frame = self._error = None

    def nudge(self) -> None:
        """Let a waiting consumer look around."""
        with self._changed:
            self._changed.notify_all()

    def ready(self, timeout_s: float) -> bool:
        """Whether there is a frame or the end; waits, but returns early when nudged."""
        with self._changed:
            if self._frame is None and not self.ended:
                self._changed.wait(_finite(timeout_s))
            return self._frame is not None or self.ended

    def take(self) -> Frame | None:
        """The frame, or None where there is none now.

        Raises:
            Exception: What :meth:`finish` was given.
        """
        with self._changed:
            frame, self._frame = self._frame, None
            if frame is None and self._error is not None:
                raise self._error
            return frame

    def wait_ended(self, seconds: float) -> bool:
        """Sleep, unless the end comes first."""
        with self._changed:
            return self._changed.wait_for(lambda: self.ended, seconds)

    def raise_error(self) -> None:
        """Raise what :meth:`finish` was given, if anything."""
        if self._error is not None:
            raise self._error


def _finite(seconds: float) -> float | None:
    return None if math.isinf(seconds) else max(0.0, seconds)


def open_paced(source: Source) -> Source:
    """Deliver the frames of a file at their own times as if they were live: the newest one only.

    A frame keeps its position, and comes when its time has come; how many will be taken is not known.
    """
    counters = source.counters
    newest = Newest(counters)
    done = threading.Event()  # a finalizer may wait for it, in a thread too dead to join another
    thread = threading.Thread(target=_pace, args=(source, newest, done), name=f"pace {source.name}", daemon=True)

    def stop() -> None:
        newest.close()
        source.stop()
        if thread.ident != threading.get_ident():
            done.wait(CLOSE_S)

    frames = _taken(newest, stop)
    weakref.finalize(frames, stop)
    thread.start()
    return replace(source, count=0, frames=frames, live=True, stop=stop)


def _pace(source: Source, newest: Newest, done: threading.Event) -> None:
    start = time.monotonic()
    try:
        with closing(source.frames) as frames:
            for frame in frames:
                if newest.wait_ended(start + frame.time_s - time.monotonic()):
                    break
                now = time.monotonic()
                newest.put(replace(frame, time_s=now - start, captured_s=now))
    except Exception as error:  # the consumer gets it, whatever it is
        newest.finish(error)
    newest.finish()
    done.set()


def _taken(newest: Newest, stop: Callable[[], None]) -> Generator[Frame, None, None]:
    try:
        while True:
            if newest.ready(math.inf):
                frame = newest.take()
                if frame is None:
                    return
                yield frame
    finally:
        stop()
