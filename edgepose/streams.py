"""Streams from the network: MJPEG over HTTP, read here, and whatever FFmpeg opens (RTSP)."""

from __future__ import annotations

import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from edgepose.cameras import OpenCVCapture
from edgepose.errors import SourceError
from edgepose.live import Capture, LiveKind
from edgepose.sources import SourceOptions

__all__ = ["MjpegCapture", "public_name", "stream"]

_OPEN_S = 10.0
_PROBE_S = 3.0
_LARGEST = 2**26  # bytes: no camera's picture is larger
_SHARE = 0.9  # of the stall time: sockets and FFmpeg give up by themselves, before a watchdog must


def stream(uri: str) -> LiveKind:
    """A network camera.

    Raises:
        SourceError: The address makes no sense.
    """
    name = public_name(uri)
    parts = _split(uri, name)
    is_http = parts.scheme in ("http", "https")

    def opener(options: SourceOptions) -> Capture:
        mjpeg = _open_http(parts, name, options) if is_http else None
        return mjpeg or _open_ffmpeg(uri, parts, name, options)

    return LiveKind(name, frozenset(), opener)


def public_name(uri: str) -> str:
    """The address without what may be secret: user and password, the query, and steps of the path with a ``=``."""
    scheme, _, rest = uri.partition("://")
    host = re.split("[/?#]", rest, maxsplit=1)[0]
    if "@" in rest and "@" not in host:  # perhaps a password with a slash: nothing of it is safe to show
        return f"{scheme.lower()}://..."
    shown = re.split("[?#]", rest[host.rfind("@") + 1 :], maxsplit=1)[0]
    steps = ["..." if "=" in step else step for step in shown.split("/")]
    return f"{scheme.lower()}://{'/'.join(steps)}"


def _split(uri: str, name: str) -> SplitResult:
    try:
        parts = urlsplit(uri)
        if parts.hostname and parts.port != 0:
            return parts
    except ValueError:
        pass
    raise SourceError(f"{name}: no such address: write special characters in a password as %40 for @, %2F for /")


def _open_ffmpeg(uri: str, parts: SplitResult, name: str, options: SourceOptions) -> OpenCVCapture:
    # One thread: each further one holds a frame back. OpenCV reads the variable where it is not told.
    threads = [] if "OPENCV_FFMPEG_THREADS" in os.environ else [cv2.CAP_PROP_N_THREADS, 1]
    limits = [
        *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, int(1e3 * _OPEN_S)),
        *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, max(1, int(1e3 * _SHARE * options.stall_s))),
    ]
    _reach(parts, name)
    try:
        if cv2.videoio_registry.hasBackend(cv2.CAP_FFMPEG):
            capture = cv2.VideoCapture(uri, cv2.CAP_FFMPEG, limits + threads)
        else:
            capture = cv2.VideoCapture(uri)
    except cv2.error:  # quotes the address
        raise SourceError(f"{name}: OpenCV cannot open it") from None
    if not capture.isOpened():
        capture.release()
        raise SourceError(f"{name}: {_why_no_stream(parts)}")
    # Streams without an end say -1, 0 or a huge negative number.
    return OpenCVCapture(capture, count=max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))))


def _connect(parts: SplitResult) -> socket.socket:
    default = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}[parts.scheme]
    return socket.create_connection((parts.hostname, parts.port or default), _PROBE_S)


def _reach(parts: SplitResult, name: str) -> None:
    """See that the server is there.

    OpenCV holds a lock of the whole process while FFmpeg waits for a server: one that is off would keep all other
    streams and recordings from being opened. And its reason cannot be had from OpenCV.
    """
    try:
        _connect(parts).close()
    except OSError as error:
        raise SourceError(f"{name}: {_why(error, _PROBE_S)}") from None


def _why_no_stream(parts: SplitResult) -> str:
    """What a server says to an address at which FFmpeg found no stream."""
    try:
        status = _describe(parts) if parts.scheme == "rtsp" else ""
    except OSError as error:
        return _why(error, _PROBE_S)
    if status in ("", "200"):
        return "the server answers, but OpenCV finds no video there: is its codec common?"
    return _refusal(status)


def _describe(parts: SplitResult) -> str:
    """Status code of an RTSP server for an address, empty where it answers something else (RFC 2326, 10.2)."""
    address = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    with _connect(parts) as connection:
        connection.sendall(f"DESCRIBE {address} RTSP/1.0\r\nCSeq: 1\r\nAccept: application/sdp\r\n\r\n".encode())
        answer = re.match(rb"RTSP/1\.\d (\d{3})", connection.recv(256))
    return answer[1].decode() if answer else ""


def _refusal(status: str) -> str:
    if status in ("401", "403"):
        return f"the server refuses access ({status}): give user and password, as scheme://USER:PASSWORD@host"
    if status == "404":
        return "the server has no such stream (404): check the path"
    return f"the server refuses ({status})"


