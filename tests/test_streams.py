"""Network cameras: what servers say instead of a stream, secrets in addresses, and RTSP for real."""

from __future__ import annotations

import base64
import gc
import hashlib
import http.server
import itertools
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest

from edgepose import SourceError, live
from edgepose.live import Backoff
from edgepose.sources import SourceOptions, open_source
from edgepose.streams import public_name


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


def jpeg(value=0, size_wh=(32, 24)):
    return cv2.imencode(".jpg", np.full((size_wh[1], size_wh[0], 3), value, np.uint8))[1].tobytes()


class Answers(http.server.BaseHTTPRequestHandler):
    """One answer for every request."""

    status, content, kind, demand = 200, b"", "text/plain", ""

    def do_GET(self):
        allowed = not self.demand or self.allows(self.headers.get("Authorization", ""))
        self.send_response(self.status if allowed else 401)
        if not allowed:
            self.send_header("WWW-Authenticate", self.demand)
        self.send_header("Content-Type", self.kind)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content if allowed else b"")

    def allows(self, given):
        if self.demand.startswith("Basic"):
            return given == "Basic " + base64.b64encode(b"me:s@cret").decode()
        fields = dict(re.findall(r'(\w+)="([^"]*)"', given))
        md5 = lambda text: hashlib.md5(text.encode()).hexdigest()  # noqa: E731
        return fields.get("response") == md5(f"{md5('me:camera:s@cret')}:n0nce:{md5('GET:/live?token=s3')}")

    def log_message(self, *args):
        pass


@pytest.fixture
def http_server():
    servers = []

    def start(**attributes):
        handler = type("Handler", (Answers,), attributes)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        servers.append(server)
        return f"127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"status": 404}, "the server has no such stream (404): check the path"),
        ({"status": 503}, "the server refuses (503)"),
        (
            {"demand": 'Basic realm="camera"'},
            "the server refuses access (401): give user and password, as scheme://USER:PASSWORD@host",
        ),
        ({"kind": "image/jpeg"}, "the server gives a single picture there, not a stream: look for its MJPEG address"),
        ({"content": b"hello"}, "the server answers, but OpenCV finds no video there: is its codec common?"),
        ({"kind": "multipart/x-mixed-replace; boundary=b", "content": b"hello"}, "the server ended the stream"),
    ],
)
def test_what_a_server_says_instead_of_a_stream(http_server, answer, message, capfd):
    host = http_server(**answer)
    with pytest.raises(SourceError) as error:
        open_source(f"http://me:wrong@{host}/live?token=s3")
    assert str(error.value) == f"http://{host}/live: {message}"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "demand", ['Basic realm="camera"', 'Digest realm="camera", nonce="n0nce", algorithm=MD5'], ids=["basic", "digest"]
)
def test_user_and_password(http_server, demand, caplog):
    caplog.set_level(logging.DEBUG)
    parts = b"".join(b"--b\r\n\r\n" + jpeg(90) + b"\r\n" for _ in range(5))
    host = http_server(demand=demand, kind="multipart/x-mixed-replace; boundary=b", content=parts + b"--b")
    with open_source(f"http://me:s%40cret@{host}/live?token=s3") as source:
        assert until(lambda: bool(take(source, 1)) and source.reconnects >= 2)
    assert source.name == f"http://{host}/live"
    assert lines(caplog)
    assert not any(word in line for line in lines(caplog) for word in ("me:", "cret", "s3"))


def test_a_video_of_known_length_on_a_server_is_a_file(http_server, tmp_path):
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (32, 24))
    for n in range(12):
        writer.write(np.full((24, 32, 3), 20 * n, np.uint8))
    writer.release()
    host = http_server(content=path.read_bytes(), kind="video/x-msvideo")
    source = open_source(f"http://{host}/clip.avi")
    assert (source.live, source.count, source.fps, source.name) == (False, 12, 10, f"http://{host}/clip.avi")
    frames = list(source)
    assert [f.index for f in frames] == list(range(12))  # every one, in order
    assert frames[5].name == "clip.avi"


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("rtsp://user:pass@host:554/ch1", "rtsp://host:554/ch1"),
        ("RTSP://user@host/ch1", "rtsp://host/ch1"),
        ("http://host/video.cgi?user=a&pwd=secret#x", "http://host/video.cgi"),
        ("rtsp://host/user=admin_password=secret_channel=1/live", "rtsp://host/.../live"),
        ("rtsp://user:p@ss@host/ch1", "rtsp://host/ch1"),
        ("rtsp://user:pa/ss@host/ch1", "rtsp://..."),
        ("rtsp://user:12/3?s@host/ch1", "rtsp://..."),
        ("http://host/video?user=a@b", "http://..."),
    ],
)
def test_names_hold_no_secrets(uri, name):
    assert public_name(uri) == name


