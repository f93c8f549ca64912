"""Cameras of this machine: V4L2, GStreamer pipelines (a Jetson's cameras among them) and the Raspberry Pi's."""

from __future__ import annotations

import errno
import fcntl
import itertools
import logging
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
from fractions import Fraction
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edgepose.errors import SourceError
from edgepose.live import LiveKind
from edgepose.sources import SourceOptions

# OpenCV waits 10 s for a V4L2 frame, longer than a stall may last; read once, when it first waits.
os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", "2")

__all__ = ["OpenCVCapture", "argus_pipeline", "csi", "gstreamer", "picamera2", "v4l2"]

_DEFAULT_WH = (1280, 720)
_DEFAULT_FPS = 30.0
_NO_CAMERAS = "not there or in use: see /dev/video*, or give a file to --source"
_VIDIOC_REQBUFS = 0xC0145608
_V4L2_BUF_TYPE_VIDEO_CAPTURE = _V4L2_MEMORY_MMAP = 1
_TO_BGR = "videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1 sync=false"

_log = logging.getLogger(__name__)


class OpenCVCapture:
    """A ``cv2.VideoCapture`` as an :class:`edgepose.live.Capture`."""

    def __init__(self, capture: cv2.VideoCapture, count: int = 0) -> None:
        self._capture = capture
        fps = capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if 0 < fps <= 1000 else 0.0
        self.count = count

    def read(self) -> NDArray[np.uint8] | None:
        """The next picture; OpenCV does not say whether a missing one is damaged or the end."""
        try:
            ok, image = self._capture.read()
        except cv2.error:
            return None
        return np.asarray(image) if ok and image is not None else None

    def release(self) -> None:
        """Close the device."""
        self._capture.release()


def v4l2(device: str) -> LiveKind:
    """A camera by number or device, for instance ``0`` or ``/dev/video0``.

    Raises:
        SourceError: It is neither.
    """
    if not device.isdecimal() and not device.startswith("/"):
        raise SourceError(
            f"v4l2://{device}: a number or a device is needed, for instance v4l2://0 or v4l2:///dev/video0"
        )
    name = f"camera {device}"
    return LiveKind(name, frozenset({"size_wh", "fps", "fourcc"}), partial(_open_v4l2, device, name))


def _open_v4l2(device: str, name: str, options: SourceOptions) -> OpenCVCapture:
    api = cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY
    capture = cv2.VideoCapture(int(device) if device.isdecimal() else device, api)
    if not capture.isOpened():
        capture.release()
        raise SourceError(f"{name}: {_why_no_camera(f'/dev/video{device}' if device.isdecimal() else device)}")
    _ask(capture, name, options)
    return OpenCVCapture(capture)


def _ask(capture: cv2.VideoCapture, name: str, options: SourceOptions) -> None:
    """Ask for a format; the camera takes what is nearest, and we say where that differs."""
    width, height = options.size_wh or (None, None)
    wanted = {  # the format first: sizes and rates depend on it
        cv2.CAP_PROP_FOURCC: cv2.VideoWriter.fourcc(*options.fourcc) if options.fourcc else None,
        cv2.CAP_PROP_FRAME_WIDTH: width,
        cv2.CAP_PROP_FRAME_HEIGHT: height,
        cv2.CAP_PROP_FPS: options.fps,
    }
    given = {key: value for key, value in wanted.items() if value is not None}
    for key, value in given.items():
        capture.set(key, value)
    got = {key: capture.get(key) for key in given}
    if any(abs(got[key] - value) > 0.5 for key, value in given.items()):
        shown = ("fourcc", "width", "height", "fps")
        rows = [f"{word} {_value(key, got[key])}" for word, key in zip(shown, wanted, strict=True) if key in given]
        _log.warning("%s: has no such format, and takes %s", name, ", ".join(rows))


def _value(key: int, value: float) -> str:
    if key != cv2.CAP_PROP_FOURCC:
        return f"{value:g}"
    return (int(value) & 0xFFFFFFFF).to_bytes(4, "little").decode("latin-1")


def _why_no_camera(path: str) -> str:
    """What is wrong with a device that OpenCV could not open, and what to do."""
    others = ", ".join(_devices())
    if not Path(path).exists():
        # Without any device nothing can be told apart: a container may hide them.
        return f"not there: there are {others}" if others else _NO_CAMERAS
    error = _probe(path)
    if error == errno.EBUSY:
        return f"in use by another program: find it with fuser {path}"
    if error in (errno.EACCES, errno.EPERM):
        return f"no permission for {path}: add this user to the group video"
    if error:
        return f"{path} cannot be opened ({os.strerror(error)}): unplug it and plug it in again"
    return f"{path} gives no pictures: is it a camera's second device? There are {others}"


def _devices() -> list[str]:
    return sorted(str(device) for device in Path("/dev").glob("video*"))


def _probe(path: str) -> int:
    """What the system says to opening a V4L2 device and asking for none of its buffers: 0, or a number of errno."""
    request = struct.pack("5I", 0, _V4L2_BUF_TYPE_VIDEO_CAPTURE, _V4L2_MEMORY_MMAP, 0, 0)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    except OSError as error:
        return error.errno or errno.EIO
    try:
        fcntl.ioctl(descriptor, _VIDIOC_REQBUFS, request)
    except OSError as error:  # most drivers can be opened twice, and tell only here that they stream
        return errno.EBUSY if error.errno == errno.EBUSY else 0
    finally:
        os.close(descriptor)
    return 0


