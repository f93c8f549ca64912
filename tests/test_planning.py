"""What a frame rate allows: more people cost more, more looks too, and a plan keeps within the time of a frame."""

from __future__ import annotations

import time

import numpy as np
import pytest

import edgepose
from edgepose.planning import HEADROOM, Costs, measure_costs, plan

COSTS = Costs({1: 5.0, 2: 8.0, 4: 14.0, 8: 26.0}, batch=4, detect_ms=40.0)


def test_costs_between_and_beyond_those_that_were_measured():
    assert [COSTS.of(n) for n in (1, 3, 8, 16)] == [5, 11, 26, 52]


@pytest.mark.parametrize("fps", [5, 10, 20, 30, 60, 120])
@pytest.mark.parametrize("detect_ms", [0, 3, 40, 300])
def test_a_plan_fits_and_one_more_person_or_a_look_more_would_not(fps, detect_ms):
    costs = Costs(COSTS.people_ms, COSTS.batch, detect_ms)
    chosen = plan(costs, fps, most=10)
    budget = HEADROOM * 1000 / fps
    assert chosen.budget_ms == budget
    if not chosen.reached:
        assert chosen.most == 1
        assert costs.of(1) + detect_ms / np.ceil(fps) > budget
        return
    assert chosen.fits(chosen.most)
    assert chosen.most == 10 or costs.of(chosen.most + 1) + detect_ms / np.ceil(fps) > budget
    assert round(fps / 5) <= chosen.detect_every <= fps
    earlier = chosen.detect_every - 1
    assert earlier < max(1, round(fps / 5)) or costs.of(chosen.most) + detect_ms / earlier > budget


def test_what_is_settled_stays():
    assert plan(COSTS, 10, most=3).most == 3
    chosen = plan(COSTS, 30, most=10, detect_every=8)
    assert chosen.detect_every == 8
    assert chosen.most == 7  # 5 ms of a look in every frame leave 25 of 30 ms for people
    assert plan(COSTS, 30, most=10).most == 8


def test_a_frame_rate_that_is_out_of_reach():
    chosen = plan(COSTS, 500, most=10)
    assert (chosen.most, chosen.reached) == (1, False)
    assert chosen.frame_ms(1) > chosen.budget_ms


class Slow:
    """A detector that takes 20 ms."""

    def detect(self, frame_bgr):
        time.sleep(0.02)
        return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)


def test_costs_are_measured_here(starter_bundle):
    estimator = edgepose.load(starter_bundle, variant="onnx-int8", threads=1)
    costs = measure_costs(estimator, Slow(), None, most=3)
    assert list(costs.people_ms) == [1, 2, 3]
    assert 0 < costs.people_ms[1] < costs.people_ms[3]
    assert 20 <= costs.detect_ms < 200
    assert estimator.batch == costs.batch in (1, 2, 4)
