"""The page of a benchmark: whole, well-formed, from nowhere else, and right about what it shows."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest

from edgepose.calibration.report.benchmark import benchmark_html
from edgepose.calibration.report.benchmark_accuracy import AccuracyOf, accuracy_of

EMPTY = {"meta", "link", "img", "br"}


def row(variant="onnx-fp32", infer=20.0, **changes):
    values = {
        "variant": variant, "engine": "onnxruntime", "device": "cpu", "threads": None, "batch": 1, "mode": "latency",
        "in_flight": None, "pre_ms": 0.2, "infer_ms": infer,
        "infer_low_ms": 0.98 * infer, "infer_high_ms": 1.02 * infer,
        "p95_ms": 1.2 * infer, "p95_low_ms": None, "p95_high_ms": None, "p99_ms": 1.3 * infer, "cpu_ms": infer,
        "decode_ms": 0.1, "fps": 1000 / (infer + 0.3), "speedup": 20 / infer, "baseline": "onnx-fp32", "drift": 0.0,
        "drifted": False, "percentiles_ms": [infer * (0.9 + i / 500) for i in range(101)], "mb": 4.4, "rss_mib": 90.0,
        "gpu_mib": None, "energy_mj": None, "native": None,
    }  # fmt: skip
    return values | changes


def document(*rows, **changes):
    return {
        "schema": 1,
        "bundle": "bundle",
        "model": "transpose-<b>",
        "settings": {"mode": "latency", "iterations": 100, "threads": [None], "batch": [1]},
        "machine": {"cpu": "A CPU", "cores": 2, "versions": {"onnxruntime": "1"}},
        "conditions": {},
        "rows": list(rows or (row(), row("onnx-int8", 5.0))),
        "failed": {},
    } | changes


class Checker(HTMLParser):
    """Every tag is closed, and nothing is fetched."""

    def __init__(self):
        super().__init__()
        self.open, self.fetched = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in EMPTY:
            self.open.append(tag)
        self.fetched += [v for k, v in attrs if k in ("src", "href", "action") and not v.startswith(("#", "data:"))]

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def checked(page):
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.fetched == []
    assert "<script" not in page
    return page


def test_the_page_names_the_fastest_its_baseline_and_what_was_measured():
    page = checked(benchmark_html(document()))
    assert "Fastest: onnx-int8 on onnxruntime cpu with 5.00 ms in the engine, 4.00 times as fast as onnx-fp32." in page
    assert "100 timed runs per variant" in page
    assert "transpose-&lt;b&gt;" in page
    assert "19.60 to 20.40" in page
    assert "Energy<span" not in page  # nothing measured it
    assert "Made by edgepose bench." in page


def test_accuracy_is_set_against_latency_where_it_is_known():
    page = checked(benchmark_html(document(), AccuracyOf("AP, points (higher is better)", {"onnx-int8": 70.0})))
    assert "Accuracy against latency" in page
    assert "AP, points (higher is better)" in page
    assert "Accuracy against latency" not in benchmark_html(document())


def test_everything_that_can_be_measured_is_shown():
    sweep = [row(threads=t, batch=b, infer=20.0 * b / t) for t in (1, 2) for b in (1, 4)]
    native = {"tool": "benchmark_app", "tool_ms": 19.0, "ours_ms": 19.5, "ratio": 1.026, "note": None}
    stages = {"read": {"p50": 1.0, "p95": 2.0, "p99": 3.0, "count": 9}}
    op = {"name": "layer<1>", "kind": "MatMul", "where": "CPU", "ms": 1.5, "share": 0.75}
    page = checked(
        benchmark_html(
            document(
                *sweep,
                row("openvino-int8", 4.0, native=native, energy_mj=12.5, drift=0.2, drifted=True),
                failed={"tflite-fp32": "no <library>"},
                conditions={"other_cores": 1.2, "stolen_cores": 0.0, "throttled": True},
                profiles={"onnx-fp32": [op] * 25},
                no_profile={"tflite-fp32": "it does not tell"},
                end_to_end=[
                    {"variant": "onnx-fp32", "source": "clip.mp4", "frames": 9, "fps": 30.0, "stages_ms": stages}
                ],
            )
        )
    )
    for text in (
        "People per second by number of threads",
        "People per second by batch",
        "DID NOT RUN</b> no &lt;library&gt;",
        "the last third of its runs was 20 % slower",
        "other processes kept 1.2 of 2 cores busy",
        "throttled",
        "layer&lt;1&gt;",
        "the slowest 20 of 25",
        "tflite-fp32: it does not tell.",
        "benchmark_app",
        "1.026",
        "12.5",
        "The whole pipeline",
    ):
        assert text in page


def test_throughput_is_told_in_people_per_second():
    fast = row("onnx-int8", mode="throughput", fps=200.0, speedup=2.0, pre_ms=None, decode_ms=None)
    slow = row(mode="throughput", fps=100.0, pre_ms=None, decode_ms=None)
    page = checked(benchmark_html(document(slow, fast, settings={"mode": "throughput", "duration_s": 2})))
    assert "with 200.0 people per second, 2.00 times as fast as onnx-fp32." in page
    assert "2 s per variant" in page
    assert "Where the time goes" not in page


def test_accuracy_of_a_bundle(starter_bundle, lifter_bundle, tmp_path):
    found = accuracy_of(starter_bundle)
    assert found.title == "mean OKS with FP32 (higher is better)"
    assert found.values["onnx-fp32"] == 1
    assert 0.9 < found.values["onnx-int8"] < 1
    lifting = accuracy_of(lifter_bundle)
    assert lifting.title == "mean distance to FP32, mm (lower is better)"
    assert lifting.values["onnx-fp32"] == 0 < lifting.values["onnx-int8"]


def test_labels_win_over_agreement(tmp_path):
    accuracy = {"metric": "AP", "unit": "points", "value": 71.5, "higher_is_better": True}
    rows = [{"variant": "onnx-fp32", "accuracy": accuracy, "agreement": {}}]
    (tmp_path / "evidence.json").write_text(json.dumps({"validation": {"rows": rows}}))
    assert accuracy_of(tmp_path) == AccuracyOf("AP, points (higher is better)", {"onnx-fp32": 71.5})


@pytest.mark.parametrize("text", [None, "{", "[]", '{"validation": {"rows": [{"variant": 1}]}}', "[" * 100_000])
def test_without_evidence_there_is_no_accuracy(tmp_path, text):
    if text is not None:
        (tmp_path / "evidence.json").write_text(text)
    assert accuracy_of(tmp_path) is None
