"""Cameras of this machine by doubles: missing, busy, unplugged, hanging; GStreamer for real where it is there."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import re
import subprocess
import sys
import threading
import time
import types
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgepose import SourceError, cameras, live
from edgepose.live import Backoff
from edgepose.sources import SourceOptions, open_source

ROOT = Path(__file__).parent.parent
QUICK = SourceOptions(stall_s=0.3)


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


def take(source, count):
    return list(itertools.islice(iter(source), count))


def lines(caplog):
    return [record.getMessage() for record in caplog.records]


class FakeCapture:
    """A ``cv2.VideoCapture`` that follows a plan, one entry for each opening.

    A plan says what the reads give: a picture, None for a failure, an error to raise, an Event to wait for. After the
    last entry reads fail, as those of an unplugged camera do. The plan ``"missing"`` does not open.
    """

    plans: list = []  # noqa: RUF012
    made: list = []  # noqa: RUF012
    properties: dict = {}  # noqa: RUF012

    def __init__(self, *arguments):
        plan = self.plans[min(len(self.made), len(self.plans) - 1)]
        self.arguments, self.there = arguments, plan != "missing"
        self.left = iter(plan)
        self.asked = []
        self.threads = {threading.get_ident()}
        self.opened_at, self.released = time.monotonic(), False
        self.made.append(self)

    def isOpened(self):  # noqa: N802
        return self.there

    def get(self, prop):
        return self.properties.get(prop, 0.0)

    def set(self, prop, value):
        self.asked.append((prop, value))
        return True

    def read(self):
        self.threads.add(threading.get_ident())
        assert not self.released
        step = next(self.left, None)
        if isinstance(step, threading.Event):
            step.wait(10)
        if isinstance(step, Exception):
            raise step
        time.sleep(0.002)
        return (True, step) if isinstance(step, np.ndarray) else (False, None)

    def release(self):
        self.threads.add(threading.get_ident())
        self.released = True


@pytest.fixture
def fake(monkeypatch):
    """Put the double in OpenCV's place."""

    def use(*plans, **properties):
        numbers = {getattr(cv2, f"CAP_PROP_{key.upper()}"): value for key, value in properties.items()}
        double = type("Capture", (FakeCapture,), {"plans": list(plans), "made": [], "properties": numbers})
        monkeypatch.setattr(cv2, "VideoCapture", double)
        return double

    return use


PICTURE = np.zeros((4, 6, 3), np.uint8)


def endless():
    return itertools.repeat(PICTURE)


@pytest.mark.parametrize("uri", ["0", "v4l2://0"])
def test_a_camera_by_number(fake, uri):
    double = fake(endless(), fps=30)
    with open_source(uri) as source:
        assert (source.name, source.fps, source.count, source.moving) == ("camera 0", 30, 0, True)
        assert take(source, 1)[0].name == "camera 0"
    assert double.made[0].arguments == (0, cv2.CAP_V4L2)
    assert double.made[0].released


@pytest.mark.parametrize("uri", ["/dev/video3", "v4l2:///dev/video3"])
def test_a_camera_by_device(fake, uri):
    double = fake(endless())
    open_source(uri).close()
    assert double.made[0].arguments == ("/dev/video3", cv2.CAP_V4L2)


def test_a_camera_is_asked_for_a_format(fake, caplog):
    fourcc = cv2.VideoWriter.fourcc(*"YUYV")
    double = fake(endless(), frame_width=1280, frame_height=720, fps=10, fourcc=fourcc)
    open_source("0", SourceOptions(size_wh=(1920, 1080), fps=30, fourcc="MJPG")).close()
    assert [prop for prop, _ in double.made[0].asked] == [
        cv2.CAP_PROP_FOURCC,
        cv2.CAP_PROP_FRAME_WIDTH,
        cv2.CAP_PROP_FRAME_HEIGHT,
        cv2.CAP_PROP_FPS,
    ]
    told = "camera 0: has no such format, and takes fourcc YUYV, width 1280, height 720, fps 10"
    assert lines(caplog) == [told]
    caplog.clear()
    open_source("0", SourceOptions(size_wh=(1280, 720), fps=10)).close()
    assert lines(caplog) == []


def refuse(error):
    def fail(*arguments):
        raise error

    return fail