def _why(error: BaseException, waited_s: float) -> str:
    """A failed connection in words."""
    if isinstance(error, ConnectionRefusedError):
        return "connection refused: is the server running, and is the port right?"
    if isinstance(error, socket.gaierror):
        return "no such host: check the name and the network"
    if isinstance(error, TimeoutError):
        return f"no answer for {waited_s:g} s: check the address and the network"
    if isinstance(error, ssl.SSLError):
        return f"no secure connection ({error.reason or 'SSL'}): is its certificate known here?"
    text = getattr(error, "strerror", None) or type(error).__name__  # other messages quote the address
    return f"the connection failed ({text})"


def _open_http(parts: SplitResult, name: str, options: SourceOptions) -> MjpegCapture | None:
    """The MJPEG stream at an address, or None where it is something else, for FFmpeg.

    Raises:
        SourceError: It cannot be had, or is a single picture.
    """
    limit_s = min(_OPEN_S, _SHARE * options.stall_s)
    response = _get(parts, name, limit_s)
    kind, boundary = response.headers.get_content_type(), response.headers.get_boundary()
    if kind.startswith("multipart/") and boundary:
        return MjpegCapture(response, boundary, options.stall_s)
    response.close()
    if kind.startswith("image/"):
        raise SourceError(f"{name}: the server gives a single picture there, not a stream: look for its MJPEG address")
    return None


def _get(parts: SplitResult, name: str, limit_s: float) -> HTTPResponse:
    _, at, host = parts.netloc.rpartition("@")
    address = urlunsplit(parts._replace(netloc=host, fragment=""))
    handlers: list[urllib.request.BaseHandler] = []
    if at:
        passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        passwords.add_password(None, address, unquote(parts.username or ""), unquote(parts.password or ""))
        handlers = [urllib.request.HTTPBasicAuthHandler(passwords), urllib.request.HTTPDigestAuthHandler(passwords)]
    try:
        response: HTTPResponse = urllib.request.build_opener(*handlers).open(address, timeout=limit_s)
    except urllib.error.HTTPError as error:
        error.close()
        raise SourceError(f"{name}: {_refusal(str(error.code))}") from None
    except urllib.error.URLError as error:
        cause = error.reason if isinstance(error.reason, BaseException) else error
        raise SourceError(f"{name}: {_why(cause, limit_s)}") from None
    except (OSError, HTTPException, ValueError) as error:
        raise SourceError(f"{name}: {_why(error, limit_s)}") from None
    return response


class MjpegCapture:
    """JPEG pictures in a multipart HTTP answer, as a :class:`edgepose.live.Capture`.

    OpenCV's FFmpeg keeps the size of the first picture for ever and cuts later ones to it. Here each picture is decoded
    by itself, and nothing hangs outside Python.
    """

    fps = 0.0
    count = 0

    def __init__(self, response: HTTPResponse, boundary: str, stall_s: float) -> None:
        self._response = response
        self._mark = b"--" + boundary.lstrip("-").encode("latin-1")  # some servers write the dashes into their header
        self._stall_s = stall_s
        self._deadline = 0.0
        self._buffer = bytearray()

    def read(self) -> NDArray[np.uint8] | None:
        """The next picture.

        Raises:
            SourceError: The stream ended, broke, or stands still.
        """
        self._deadline = time.monotonic() + _SHARE * self._stall_s
        try:
            self._until(self._mark)
            length = re.search(rb"(?i)\ncontent-length: *(\d{1,9})\s", self._until(b"\r\n\r\n") + b"\n")
            return _decoded(self._exactly(int(length[1])) if length else self._part())
        except TimeoutError:
            raise SourceError(f"no frame for {self._stall_s:g} s") from None
        except (OSError, HTTPException) as error:
            raise SourceError(_why(error, self._stall_s)) from None

    def release(self) -> None:
        """Close the connection."""
        self._response.close()

    def _part(self) -> bytes:
        """All up to the next boundary, which stays."""
        content = self._until(b"\r\n" + self._mark)
        self._buffer[:0] = self._mark
        return content

    def _until(self, mark: bytes) -> bytes:
        start = 0
        while (at := self._buffer.find(mark, start)) < 0:
            start = max(0, len(self._buffer) - len(mark))
            self._more()
        return self._pop(at, at + len(mark))

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._more()
        return self._pop(size, size)

    def _pop(self, keep: int, remove: int) -> bytes:
        content = bytes(self._buffer[:keep])
        del self._buffer[:remove]
        return content

    def _more(self) -> None:
        """Read what is there."""
        if time.monotonic() > self._deadline:
            raise TimeoutError
        data = self._response.read1(2**16)
        if not data:
            raise SourceError("the server ended the stream")
        self._buffer += data
        if len(self._buffer) > _LARGEST:
            raise SourceError(f"no picture within {_LARGEST >> 20} MiB: this is no MJPEG stream")


def _decoded(content: bytes) -> NDArray[np.uint8] | None:
    """(h, w, 3) BGR, or None where the JPEG is damaged; a cut one decodes to a picture that is grey from there on."""
    if not content.rstrip(b"\r\n\0").endswith(b"\xff\xd9"):
        return None
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
    return None if image is None else np.asarray(image, dtype=np.uint8)
