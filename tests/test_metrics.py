"""What a pipeline tells of itself."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request

import pytest

from edgepose import SinkError
from edgepose.metrics import LATENCY, Metrics
from edgepose.metrics_server import MetricsServer


def filled():
    metrics = Metrics(lambda: {"dropped": 3, "reconnects": 0})
    for i in range(1, 101):
        metrics.add("pose", i / 1000)
        metrics.result(2, time.monotonic() - 0.02)
    return metrics


def test_percentiles_are_of_each_stage():
    found = filled().percentiles()
    assert (found["pose"].p50, found["pose"].p95, found["pose"].count) == (50.5, pytest.approx(95.05), 100)
    assert found[LATENCY].p50 == pytest.approx(20, abs=15)


def test_memory_stays_flat_and_counts_do_not_stop():
    metrics = Metrics()
    for _ in range(5000):
        metrics.add("pose", 0.001)
        metrics.result(1, time.monotonic())
    assert metrics.frames == metrics.people == 5000
    assert metrics.percentiles()["pose"].count == 2000


def test_frames_per_second_are_those_of_the_last_seconds():
    metrics = Metrics()
    assert metrics.fps == 0
    for _ in range(10):
        time.sleep(0.01)
        metrics.result(0, time.monotonic())
    assert 40 < metrics.fps < 101


def test_the_figures_are_plain_json():
    figures = json.loads(json.dumps(filled().snapshot(), allow_nan=False))
    assert (figures["frames"], figures["people"], figures["dropped"]) == (100, 200, 3)
    assert figures["stages_ms"]["pose"]["p99"] == pytest.approx(99.01)
    shown = filled().for_people()
    assert set(shown) == {"fps", "latency_ms", "dropped", "reconnects", "uptime_s"}
    assert Metrics().for_people()["latency_ms"] == {}


def test_prometheus_reads_them():
    server = MetricsServer("prometheus://127.0.0.1:0", filled())
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{server.port}/", timeout=5)
    finally:
        server.close()
    assert "edgepose_frames_total 100\n" in text
    assert "edgepose_dropped_total 3\n" in text
    assert 'edgepose_stage_milliseconds{stage="pose",quantile="0.95"} 95.05\n' in text
    assert f'stage="{LATENCY.replace(" ", "_")}"' in text


@pytest.mark.parametrize("url", ["prometheus://", "http://127.0.0.1:9100", "prometheus://127.0.0.1:99999"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(SinkError, match=r"expected prometheus://:9100 or prometheus://0\.0\.0\.0:9100"):
        MetricsServer(url, Metrics())


def test_a_port_in_use_is_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        url = f"prometheus://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SinkError, match=r"cannot listen \(Address already in use\): choose another port"):
            MetricsServer(url, Metrics())