@pytest.mark.parametrize(
    ("device", "others", "system", "message"),
    [
        ("5", ["/dev/video0"], {}, "camera 5: not there: there are /dev/video0"),
        ("5", [], {}, "camera 5: not there or in use: see /dev/video*, or give a file to --source"),
        (
            "NODE",
            ["NODE"],
            {"open": PermissionError(13, "no")},
            "no permission for NODE: add this user to the group video",
        ),
        ("NODE", ["NODE"], {"open": OSError(16, "busy")}, "in use by another program: find it with fuser NODE"),
        ("NODE", ["NODE"], {"ioctl": OSError(16, "busy")}, "in use by another program: find it with fuser NODE"),
        (
            "NODE",
            ["NODE"],
            {"open": OSError(5, "I/O")},
            r"NODE cannot be opened (Input/output error): unplug it and plug",
        ),
        (
            "NODE",
            ["NODE"],
            {"ioctl": OSError(22, "no")},
            "NODE gives no pictures: is it a camera's second device? There",
        ),
        ("NODE", ["NODE"], {}, "NODE gives no pictures: is it a camera's second device? There are NODE"),
    ],
)
def test_a_camera_that_cannot_be_opened(fake, monkeypatch, tmp_path, device, others, system, message):
    node = tmp_path / "video7"
    node.touch()
    fake("missing")
    monkeypatch.setattr(cameras, "_devices", lambda: [name.replace("NODE", str(node)) for name in others])
    monkeypatch.setattr(cameras.fcntl, "ioctl", refuse(system["ioctl"]) if "ioctl" in system else lambda *a: 0)
    if "open" in system:
        monkeypatch.setattr(cameras.os, "open", refuse(system["open"]))
    with pytest.raises(SourceError) as error:
        open_source(device.replace("NODE", f"v4l2://{node}"))
    assert message.replace("NODE", str(node)) in str(error.value)


def test_an_unplugged_camera_is_opened_again(fake, caplog):
    caplog.set_level(logging.INFO)
    double = fake([PICTURE] * 3, "missing", [], endless())
    with open_source("0") as source:
        frames = iter(source)
        assert next(f for f in frames if source.reconnects).index >= 3
    assert [capture.released for capture in double.made] == [True] * 4
    assert all(len(capture.threads) == 1 for capture in double.made)
    assert re.sub(r"\d\.\d s", "T s", "\n".join(lines(caplog))).splitlines() == [
        "camera 0: lost after 3 frames (no usable frame in 10 reads), reconnecting",
        "camera 0: attempt 1 failed (not there or in use: see /dev/video*, or give a file to --source)",
        "camera 0: attempt 2 failed (no usable frame in 10 reads)",
        "camera 0: reconnected after T s, attempt 3",
    ]


def test_a_read_that_never_returns_is_left_behind(fake, caplog):
    hangs = threading.Event()
    double = fake([PICTURE, hangs, PICTURE, PICTURE], endless())
    start = time.monotonic()
    with open_source("0", QUICK) as source:
        frames = take(source, 4)
        assert 0.25 < time.monotonic() - start < 3
        assert source.reconnects == 1
        assert not double.made[0].released  # only its own thread may do that
        hangs.set()
        assert until(lambda: double.made[0].released)
        assert take(source, 1)[0].index > frames[-1].index  # the old thread's frames are not delivered
    assert all(len(capture.threads) == 1 for capture in double.made)
    assert "camera 0: lost after 1 frames (no frame for 0.3 s), reconnecting" in lines(caplog)


def test_a_driver_that_always_hangs_is_given_up(fake, monkeypatch):
    monkeypatch.setattr(live, "_LIMITS", replace(live._LIMITS, hung=3))
    hangs = threading.Event()
    double = fake(*[[PICTURE, hangs] for _ in range(9)])
    with pytest.raises(SourceError, match="camera 0: 3 reads hang in the driver: replug the camera and start again"):
        list(open_source("0", SourceOptions(stall_s=0.1)))
    assert len(double.made) == 3
    hangs.set()


def test_a_camera_that_opens_and_gives_nothing_is_an_error(fake):
    hangs = threading.Event()
    fake([hangs])
    with pytest.raises(SourceError, match=r"camera 0: no frame for 0.3 s"):
        open_source("0", QUICK)
    hangs.set()
    fake([])
    with pytest.raises(SourceError, match="camera 0: no usable frame in 10 reads"):
        open_source("0")


