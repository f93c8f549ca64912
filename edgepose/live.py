"""Captures that run for weeks: the newest frame only, opened again when they are lost, watched for stalls.

    capture thread ──▶ Newest ──▶ frames() of the consumer
    opens, reads,      one frame   takes it, and meanwhile watches the capture thread's deadline
    waits, reopens

Nothing but its own capture thread ever touches a capture. A thread that misses its deadline hangs in a driver: it is
left behind, a new one takes over, and if the old one ever returns it frees its capture and ends.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
import weakref
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from edgepose.errors import SourceError
from edgepose.newest import CLOSE_S, Newest
from edgepose.sources import Counters, Frame, Source, SourceOptions, quiet_opencv

__all__ = ["Backoff", "Capture", "LiveKind", "open_live"]

_log = logging.getLogger(__name__)


class Capture(Protocol):
    """An open camera or stream, used by one thread.

    Attributes:
        fps: Frames per second, 0 where it does not say.
        count: Number of frames, 0 where it has no end.
    """

    fps: float
    count: int

    def read(self) -> NDArray[np.uint8] | None:
        """Wait for the next picture: (h, w, 3) BGR, or None where this one cannot be used.

        Raises:
            SourceError: There will be no more.
        """
        ...

    def release(self) -> None:
        """Let go of the device or connection."""
        ...


@dataclass(frozen=True)
class LiveKind:
    """A row of the grammar of sources.

    Attributes:
        name: For people, without credentials.
        takes: Names of the options that apply.
        open: Opens it.
    """

    name: str
    takes: frozenset[str]
    open: Callable[[SourceOptions], Capture]


@dataclass(frozen=True)
class Backoff:
    """How long to wait before an attempt: doubled each time up to a longest wait, and spread by +- ``jitter``."""

    first_s: float = 0.5
    longest_s: float = 30.0
    jitter: float = 0.2

    def delay_s(self, failures: int) -> float:
        """Seconds to wait after so many failures since the last good connection."""
        plain = min(self.first_s * 2.0 ** min(failures, 32), self.longest_s)  # weeks of failures would overflow
        return plain * random.uniform(1 - self.jitter, 1 + self.jitter)


@dataclass(frozen=True)
class _Limits:
    """When a capture counts as lost."""

    open_s: float = 25.0  # libraries that have timeouts give up after 10 s, connecting and probing apart
    first_s: float = 10.0  # a sensor may need seconds to start, however short a stall is allowed later
    bad_reads: int = 10
    retry_s: float = 0.02  # an unplugged camera fails at once, again and again
    own_share: float = 0.8  # of the stall time: the capture thread itself gives up before the watchdog must
    hung: int = 8  # threads left behind in a driver that never returns


_BACKOFF = Backoff()
_LIMITS = _Limits()


def open_live(name: str, opener: Callable[[], Capture], options: SourceOptions) -> Source:
    """Open a capture and keep it open.

    Args:
        name: For people, without credentials.
        opener: Opens the capture anew; called in the capture thread.
        options: ``reconnect`` and ``stall_s`` are used.

    Raises:
        SourceError: It cannot be opened, or gives no frame.
    """
    counters = Counters()
    live = _Live(name, opener, options, counters)
    live.start()
    frames = live.frames()
    weakref.finalize(frames, live.close)  # a source that nobody iterates must not read for ever
    return Source(name, live.fps, live.count, True, frames, live=True, counters=counters, stop=live.close)


class _Reader:
    """One capture thread, as its watchdog sees it."""

    def __init__(self, work: Callable[[_Reader, float], None], name: str, delay_s: float) -> None:
        self.missing = ""
        self.done = threading.Event()  # a finalizer may wait for it, in a thread too dead to join another
        self._deadline = math.inf
        self.thread = threading.Thread(target=work, args=(self, delay_s), name=f"capture {name}", daemon=True)

    def expect(self, what: str, within_s: float) -> None:
        """Something must come of it within so many seconds from now, or the thread hangs."""
        self.missing = f"no {what} for {within_s:g} s"
        self._deadline = time.monotonic() + within_s

    def rest(self) -> None:
        """Nothing is expected."""
        self._deadline = math.inf

    def time_left(self) -> float:
        """Seconds until the watchdog steps in."""
        return self._deadline - time.monotonic()


class _Live:
    """A capture that is read all the time and opened again when it is lost."""

    def __init__(self, name: str, opener: Callable[[], Capture], options: SourceOptions, counters: Counters) -> None:
        self.fps, self.count = 0.0, 0
        self._name, self._opener, self._options, self._counters = name, opener, options, counters
        self._newest = Newest(counters)
        self._lock = threading.RLock()  # a finalizer may close us from within
        self._reader = _Reader(self._work, name, 0)
        self._left_behind: list[threading.Thread] = []
        self._arrived = 0
        self._started_s = 0.0
        self._size_hw: tuple[int, ...] = ()
        self._size_noted = False
        self._connection = _Connection()

    def start(self) -> None:
        """Start reading, and wait for the first frame.

        Raises:
            SourceError: There is none.
        """
        self._reader.thread.start()
        try:
            while not self._newest.ready(self._reader.time_left()):
                self._watch()
            if not self._arrived:
                self._newest.raise_error()
        except BaseException:
            self.close()
            raise

    def frames(self) -> Generator[Frame, None, None]:
        """The newest frame, each time; ends when closed."""
        try:
            while True:
                if not self._newest.ready(self._reader.time_left()):
                    self._watch()
                elif (frame := self._newest.take()) is not None:
                    yield frame
                else:
                    return
        finally:
            self.close()

    def close(self) -> None:
        """Stop. The thread is given a moment to free its capture; one that hangs is left behind."""
        self._newest.close()
        if self._reader.thread.ident != threading.get_ident():
            self._reader.done.wait(CLOSE_S)

    def _watch(self) -> None:
        """Put a new thread in the place of one that hangs."""
        with self._lock:
            if self._reader.time_left() > 0 or self._newest.ended:
                return
            self._left_behind = [t for t in (*self._left_behind, self._reader.thread) if t.is_alive()]
            delay_s = self._outage(self._reader.missing)
            if delay_s is not None:
                self._reader = _Reader(self._work, self._name, delay_s)
                self._reader.thread.start()

    def _in_charge(self, reader: _Reader) -> bool:
        return reader is self._reader and not self._newest.ended

    def _work(self, reader: _Reader, delay_s: float | None) -> None:
        """The capture thread: wait, open, read until it is lost, and again."""
        try:
            with quiet_opencv():
                while delay_s is not None and not self._newest.wait_ended(delay_s):
                    reason = self._session(reader)
                    with self._lock:
                        delay_s = self._outage(reason) if self._in_charge(reader) else None
                        reader.rest()
        except Exception as error:  # a fault of ours: the consumer must hear of it, or it waits for ever
            self._newest.finish(error)
        finally:
            reader.done.set()

    def _session(self, reader: _Reader) -> str:
        """One connection from beginning to end: why it ended."""
        self._expect(reader, "answer", _LIMITS.open_s)
        try:
            capture = self._opener()
            try:
                return self._read(capture, reader)
            finally:
                reader.expect("end of the last connection", _LIMITS.open_s)
                capture.release()
        except SourceError as error:
            return str(error).removeprefix(f"{self._name}: ")
        except Exception as error:  # a driver's binding may raise anything: it is a loss like any other
            return f"{type(error).__name__}: {error}"

    def _read(self, capture: Capture, reader: _Reader) -> str:
        """Read until it is lost: why."""
        self.fps, self.count = capture.fps, capture.count
        patience_s = max(self._options.stall_s, _LIMITS.first_s)
        last, bad = time.monotonic(), 0
        self._expect(reader, "frame", patience_s)
        while self._in_charge(reader):
            image = _usable(capture.read())
            now = time.monotonic()
            if image is not None:
                patience_s = self._options.stall_s
                reader.expect("frame", patience_s)
                self._arrive(reader, image, now, bad)
                last, bad = now, 0
            elif now - last > _LIMITS.own_share * patience_s:
                return f"no frame for {patience_s:g} s"
            elif (bad := bad + 1) >= _LIMITS.bad_reads:
                return f"no usable frame in {bad} reads"
            else:
                self._newest.wait_ended(_LIMITS.retry_s)
        return "closed"

    def _expect(self, reader: _Reader, what: str, within_s: float) -> None:
        """Set a deadline, and let the consumer see it: it may wait for a later one."""
        reader.expect(what, within_s)
        self._newest.nudge()

    def _arrive(self, reader: _Reader, image: NDArray[np.uint8], now: float, bad: int) -> None:
        with self._lock:
            if not self._in_charge(reader):
                return
            if not self._arrived:
                self._started_s = now
            self._counters.corrupt += bad
            self._note_size(image)
            self._note_connection(now)
            self._newest.put(Frame(image, self._arrived, self._name, now - self._started_s, now))
            self._arrived += 1

    def _note_size(self, image: NDArray[np.uint8]) -> None:
        if self._size_hw not in ((), image.shape[:2]) and not self._size_noted:
            (old_h, old_w), (h, w) = self._size_hw, image.shape[:2]
            _log.warning("%s: frames were %dx%d and are %dx%d now", self._name, old_w, old_h, w, h)
            self._size_noted = True
        self._size_hw = image.shape[:2]

    def _note_connection(self, now: float) -> None:
        """Count the frame; where it is the first after an outage, say so."""
        connection = self._connection
        connection.frames += 1
        if connection.up:
            return
        connection.up, connection.since = True, now
        if self._arrived:
            self._counters.reconnects += 1
            seconds, attempt = now - connection.lost_at, connection.attempt
            _log.warning("%s: reconnected after %.1f s, attempt %d", self._name, seconds, attempt)

    def _outage(self, reason: str) -> float | None:
        """Note that a connection or an attempt ended: seconds to wait before the next, None where there is none."""
        now, connection = time.monotonic(), self._connection
        error = self._fatal(reason)
        if error is not None:
            self._newest.finish(error)
            return None
        if connection.up:
            _log.warning("%s: lost after %d frames (%s), reconnecting", self._name, connection.frames, reason)
            # One that breaks as soon as it is there must not be tried twice a second for weeks.
            steady = now - connection.since > connection.delay_s
            self._connection = connection = _Connection(0 if steady else connection.failures, lost_at=now)
        else:
            _log.info("%s: attempt %d failed (%s)", self._name, connection.attempt, reason)
        connection.attempt += 1
        connection.delay_s = _BACKOFF.delay_s(connection.failures)
        connection.failures += 1
        return connection.delay_s

    def _fatal(self, reason: str) -> SourceError | None:
        if not self._arrived:
            return SourceError(f"{self._name}: {reason}")
        if not self._options.reconnect:
            return SourceError(f"{self._name}: stopped delivering frames after {self._arrived} ({reason})")
        if len(self._left_behind) >= _LIMITS.hung:
            hung = len(self._left_behind)
            return SourceError(f"{self._name}: {hung} reads hang in the driver: replug the camera and start again")
        return None


@dataclass
class _Connection:
    """A connection, or the outage that it follows."""

    failures: int = 0  # attempts since the last steady connection: what the backoff counts
    lost_at: float = 0.0
    attempt: int = 0
    delay_s: float = 0.0
    up: bool = False
    since: float = 0.0
    frames: int = 0


def _usable(image: NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
    """The picture as (h, w, 3), or None where it is none.

    Raises:
        SourceError: Its pixels are not 8 bits: the whole stream is of no use.
    """
    if image is None or not image.size:
        return None
    if image.dtype != np.uint8:
        raise SourceError(f"its pixels are {image.dtype}, and 8-bit BGR is needed: convert them in the pipeline")
    channels = 1 if image.ndim == 2 else image.shape[2]
    code = {1: cv2.COLOR_GRAY2BGR, 4: cv2.COLOR_BGRA2BGR}.get(channels)
    return image if code is None else np.asarray(cv2.cvtColor(image, code), dtype=np.uint8)
