"""A detector looks now and then, in turn or aside, and at once where somebody is missed."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from edgepose import EngineError
from edgepose.lookout import Lookout
from edgepose.metrics import Metrics


class Gate:
    """A detector that tells which frames it saw, and that looks for as long as the gate is shut."""

    def __init__(self):
        self.seen, self.gate = [], threading.Event()
        self.gate.set()

    def detect(self, frame_bgr):
        self.gate.wait(10)
        self.seen.append(int(frame_bgr[0, 0, 0]))
        return np.full((1, 4), self.seen[-1], np.float32), np.ones(1, np.float32)


def frame(i):
    return np.full((4, 4, 3), i, np.uint8)


def saw(detections):
    return None if detections is None else int(detections[0][0, 0])


@pytest.fixture
def gate():
    return Gate()


def test_in_turn_it_looks_every_so_many_frames_and_when_it_is_needed(gate):
    lookout = Lookout(gate, 4, aside=False, metrics=Metrics())
    answers = [saw(lookout.look(frame(i), now=i == 6, alone=False)) for i in range(12)]
    assert answers == [0, None, None, None, 4, None, 6, None, None, None, 10, None]


def test_aside_frames_pass_while_it_looks(gate):
    metrics = Metrics()
    lookout = Lookout(gate, 3, aside=True, metrics=metrics)
    gate.gate.clear()
    assert [saw(lookout.look(frame(i), now=False, alone=False)) for i in range(5)] == [None] * 5
    gate.gate.set()
    assert saw(lookout.look(frame(5), now=False, alone=True)) == 0  # what it saw five frames ago
    assert saw(lookout.look(frame(6), now=False, alone=True)) == 6
    lookout.close()
    assert gate.seen == [0, 6]
    assert metrics.percentiles()["detect"].count == 2


def test_while_nobody_is_there_it_is_waited_for(gate):
    lookout = Lookout(gate, 1, aside=True, metrics=Metrics())
    assert [saw(lookout.look(frame(i), now=False, alone=True)) for i in range(4)] == [0, 1, 2, 3]
    lookout.close()


def test_a_failure_aside_is_raised_where_the_poses_are_made(gate):
    def fail(frame_bgr):
        raise EngineError("people.onnx: out of memory")

    gate.detect = fail
    lookout = Lookout(gate, 5, aside=True, metrics=Metrics())
    with pytest.raises(EngineError, match="out of memory"):
        lookout.look(frame(0), now=False, alone=True)
    lookout.close()


def test_closing_ends_the_thread(gate):
    before = threading.active_count()
    lookout = Lookout(gate, 5, aside=True, metrics=Metrics())
    lookout.look(frame(0), now=False, alone=True)
    assert threading.active_count() == before + 1
    lookout.close()
    assert threading.active_count() == before