def test_opening_that_never_returns_is_an_error(monkeypatch):
    hangs = threading.Event()
    monkeypatch.setattr(live, "_LIMITS", replace(live._LIMITS, open_s=0.2))
    monkeypatch.setattr(cv2, "VideoCapture", lambda *arguments: hangs.wait(10) and FakeCapture(*arguments))
    monkeypatch.setattr(FakeCapture, "plans", [[]])
    with pytest.raises(SourceError, match=r"camera 0: no answer for 0.2 s"):
        open_source("0")
    hangs.set()


def test_bindings_may_raise_anything(fake, caplog):
    fake([PICTURE, cv2.error("bad frame"), PICTURE, ValueError("odd")], endless())
    with open_source("0") as source:
        frames = iter(source)
        next(f for f in frames if source.reconnects)
    assert source.corrupt == 1
    assert "camera 0: lost after 2 frames (ValueError: odd), reconnecting" in lines(caplog)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 4)])
def test_other_channels_become_bgr(fake, shape):
    fake(itertools.repeat(np.full(shape, 7, np.uint8)))
    with open_source("0") as source:
        image = take(source, 1)[0].image_bgr
    assert image.shape == (4, 6, 3)
    assert (image == 7).all()


def test_sixteen_bits_are_refused(fake):
    fake(itertools.repeat(np.zeros((4, 6), np.uint16)))
    with pytest.raises(SourceError, match="camera 0: its pixels are uint16, and 8-bit BGR is needed: convert them"):
        open_source("0")


def test_a_camera_that_breaks_at_once_is_asked_less_and_less(fake, monkeypatch):
    monkeypatch.setattr(live, "_BACKOFF", Backoff(first_s=0.05, longest_s=0.4, jitter=0))
    monkeypatch.setattr(live, "_LIMITS", replace(live._LIMITS, bad_reads=1))
    double = fake(*[[PICTURE] for _ in range(5)], [PICTURE] * 400)
    with open_source("0") as source:
        assert until(lambda: bool(take(source, 1)) and source.reconnects >= 5)
    times = [capture.opened_at for capture in double.made]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)][:5]
    assert all(gap >= wait for gap, wait in zip(gaps, [0.05, 0.1, 0.2, 0.4, 0.4], strict=True))
    assert sum(gaps) < 3


# GStreamer and picamera2


def with_backend(monkeypatch, there):
    monkeypatch.setattr(cv2.videoio_registry, "hasBackend", lambda backend: there)


@pytest.mark.parametrize(
    ("uri", "options", "name", "pipeline"),
    [
        (
            "gst:rtspsrc location=rtsp://me:secret@cam ! decodebin",
            {},
            "gst:rtspsrc",
            "rtspsrc location=rtsp://me:secret@cam ! decodebin ! videoconvert ! video/x-raw,format=BGR ! "
            "appsink drop=true max-buffers=1 sync=false",
        ),
        ("gst:videotestsrc ! appsink", {}, "gst:videotestsrc", "videotestsrc ! appsink"),
        (
            "csi://1",
            {"size_wh": (1920, 1080), "fps": 29.97},
            "csi camera 1",
            "nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM),width=1920,height=1080,framerate=2997/100 ! "
            "nvvidconv ! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! "
            "appsink drop=true max-buffers=1 sync=false",
        ),
    ],
)
def test_pipelines(fake, monkeypatch, uri, options, name, pipeline):
    with_backend(monkeypatch, there=True)
    monkeypatch.setattr(cameras.shutil, "which", lambda name: None)  # nothing here to look up elements with
    double = fake(endless())
    with open_source(uri, SourceOptions(**options)) as source:
        assert source.name == name
    assert double.made[0].arguments == (pipeline, cv2.CAP_GSTREAMER)
    fake("missing")
    with pytest.raises(SourceError) as error:
        open_source(uri, SourceOptions(**options))
    assert str(error.value).startswith(f"{name}: GStreamer cannot start this pipeline: see what gst-launch-1.0 says")
    assert "secret" not in str(error.value)


def test_pipelines_without_gstreamer(monkeypatch):
    with_backend(monkeypatch, there=False)
    with pytest.raises(
        SourceError, match=r"csi camera 0: this OpenCV is built without GStreamer.*apt install python3-op"
    ):
        open_source("csi://0")


