"""What a benchmark says of itself before anybody believes its figures."""

from __future__ import annotations

import pytest

from edgepose.runtimes.words import caveats, measured_words, row_name

ROW = {"variant": "onnx-int8", "threads": None, "batch": 1}


def document(*rows, **conditions):
    return {
        "model": "m",
        "settings": {"mode": "latency", "iterations": 100, "threads": [1, None], "batch": [1, 8]},
        "machine": {"cpu": "A CPU", "cores": 4, "versions": {"numpy": "2"}},
        "conditions": conditions,
        "rows": rows,
    }


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (document(ROW | {"drift": 0.12, "drifted": True}), "the last third of its runs was 12 % slower than the first"),
        (document(ROW | {"drift": -0.1, "drifted": True}), "was 10 % faster than the first"),
        (document(ROW | {"steady": False}), "onnx-int8: its times had not settled when warming up ended"),
        (document(other_cores=0.5, stolen_cores=0.0), "other processes kept 0.5 of 4 cores busy"),
        (document(other_cores=0.0, stolen_cores=0.5), "other guests of this host kept 0.5 of 4 cores busy"),
        (document(frequency_mhz=[2400.0, 1200.0]), "the clock fell from 2400 to 1200 MHz"),
        (document(throttled=True), "the processor was throttled"),
        (document() | {"remarks": ["the link was lost once"]}, "the link was lost once"),
    ],
)
def test_what_disturbed_a_measurement_is_said_once(data, says):
    (text,) = caveats(data)
    assert says in text


def test_a_quiet_machine_needs_no_words():
    quiet = {"other_cores": 0.1, "stolen_cores": 0.0, "frequency_mhz": [2400.0, 2390.0], "throttled": False}
    assert list(caveats(document(ROW | {"drift": 0.02, "drifted": False, "steady": True}, **quiet))) == []
    assert list(caveats(document(frequency_mhz=[None, None], other_cores=None, throttled=None))) == []


def test_rows_are_named_by_what_was_chosen():
    assert row_name(ROW) == "onnx-int8"
    assert row_name(ROW | {"threads": 1, "batch": 8}) == "onnx-int8 (1 thread, batch 8)"


def test_what_was_measured_is_one_line():
    words = "m: latency, 100 timed runs per variant, variants in turn, batch 1/8, 1/automatic threads; A CPU, 4 cores"
    assert measured_words(document()) == f"{words}; numpy 2"
