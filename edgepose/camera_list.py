"""Cameras of a machine, by what the system shows of them: no stream is started, none is taken from another program."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from edgepose.board import Board
from edgepose.host import Host

__all__ = ["AskFormats", "Camera", "find_cameras", "v4l2_formats"]

_QUERYCAP = 0x80685600  # VIDIOC_QUERYCAP and the others of linux/videodev2.h
_ENUM_FMT = 0xC0405602
_ENUM_FRAMESIZES = 0xC02C564A
_CAPABILITY = struct.Struct("=16s32s32sIII12x")
_FORMAT = struct.Struct("=III32s4sI12x")
_FRAME_SIZE = struct.Struct("=I4sI6I8x")
_CAPTURE, _CAPTURE_PLANES = 0x1, 0x1000  # capabilities
_BUFFERS = {_CAPTURE: 1, _CAPTURE_PLANES: 9}  # capability -> type of buffer
_DISCRETE = 1
_MOST = 64

AskFormats = Callable[[str], tuple[str, ...] | None]
"""Given a video device, its formats; None where it gives no pictures."""


@dataclass(frozen=True)
class Camera:
    """A camera.

    Attributes:
        source: For ``--source``: ``/dev/video0``.
        name: As its driver names it.
        formats: Pixel format and largest size, for instance ``MJPG 1920x1080``; none where they cannot be read.
        problem: Why they cannot be, or nothing.
    """

    source: str
    name: str
    formats: tuple[str, ...] = ()
    problem: str = ""


def find_cameras(host: Host, board: Board, ask: AskFormats | None = None) -> tuple[Camera, ...]:
    """V4L2 devices that give pictures. ``ask`` is asked for the formats of each; by default :func:`v4l2_formats`."""
    found = []
    for folder in host.folders("/sys/class/video4linux/video*"):
        device = f"/dev/{folder.rpartition('/')[2]}"
        formats, problem = _formats(ask or v4l2_formats, str(host.path(device)))
        if formats is not None:
            name = host.text(f"{folder}/name")
            found.append(Camera(_source(device, name, board), name, formats, problem))
    return tuple(found)


def _formats(ask: AskFormats, path: str) -> tuple[tuple[str, ...] | None, str]:
    """The formats, and why they are not known."""
    try:
        return ask(path), ""
    except PermissionError:
        return (), "no permission: add this user to the group video"
    except OSError as error:
        return (), error.strerror or str(error)


def _source(device: str, name: str, board: Board) -> str:
    """A Jetson's sensors behind Argus come by their number."""
    number = device.removeprefix("/dev/video")
    return f"csi://{number}" if board.kind == "jetson" and name.startswith("vi-output") else device


def v4l2_formats(path: str) -> tuple[str, ...] | None:
    """What a device offers. It is opened, which takes it from nobody, and asked; no buffers, no stream.

    None for a device that gives no pictures: a codec, or a camera's second device.

    Raises:
        OSError: It cannot be opened, or does not answer.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        buffers = _buffers(descriptor)
        codes = None if buffers is None else list(_codes(descriptor, buffers))
        return None if codes is None else tuple(f"{_name(code)} {_largest(descriptor, code)}".strip() for code in codes)
    finally:
        os.close(descriptor)


def _buffers(descriptor: int) -> int | None:
    """The type of its buffers, if it has any for pictures that it takes."""
    answer = fcntl.ioctl(descriptor, _QUERYCAP, bytes(_CAPABILITY.size))
    capabilities = _CAPABILITY.unpack(answer)[-1]
    return next((buffers for capability, buffers in _BUFFERS.items() if capabilities & capability), None)


def _codes(descriptor: int, buffers: int) -> Iterator[bytes]:
    """Its pixel formats, four characters each."""
    for index in range(_MOST):
        question = _FORMAT.pack(index, buffers, 0, b"", b"", 0)
        try:
            yield _FORMAT.unpack(fcntl.ioctl(descriptor, _ENUM_FMT, question))[4]
        except OSError:  # the list's end
            return


def _name(code: bytes) -> str:
    return code.decode("ascii", "replace").strip()


def _largest(descriptor: int, code: bytes) -> str:
    """The largest picture of a format: of a list, or the end of a range."""
    sizes = []
    for index in range(_MOST):
        question = _FRAME_SIZE.pack(index, code, 0, *[0] * 6)
        try:
            _, _, kind, *numbers = _FRAME_SIZE.unpack(fcntl.ioctl(descriptor, _ENUM_FRAMESIZES, question))
        except OSError:  # the list's end, or a driver that lists none
            break
        sizes.append((numbers[0], numbers[1]) if kind == _DISCRETE else (numbers[1], numbers[4]))
        if kind != _DISCRETE:
            break
    width, height = max(sizes, key=lambda wh: wh[0] * wh[1], default=(0, 0))
    return f"{width}x{height}" if width else ""