@pytest.mark.parametrize(
    ("pipeline", "asked", "message"),
    [
        (
            "videotestsrc ! nosuch ! appsink",
            ["videotestsrc", "nosuch"],
            "gst:videotestsrc: GStreamer has no element nosuch",
        ),
        (
            "filesrc location='a ! b.mp4' ! video/x-raw,width=4 ! t. ! appsink",
            ["filesrc", "appsink"],
            "gst:filesrc: GStreamer cannot start",
        ),
        ("filesrc location='a ! appsink", [], "gst:filesrc: GStreamer cannot start"),
    ],
)
def test_elements_are_looked_up_first(fake, monkeypatch, tmp_path, pipeline, asked, message):
    tool = tmp_path / "gst-inspect-1.0"
    tool.write_text(f"#!/bin/sh\necho $2 >> {tmp_path}/asked\n[ $2 != nosuch ]\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with_backend(monkeypatch, there=True)
    fake("missing")
    with pytest.raises(SourceError, match=message):
        open_source(f"gst:{pipeline}")
    said = tmp_path / "asked"
    assert (said.read_text().split() if said.exists() else []) == asked


GSTREAMER = """
import cv2, sys
if not cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
    sys.exit("this OpenCV is built without GStreamer")
from edgepose.sources import SourceOptions, open_source
uri = "gst:videotestsrc is-live=true ! video/x-raw,width=64,height=48,framerate=30/1"
with open_source(uri, SourceOptions(stall_s=5)) as source:
    frames = [frame for frame, _ in zip(source, range(5))]
print(source.name, source.fps, {frame.image_bgr.shape for frame in frames})
"""


def test_a_pipeline_for_real():
    said = ""
    for python in dict.fromkeys((sys.executable, "/usr/bin/python3")):
        if not Path(python).exists():
            continue
        done = subprocess.run(
            [python, "-c", GSTREAMER], capture_output=True, text=True, check=False, timeout=60, cwd=ROOT
        )
        if done.returncode == 0:
            assert done.stdout == "gst:videotestsrc 30.0 {(48, 64, 3)}\n"
            return
        said = done.stderr.strip().rpartition("\n")[2]
        assert "without GStreamer" in said or "No module named" in said, done.stderr
    pytest.skip(f"no Python with an OpenCV with GStreamer (Debian: python3-opencv): {said}")


class Picamera2:
    """The parts of picamera2's class that we use."""

    busy = False
    there = 1
    made: list = []  # noqa: RUF012

    def __init__(self, number):
        if self.busy:
            raise RuntimeError("Camera __init__ sequence did not complete.")
        self.number, self.calls = number, []
        self.made.append(self)

    @classmethod
    def global_camera_info(cls):
        return [{"Model": "imx708"}] * cls.there

    def create_video_configuration(self, **configuration):
        return configuration

    def configure(self, configuration):
        self.calls.append(configuration)

    def start(self):
        self.calls.append("start")

    def capture_array(self, name):
        time.sleep(0.005)
        return np.zeros((480, 704, 3), np.uint8)[:, :640]  # rows are padded

    def stop(self):
        self.calls.append("stop")

    def close(self):
        self.calls.append("close")


@pytest.fixture
def raspberry(monkeypatch):
    def use(**attributes):
        double = type("Picamera2", (Picamera2,), {"made": [], **attributes})
        monkeypatch.setitem(sys.modules, "picamera2", types.SimpleNamespace(Picamera2=double))
        return double

    return use


def test_a_raspberry_pi_camera(raspberry):
    double = raspberry()
    with open_source("picamera2://0", SourceOptions(size_wh=(640, 480), fps=25)) as source:
        image = take(source, 1)[0].image_bgr
        assert (source.name, source.fps) == ("picamera2 camera 0", 25)
    assert image.shape == (480, 640, 3)
    assert image.flags.c_contiguous
    configuration = {"main": {"format": "RGB888", "size": (640, 480)}, "controls": {"FrameRate": 25}}
    assert double.made[0].calls == [configuration, "start", "stop", "close"]


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"there": 0}, r"picamera2 camera 0: not there \(0 found\): see rpicam-hello --list-cameras"),
        ({"busy": True}, r"picamera2 camera 0: in use by another program, or broken \(Camera __init__ sequence"),
    ],
)
def test_a_raspberry_pi_camera_that_cannot_be_opened(raspberry, attributes, message):
    raspberry(**attributes)
    with pytest.raises(SourceError, match=message):
        open_source("picamera2://0")


def test_without_picamera2_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "picamera2", None)
    with pytest.raises(
        SourceError, match=r"picamera2 camera 0: .*picamera2.*: apt install python3-picamera2, and use a v"
    ):
        open_source("picamera2://0")
