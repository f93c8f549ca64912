"""A source becomes poses in sinks: order, overlap, back-pressure, and the end, whatever brings it."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from edgepose import EngineError, PipelineError, Poses, SinkError, SourceError
from edgepose.errors import StopRequested
from edgepose.metrics import LATENCY, Metrics
from edgepose.sources import Frame
from edgepose.streaming import run, stream


class Recorder:
    """A sink that can be slow, fail, or ask for the end."""

    def __init__(self, fail_at=None, error=None, delay_s=0.0):
        self.frames, self.closed = [], []
        self.fail_at, self.error, self.delay_s = fail_at, error or OSError("disk full"), delay_s

    def write(self, frame, poses):
        if frame.index == self.fail_at:
            raise self.error
        time.sleep(self.delay_s)
        self.frames.append((frame.index, len(poses)))

    def close(self, complete):
        self.closed.append(complete)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = threading.active_count()
    yield
    deadline = time.monotonic() + 2
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def blank_frames(count, delay_s=0.0, taken=None):
    for i in range(count):
        time.sleep(delay_s)
        if taken is not None:
            taken.append(i)
        yield Frame(np.zeros((8, 8, 3), np.uint8), i, "blank", i / 10)


def nobody(frame):
    return Poses.empty("coco17")


def test_every_frame_comes_to_every_sink_in_order():
    sinks = [Recorder(), Recorder()]
    metrics = run(blank_frames(50), nobody, sinks)
    assert [sink.frames for sink in sinks] == [[(i, 0) for i in range(50)]] * 2
    assert [sink.closed for sink in sinks] == [[True], [True]]
    assert (metrics.frames, metrics.people) == (50, 0)
    assert list(metrics.percentiles()) == ["read", "poses", LATENCY, "write"]


def test_reading_poses_and_writing_overlap():
    """Three stages of 10 ms take 10 ms for a frame together, not 30."""

    def slow(frame):
        time.sleep(0.01)
        return nobody(frame)

    start = time.perf_counter()
    run(blank_frames(30, delay_s=0.01), slow, [Recorder(delay_s=0.01)])
    assert time.perf_counter() - start < 0.75 * 0.03 * 30


class Halves:
    """Finds nobody, in two steps, and keeps a record."""

    def __init__(self, begin_fails_at=None, finish_fails_at=None):
        self.log, self.fails = [], {"begin": begin_fails_at, "finish": finish_fails_at}

    def _step(self, name, frame):
        if frame.index == self.fails[name]:
            raise EngineError(f"{name} broke")
        self.log.append((name, frame.index))

    def begin(self, frame):
        self._step("begin", frame)
        return frame

    def finish(self, frame):
        self._step("finish", frame)
        return nobody(frame)


def test_frames_of_a_file_are_begun_ahead_and_those_of_a_camera_are_not():
    class Live:
        live = True

        def __iter__(self):
            return blank_frames(3)

    for source, expected in ((blank_frames(3), "bbfbff"), (Live(), "bfbfbf")):
        halves, sink = Halves(), Recorder()
        run(source, halves, [sink])
        assert "".join(name[0] for name, _ in halves.log) == expected
        assert [index for index, _ in sink.frames] == [0, 1, 2]


@pytest.mark.parametrize(("fails", "written"), [({"begin_fails_at": 3}, 3), ({"finish_fails_at": 3}, 3)])
def test_what_was_begun_before_a_failure_is_written(fails, written):
    sink = Recorder()
    with pytest.raises(EngineError, match=r"^poses: (begin|finish) broke$"):
        run(blank_frames(6), Halves(**fails), [sink])
    assert [index for index, _ in sink.frames] == list(range(written))


def test_a_slow_sink_holds_the_source_back():
    taken, sink = [], Recorder(delay_s=0.01)
    ahead = []

    def watch(frame):
        ahead.append(len(taken) - len(sink.frames))
        return nobody(frame)

    run(blank_frames(60, taken=taken), watch, [sink])
    assert max(ahead) <= 10


@pytest.mark.parametrize("where", ["source", "poses", "sink"])
def test_sinks_are_closed_whatever_happens(where):
    def frames():
        yield from blank_frames(3)
        if where == "source":
            raise KeyboardInterrupt

    def poses_of(frame):
        if where == "poses" and frame.index == 2:
            raise EngineError("broke")
        return nobody(frame)

    sinks = [Recorder(fail_at=2 if where == "sink" else None), Recorder()]
    with pytest.raises((KeyboardInterrupt, EngineError, PipelineError)):
        run(frames(), poses_of, sinks)
    assert [sink.closed for sink in sinks] == [[False], [False]]
    assert len(sinks[1].frames) >= 2


@pytest.mark.parametrize(
    ("source", "poses", "sink", "kind", "message"),
    [
        (SourceError("camera 0: gone"), None, None, SourceError, "capture: camera 0: gone"),
        (None, EngineError("out of memory"), None, EngineError, "poses: out of memory"),
        (None, ZeroDivisionError("division"), None, PipelineError, "poses: ZeroDivisionError: division"),
        (None, None, SinkError("disk full"), SinkError, "output: disk full"),
        (None, None, OSError("odd"), PipelineError, "output: OSError: odd"),
    ],
)
def test_the_stage_that_failed_is_named(source, poses, sink, kind, message):
    def frames():
        yield from blank_frames(2)
        if source:
            raise source

    def poses_of(frame):
        if poses:
            raise poses
        return nobody(frame)

    with pytest.raises(kind, match=f"^{message}$"):
        run(frames(), poses_of, [Recorder(fail_at=1 if sink else None, error=sink)])


def test_a_failure_while_the_last_frames_are_written_is_not_lost():
    sink = Recorder(fail_at=2, error=SinkError("disk full"), delay_s=0.05)
    with pytest.raises(SinkError, match="output: disk full"):
        run(blank_frames(3), nobody, [sink])
    assert sink.closed == [False]


def test_a_sink_may_end_the_run():
    taken = []
    sink, other = Recorder(fail_at=5, error=StopRequested("window")), Recorder()
    run(blank_frames(1000, delay_s=0.001, taken=taken), nobody, [other, sink])
    assert [sink.closed, other.closed] == [[True], [True]]
    assert len(sink.frames) == 5
    assert len(taken) < 100


class Live:
    """A live source: it has a thread of its own, and is asked for a frame only when there is time for one."""

    live = True

    def __init__(self):
        self.asked = []

    def __iter__(self):
        for i in range(10):
            self.asked.append(time.monotonic())
            yield Frame(np.zeros((8, 8, 3), np.uint8), i, "live", i / 10)


def test_no_frame_of_a_live_source_waits():
    source, seen = Live(), []

    def slow(frame):
        seen.append((len(source.asked), frame.index))
        time.sleep(0.01)
        return nobody(frame)

    metrics = run(source, slow, [Recorder()])
    assert seen == [(i + 1, i) for i in range(10)]
    assert "wait for a frame" in metrics.percentiles()


def test_stream_gives_frames_with_their_poses_and_may_be_left_early():
    taken = []
    for result in stream(blank_frames(1000, taken=taken), nobody):
        assert len(result.poses) == 0
        if result.frame.index == 3:
            break
    time.sleep(0.3)
    assert len(taken) < 12


def test_latency_counts_from_the_frames_arrival():
    metrics = Metrics()
    late = Frame(np.zeros((8, 8, 3), np.uint8), 0, "late", 0.0, captured_s=time.monotonic() - 0.5)
    run(iter([late]), nobody, [], metrics)
    assert 500 <= metrics.percentiles()[LATENCY].p50 < 900
