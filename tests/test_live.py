"""Live sources: the newest frame, and what happens when a camera or server goes away, stands still or breaks."""

from __future__ import annotations

import functools
import gc
import importlib.util
import itertools
import logging
import os
import re
import resource
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgepose import SourceError, live
from edgepose.live import Backoff
from edgepose.sources import SourceOptions, open_source

ROOT = Path(__file__).parent.parent
QUICK = SourceOptions(stall_s=0.3)


@functools.cache
def soak_script():
    """The soak's server is the tests' server."""
    spec = importlib.util.spec_from_file_location("soak_source", ROOT / "benchmarks" / "soak_source.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def quick_and_tidy(monkeypatch):
    """Short waits; and every thread that a test started is gone when it ends."""
    monkeypatch.setattr(live, "_BACKOFF", Backoff(first_s=0.02, longest_s=0.1))
    monkeypatch.setattr(live, "_LIMITS", replace(live._LIMITS, first_s=0.3, open_s=5))
    monkeypatch.setattr(live, "CLOSE_S", 0.3)
    before = set(threading.enumerate())
    yield
    if not set(threading.enumerate()) <= before:
        gc.collect()
    assert until(lambda: set(threading.enumerate()) <= before), threading.enumerate()


def until(true, seconds=5.0):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


def jpeg(value=0, size_wh=(32, 24)):
    return cv2.imencode(".jpg", np.full((size_wh[1], size_wh[0], 3), value, np.uint8))[1].tobytes()


@pytest.fixture
def serve():
    """Start MJPEG servers; they are killed at the end."""
    servers = []

    def start(picture=lambda n: jpeg(n % 250), fps=100, **attributes):
        server = soak_script().MjpegServer(picture, fps)
        vars(server).update(attributes)
        servers.append(server)
        server.url = f"http://127.0.0.1:{server.port}/live"
        return server

    yield start
    for server in servers:
        server.kill()


def take(source, count):
    return list(itertools.islice(iter(source), count))


def lines(caplog):
    return [record.getMessage() for record in caplog.records]


# Newest frame


def test_a_slow_reader_gets_the_newest_frame_and_the_rest_are_counted(serve):
    server = serve(fps=50)
    with open_source(server.url) as source:
        assert (source.live, source.moving, source.count, source.name) == (True, True, 0, server.url)
        frames = iter(source)
        taken = [next(frames)]
        for _ in range(4):
            time.sleep(0.25)
            taken.append(next(frames))
            assert time.monotonic() - taken[-1].captured_s < 0.2  # 0.02 s where nothing else runs; the oldest is older
            assert source.dropped >= taken[-1].index + 1 - len(taken)
    times = [f.time_s for f in taken]
    assert times == sorted(times)
    assert [f.captured_s - taken[0].captured_s for f in taken] == pytest.approx([t - times[0] for t in times])
    assert 20 < source.dropped < 50 * (time.monotonic() - taken[0].captured_s) + 5  # not one counted twice
    assert all(f.image_bgr.shape == (24, 32, 3) and f.image_bgr.dtype == np.uint8 for f in taken)


def test_closing_from_another_thread_ends_the_iteration(serve):
    server = serve(lambda n: jpeg() if n < 3 else None)
    source = open_source(server.url, SourceOptions(stall_s=30))
    threading.Timer(0.3, source.close).start()
    start = time.monotonic()
    assert len(list(source)) <= 3
    assert time.monotonic() - start < 3
    assert list(source) == []


def test_a_source_that_nobody_closes_ends_with_its_last_user(serve):
    server = serve()
    for _ in open_source(server.url):
        break
    source = open_source(server.url)  # never iterated
    assert [t.name for t in threading.enumerate()].count(f"capture {server.url}") == 1
    del source
    gc.collect()
    assert until(lambda: not any(t.name.startswith("capture") for t in threading.enumerate()))


# A server that goes away, stands still, or sends nonsense


def test_a_killed_server_comes_back(serve, caplog):
    caplog.set_level(logging.INFO)
    server = serve()
    with open_source(server.url) as source:
        before = take(source, 5)[-1]
        server.kill()
        refused = "failed (connection refused: is the server running, and is the port right?)"
        assert until(lambda: any(refused in line for line in lines(caplog)))
        server.start()
        frames = iter(source)
        after = next(f for f in frames if f.captured_s > before.captured_s + 0.02 and source.reconnects)
    assert source.reconnects == 1
    assert after.index > before.index
    assert after.time_s > before.time_s
    first, second, *_, last = lines(caplog)  # the first attempt may still be reset by the old server
    name = re.escape(server.url)
    assert re.fullmatch(rf"{name}: lost after \d+ frames \(.*\), reconnecting", first)
    assert second.startswith(f"{server.url}: attempt 1 failed (")
    assert re.fullmatch(rf"{name}: reconnected after \d+\.\d s, attempt \d+", last)


def test_a_server_that_stands_still_is_left_and_asked_again(serve, caplog):
    connections = []

    def picture(n):
        connections.extend([n] * (n == 0))
        return jpeg() if n < 5 or len(connections) > 1 else None

    with open_source(serve(picture).url, QUICK) as source:
        assert next(f.index for f in source if source.reconnects) >= 5
    assert "lost after 5 frames (no frame for 0.3 s), reconnecting" in lines(caplog)[0]


@pytest.mark.parametrize("damage", [lambda n: b"garbage", lambda n: jpeg()[:-200], lambda n: jpeg()[:3] + bytes(99)])
def test_damaged_pictures_are_skipped_and_counted(serve, damage):
    server = serve(lambda n: damage(n) if n % 3 == 1 else jpeg(100))
    with open_source(server.url) as source:
        frames = take(source, 12)
        assert source.reconnects == 0
    assert {round(float(f.image_bgr.mean())) for f in frames} == {100}
    assert source.corrupt >= 4


def test_a_run_of_damaged_pictures_is_a_loss(serve, caplog):
    server = serve(lambda n: jpeg() if n < 4 else b"garbage")
    with open_source(server.url, SourceOptions(stall_s=2)) as source:
        assert until(lambda: bool(take(source, 1)) and source.reconnects >= 1)
    assert "lost after 4 frames (no usable frame in 10 reads), reconnecting" in lines(caplog)[0]


def test_frames_that_change_their_size_have_another_size(serve, caplog):
    server = serve(lambda n: jpeg(size_wh=(32, 24) if n // 5 % 2 else (20, 40)))
    with open_source(server.url) as source:
        shapes = {f.image_bgr.shape for f in take(source, 25)}
    assert shapes == {(24, 32, 3), (40, 20, 3)}
    assert lines(caplog) == [f"{server.url}: frames were 20x40 and are 32x24 now"]  # once


def test_without_reconnecting_a_loss_is_an_error(serve):
    server = serve(lambda n: jpeg() if n < 5 else b"")
    frames = []
    source = open_source(server.url, SourceOptions(reconnect=False))
    with pytest.raises(SourceError) as error:
        frames.extend(source)
    assert str(error.value) == f"{server.url}: stopped delivering frames after 5 (the server ended the stream)"
    assert frames[-1].index == 4  # the last one is not lost with the error


def test_thirty_reconnects_leave_nothing_behind(serve, monkeypatch):
    monkeypatch.setattr(live, "_BACKOFF", Backoff(first_s=0.001, longest_s=0.001))
    picture = jpeg(size_wh=(640, 480))
    server = serve(lambda n: picture if n < 3 else b"", fps=1000)

    def state():
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        ours = [t for t in threading.enumerate() if t.name.startswith("capture")]
        return pages * resource.getpagesize() / 2**20, len(ours), len(os.listdir("/proc/self/fd"))

    with open_source(server.url) as source:
        assert until(lambda: bool(take(source, 1)) and source.reconnects >= 10)
        rss_mib, threads, files = state()
        assert until(lambda: bool(take(source, 1)) and source.reconnects >= 40)
        later = state()
    assert threads == later[1] == 1
    assert later[2] <= files + 3  # a connection or two are just being opened or closed, on both sides
    assert later[0] < rss_mib + 8  # 30 frames that are kept would be 27 MiB


# HTTP


@pytest.mark.parametrize(
    "attributes",
    [{"with_length": False}, {"boundary": "--dashes"}, {"boundary": '"in quotes"'}, {"boundary": "x", "fps": 300}],
)
def test_dialects_of_mjpeg(serve, attributes):
    server = serve(lambda n: jpeg(n % 5 * 50), **attributes)
    if '"' in server.boundary:  # quotes belong to the header alone
        server._part = lambda picture: b"--in quotes\r\n\r\n" + picture + b"\r\n"
    with open_source(server.url, SourceOptions(stall_s=1)) as source:
        frames = take(source, 10)
        assert source.reconnects == 0
    assert all(abs(float(f.image_bgr.mean()) - f.index % 5 * 50) < 3 for f in frames)


def test_waits_double_and_are_spread():
    backoff = Backoff()
    delays = [[backoff.delay_s(n) for _ in range(200)] for n in range(12)]
    for n, spread in enumerate(delays):
        plain = min(0.5 * 2**n, 30)
        assert 0.8 * plain <= min(spread) < 0.9 * plain
        assert 1.1 * plain < max(spread) <= 1.2 * plain
    assert 24 <= backoff.delay_s(100_000) <= 36  # weeks of failures


def test_the_soak_script_runs():
    script = ROOT / "benchmarks" / "soak_source.py"
    command = [sys.executable, script, "--minutes", "0.05", "--kill-every", "2", "--down", "0.2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert re.search(r"RSS grows by -?\d+ KiB per hour", done.stdout)
    assert "threads after closing: 1\n" in done.stdout
    assert "(the server ended the stream), reconnecting" in done.stderr
