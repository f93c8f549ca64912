"""A source of frames becomes poses in sinks; reading, finding poses and writing overlap.

    source ──▶ reader thread ──▶ poses_of, in the caller's thread ──▶ writer thread ──▶ sinks
                  at most 2 frames wait                     at most 4 results wait

A live source hands over its newest frame itself (``sources.py``), so that none waits there. Where a stage is slower
than the one before it, that one waits: nothing grows. Whatever ends the run, the sinks are closed and what they wrote
is whole.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from edgepose.errors import EdgePoseError, PipelineError, StopRequested
from edgepose.metrics import Metrics
from edgepose.sources import Frame, Source
from edgepose.types import Poses

__all__ = ["First", "PosesOf", "Result", "Sink", "run", "stream"]

_READ_AHEAD, _WRITE_BEHIND = 2, 4

PosesOf = Callable[[Frame], Poses]
"""Finds the poses of a frame; frames come in order."""


class Sink(Protocol):
    """Takes each frame with its poses."""

    def write(self, frame: Frame, poses: Poses) -> None:
        """Take one frame.

        Raises:
            StopRequested: Somebody wants the run to end here.
        """
        ...

    def close(self, complete: bool) -> None:
        """Finish; called once, with ``complete`` false after an error or Ctrl-C."""
        ...


@dataclass(frozen=True, eq=False)
class Result:
    """A frame and its poses."""

    frame: Frame
    poses: Poses


class First:
    """The first frames of a source."""

    def __init__(self, source: Source, count: int) -> None:
        self._source, self._count = source, count
        self.live = source.live

    def __iter__(self) -> Iterator[Frame]:
        return islice(iter(self._source), self._count)


def run(
    source: Iterable[Frame],
    poses_of: PosesOf,
    sinks: Sequence[Sink],
    metrics: Metrics | None = None,
    progress: Callable[[Metrics], None] = lambda metrics: None,
) -> Metrics:
    """Send every frame of a source through ``poses_of`` into the sinks.

    Args:
        source: Frames; a live source gives the newest each time.
        poses_of: Finds the poses of one frame.
        sinks: Each takes every result, one after the other.
        metrics: To count and time with.
        progress: Called after each frame.

    Raises:
        PipelineError: A stage failed; the message begins with its name.
        EdgePoseError: The same, where the stage says what is wrong.
    """
    metrics = metrics or Metrics()
    with ExitStack() as stack:
        writer = stack.enter_context(_Writer(sinks, metrics))
        for result in stack.enter_context(_Results(source, poses_of, metrics)):
            if not writer.put(result):
                break
            progress(metrics)
    return metrics


def stream(source: Iterable[Frame], poses_of: PosesOf, metrics: Metrics | None = None) -> Iterator[Result]:
    """The frames of a source with their poses, read ahead; errors as in :func:`run`."""
    with _Results(source, poses_of, metrics or Metrics()) as results:
        yield from results


class _Results:
    """Frames with their poses."""

    def __init__(self, source: Iterable[Frame], poses_of: PosesOf, metrics: Metrics) -> None:
        self._poses_of, self._metrics = poses_of, metrics
        live = bool(getattr(source, "live", False))
        self._frames = _Direct(source, metrics) if live else _ReadAhead(source, metrics)

    def __enter__(self) -> _Results:
        return self

    def __exit__(self, *_: object) -> None:
        self._frames.close()

    def __iter__(self) -> Iterator[Result]:
        for frame in self._frames:
            with _naming("poses"), self._metrics.stage("poses"):
                poses = self._poses_of(frame)
            self._metrics.result(len(poses), frame.captured_s)
            yield Result(frame, poses)


class _Direct:
    """Frames of a live source, which has a thread of its own."""

    def __init__(self, source: Iterable[Frame], metrics: Metrics) -> None:
        self._source, self._metrics = source, metrics

    def __iter__(self) -> Iterator[Frame]:
        frames = iter(self._source)
        while True:
            with _naming("capture"), self._metrics.stage("wait for a frame"):
                frame = next(frames, None)
            if frame is None:
                return
            yield frame

    def close(self) -> None:
        """The source is closed by whoever opened it."""


class _ReadAhead:
    """Frames that a thread reads while others are worked on."""

    def __init__(self, source: Iterable[Frame], metrics: Metrics) -> None:
        self._source, self._metrics = source, metrics
        self._waiting: queue.Queue[Any] = queue.Queue(_READ_AHEAD)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, name="edgepose-reader", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        frames = iter(self._source)
        try:
            while not self._stop.is_set():
                with self._metrics.stage("read"):
                    frame = next(frames, None)
                self._put(frame)
                if frame is None:
                    return
        except BaseException as error:  # it belongs to the caller's thread
            self._put(error)

    def _put(self, item: object) -> None:
        while not self._stop.is_set():
            try:
                return self._waiting.put(item, timeout=0.1)
            except queue.Full:
                continue
        return None

    def __iter__(self) -> Iterator[Frame]:
        while True:
            item = self._waiting.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                with _naming("capture"):
                    raise item
            yield item

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        self._thread.join(timeout=5)


class _Writer:
    """Sinks in a thread of their own. Leaving it waits until everything is written, and closes them."""

    def __init__(self, sinks: Sequence[Sink], metrics: Metrics) -> None:
        self._sinks, self._metrics = sinks, metrics
        self._waiting: queue.Queue[Result | None] = queue.Queue(_WRITE_BEHIND)
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="edgepose-writer", daemon=True)

    def __enter__(self) -> _Writer:
        self._thread.start()
        return self

    def put(self, result: Result) -> bool:
        """Hand a result over, and wait where the sinks are behind; False once one of them wants to end.

        Raises:
            EdgePoseError: A sink failed; see :func:`run`.
        """
        while not self._ended.is_set():
            try:
                self._waiting.put(result, timeout=0.1)
            except queue.Full:
                continue
            return True
        self._raise()
        return False

    def _work(self) -> None:
        try:
            while (result := self._waiting.get()) is not None:
                with self._metrics.stage("write"):
                    for sink in self._sinks:
                        sink.write(result.frame, result.poses)
        except BaseException as error:  # it belongs to the caller's thread
            self._error = error
        self._ended.set()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        while not self._ended.is_set():
            try:
                self._waiting.put(None, timeout=0.1)
                break
            except queue.Full:
                continue
        self._thread.join()
        failed = self._error is not None and not isinstance(self._error, StopRequested)
        with ExitStack() as stack:
            for sink in self._sinks:
                stack.callback(sink.close, complete=kind is None and not failed)
        if kind is None:
            self._raise()

    def _raise(self) -> None:
        if self._error is not None and not isinstance(self._error, StopRequested):
            with _naming("output"):
                raise self._error


class _naming:  # noqa: N801 - reads as a statement
    """Puts the stage's name before what went wrong in it."""

    def __init__(self, stage: str) -> None:
        self._stage = stage

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, EdgePoseError):
            raise type(error)(f"{self._stage}: {error}") from error
        if isinstance(error, Exception) and not isinstance(error, StopIteration):
            raise PipelineError(f"{self._stage}: {type(error).__name__}: {error}") from error