# Servers that cannot be reached


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_a_refused_connection_is_told_at_once(scheme, capfd):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(SourceError) as error:
        open_source(f"{scheme}://me:secret@127.0.0.1:{port}/live")
    refused = "connection refused: is the server running, and is the port right?"
    assert str(error.value) == f"{scheme}://127.0.0.1:{port}/live: {refused}"
    assert time.monotonic() - start < 2
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (socket.gaierror(-2, "Name or service not known"), "no such host: check the name and the network"),
        (TimeoutError("timed out"), r"no answer for \d.* s: check the address and the network"),
        (OSError(113, "No route to host"), r"the connection failed \(No route to host\)"),
    ],
)
@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_why_a_server_cannot_be_reached(monkeypatch, scheme, failure, message):
    def fail(*arguments, **options):
        raise failure

    monkeypatch.setattr(socket, "create_connection", fail)
    with pytest.raises(SourceError, match=f"^{scheme}://cam/live: {message}"):
        open_source(f"{scheme}://me:secret@cam/live")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            b"RTSP/1.0 401 Unauthorized\r\nCSeq: 1\r\n\r\n",
            "the server refuses access (401): give user and password, as",
        ),
        (b"RTSP/1.0 454 Session Not Found\r\nCSeq: 1\r\n\r\n", "the server refuses (454)"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "the server answers, but OpenCV finds no video there: is its codec common?"),
    ],
)
def test_what_an_rtsp_server_says_instead_of_a_stream(answer, message):
    def talk():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=talk, daemon=True).start()
        with pytest.raises(SourceError) as error:
            open_source(f"rtsp://me:secret@127.0.0.1:{server.getsockname()[1]}/live")
        server.shutdown(socket.SHUT_RDWR)
    assert message in str(error.value)
    assert "secret" not in str(error.value)


class Stream:
    """A ``cv2.VideoCapture`` of a stream."""

    made: list = []  # noqa: RUF012

    def __init__(self, *arguments):
        self.made.append(arguments)

    def isOpened(self):  # noqa: N802
        return True

    def get(self, prop):
        return -9.2e18 if prop == cv2.CAP_PROP_FRAME_COUNT else 25.0

    def read(self):
        time.sleep(0.01)
        return True, np.zeros((4, 6, 3), np.uint8)

    def release(self):
        pass


@pytest.mark.parametrize("threads", ["", "4"])
def test_ffmpeg_is_told_when_to_give_up_and_to_hold_no_frames_back(monkeypatch, threads):
    monkeypatch.setattr(Stream, "made", [])
    monkeypatch.setattr(cv2, "VideoCapture", Stream)
    monkeypatch.delenv("OPENCV_FFMPEG_THREADS", raising=False)
    if threads:
        monkeypatch.setenv("OPENCV_FFMPEG_THREADS", threads)
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"rtsp://me:secret@127.0.0.1:{server.getsockname()[1]}/live"
        with open_source(uri, SourceOptions(stall_s=2)) as source:
            assert (source.fps, source.count, source.live) == (25, 0, True)
    address, api, parameters = Stream.made[0]
    assert (address, api) == (uri, cv2.CAP_FFMPEG)
    expected = {cv2.CAP_PROP_OPEN_TIMEOUT_MSEC: 10_000, cv2.CAP_PROP_READ_TIMEOUT_MSEC: 1800}
    if not threads:
        expected[cv2.CAP_PROP_N_THREADS] = 1
    assert dict(zip(parameters[::2], parameters[1::2], strict=True)) == expected


def test_opencv_that_raises_does_not_give_the_address_away(monkeypatch):
    def fail(*arguments):
        raise cv2.error(f"cannot open {arguments[0]}")

    monkeypatch.setattr(cv2, "VideoCapture", fail)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(SourceError, match=f"^rtsp://127.0.0.1:{port}/live: OpenCV cannot open it$"):
            open_source(f"rtsp://me:secret@127.0.0.1:{port}/live")


# RTSP for real

RTSP_SERVER = """
import sys
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
for name in ("videotestsrc", "jpegenc", "rtpjpegpay"):
    if not Gst.ElementFactory.find(name):
        sys.exit(f"no GStreamer element {name}")
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(sys.argv[1])
factory = GstRtspServer.RTSPMediaFactory()
size = "video/x-raw,format=I420,width=160,height=120,framerate=30/1"
factory.set_launch(f"( videotestsrc is-live=true ! {size} ! jpegenc ! rtpjpegpay name=pay0 pt=26 )")
factory.set_shared(True)
server.get_mount_points().add_factory("/live", factory)
server.attach(None)
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
"""


class RtspServer:
    """A GStreamer RTSP server in a process of its own, by an interpreter that has the bindings."""

    def __init__(self):
        self.port = 0
        self.start()

    def start(self):
        said = []
        for python in dict.fromkeys((sys.executable, "/usr/bin/python3")):
            command = [python, "-c", RTSP_SERVER, str(self.port)]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            port = self.process.stdout.readline()
            if port:
                self.port = int(port)
                return
            said.append(self.process.communicate()[1].strip().rpartition("\n")[2])
        pytest.skip(f"no RTSP server (Debian: gir1.2-gst-rtsp-server-1.0, gstreamer1.0-plugins-good): {said[-1]}")

    def kill(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def rtsp_server():
    server = RtspServer()
    yield server
    server.kill()


def test_an_rtsp_server_killed_started_and_stopped(rtsp_server, caplog):
    caplog.set_level(logging.INFO)
    uri = f"rtsp://me:secret@127.0.0.1:{rtsp_server.port}/live"
    with open_source(uri, SourceOptions(stall_s=1.0)) as source:
        assert {f.image_bgr.shape for f in take(source, 10)} == {(120, 160, 3)}
        rtsp_server.kill()
        rtsp_server.start()
        frames = iter(source)
        assert next(f for f in frames if source.reconnects == 1).index > 9
        os.kill(rtsp_server.process.pid, signal.SIGSTOP)  # connected, and silent
        waker = threading.Timer(2.0, os.kill, (rtsp_server.process.pid, signal.SIGCONT))
        waker.start()
        assert next(f for f in frames if source.reconnects == 2)
        waker.join()
    said = "\n".join(lines(caplog))
    assert "lost after" in said
    assert "(no frame for 1 s), reconnecting" in said
    assert "reconnected after" in said
    assert "secret" not in said
    with pytest.raises(SourceError, match=r"/nothing: the server has no such stream \(404\): check the path"):
        open_source(f"{uri}/nothing")