def gstreamer(pipeline: str) -> LiveKind:
    """A GStreamer pipeline; one without an ``appsink`` gets the end that OpenCV needs.

    Raises:
        SourceError: It is empty.
    """
    pipeline = pipeline.strip()
    if not pipeline:
        raise SourceError("gst:: a pipeline is needed, for instance gst:videotestsrc ! videoconvert")
    name = f"gst:{pipeline.split()[0]}"  # no more of it: what follows may hold a password
    whole = pipeline if "appsink" in pipeline else f"{pipeline} ! {_TO_BGR}"
    return LiveKind(name, frozenset(), lambda options: _open_pipeline(whole, name))


def csi(sensor: str) -> LiveKind:
    """A Jetson's camera, through Argus.

    Raises:
        SourceError: It is no number.
    """
    number = _number("csi", sensor)

    def opener(options: SourceOptions) -> OpenCVCapture:
        return _open_pipeline(argus_pipeline(number, options), f"csi camera {number}")

    return LiveKind(f"csi camera {number}", frozenset({"size_wh", "fps"}), opener)


def argus_pipeline(sensor: int, options: SourceOptions) -> str:
    """The GStreamer pipeline for a Jetson's camera: NV12 in the GPU's memory, made BGR for OpenCV."""
    width, height = options.size_wh or _DEFAULT_WH
    rate = Fraction(options.fps or _DEFAULT_FPS).limit_denominator(1001)
    return (
        f"nvarguscamerasrc sensor-id={sensor} ! video/x-raw(memory:NVMM),width={width},height={height},"
        f"framerate={rate.numerator}/{rate.denominator} ! nvvidconv ! video/x-raw,format=BGRx ! {_TO_BGR}"
    )


def _open_pipeline(pipeline: str, name: str) -> OpenCVCapture:
    if not cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
        raise SourceError(
            f"{name}: this OpenCV is built without GStreamer, as those from pip are: use the system's "
            "(apt install python3-opencv, and a virtual environment with --system-site-packages)"
        )
    missing = _missing_element(pipeline)
    if missing:
        raise SourceError(f"{name}: GStreamer has no element {missing} here: install the package that brings it")
    capture = cv2.VideoCapture(pipeline, cv2.CAP_GSTREAMER)
    if not capture.isOpened():
        capture.release()
        raise SourceError(
            f"{name}: GStreamer cannot start this pipeline: see what gst-launch-1.0 says (camera missing, in use?)"
        )
    return OpenCVCapture(capture)


def _missing_element(pipeline: str) -> str:
    """An element that GStreamer does not know, or nothing; OpenCV may hang for ever on a pipeline with one."""
    tool = shutil.which("gst-inspect-1.0")
    words = shlex.shlex(pipeline, posix=True, punctuation_chars="!")
    words.whitespace_split = True
    try:
        pairs: list[tuple[str, str]] = list(itertools.pairwise(["!", *words]))
    except ValueError:  # an open quotation mark: GStreamer will say so
        return ""
    elements = [word for before, word in pairs if before == "!" and re.fullmatch(r"[A-Za-z][\w-]*", word)]
    for element in dict.fromkeys(elements if tool else ()):
        done = subprocess.run([str(tool), "--exists", element], capture_output=True, check=False, timeout=10)
        if done.returncode == 1:
            return element
    return ""


def picamera2(number: str) -> LiveKind:
    """A Raspberry Pi's camera.

    Raises:
        SourceError: It is no number.
    """
    index = _number("picamera2", number)
    return LiveKind(f"picamera2 camera {index}", frozenset({"size_wh", "fps"}), partial(_Picamera2, index))


class _Picamera2:
    """A Raspberry Pi's camera as a :class:`edgepose.live.Capture`."""

    count = 0

    def __init__(self, index: int, options: SourceOptions) -> None:
        module = _import_picamera2(index)
        there = len(module.Picamera2.global_camera_info())
        if index >= there:
            raise SourceError(f"picamera2 camera {index}: not there ({there} found): see rpicam-hello --list-cameras")
        self.fps = options.fps or _DEFAULT_FPS
        try:
            self._camera = module.Picamera2(index)
        except RuntimeError as error:
            raise SourceError(f"picamera2 camera {index}: in use by another program, or broken ({error})") from None
        try:
            self._start(options.size_wh or _DEFAULT_WH)
        except BaseException:
            self._camera.close()
            raise

    def _start(self, size_wh: tuple[int, int]) -> None:
        # Named from the highest byte down: in memory this is B, G, R.
        configuration = self._camera.create_video_configuration(
            main={"format": "RGB888", "size": size_wh}, controls={"FrameRate": self.fps}
        )
        self._camera.configure(configuration)
        self._camera.start()

    def read(self) -> NDArray[np.uint8] | None:
        """The next picture."""
        return np.ascontiguousarray(self._camera.capture_array("main"))

    def release(self) -> None:
        """Stop the camera, and give it back."""
        try:
            self._camera.stop()
        finally:
            self._camera.close()


def _import_picamera2(index: int) -> Any:
    try:
        return import_module("picamera2")
    except ImportError as error:
        raise SourceError(
            f"picamera2 camera {index}: {error}: apt install python3-picamera2, "
            "and use a virtual environment with --system-site-packages"
        ) from None


def _number(scheme: str, text: str) -> int:
    if not text.isdecimal():
        raise SourceError(f"{scheme}://{text}: a camera's number is needed, for instance {scheme}://0")
    return int(text)
