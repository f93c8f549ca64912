"""The live page as browsers and others meet it: what it serves, to whom, to how many, and what the slow ones cost."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
import os
import re
import select
import socket
import sys
import threading
import time
from urllib.parse import urlsplit

import aiohttp
import cv2
import numpy as np
import pytest

from edgepose import Poses, SinkError, serve
from edgepose.serve import ServeSink, temperature_c
from edgepose.sources import Frame

HERE = "127.0.0.1:0"
TOKEN = "correct horse; battery=staple"


def frame(index=0, size=(120, 160)):
    """A grey picture that tells its number: the darker, the older."""
    return Frame(np.full((*size, 3), 50 + index % 200, np.uint8), index, "camera 0", index / 30)


def people(count=1):
    xs = np.linspace(10, 150, 14)
    keypoints = np.stack([xs, np.linspace(10, 110, 14)], axis=1)
    return Poses(
        np.stack([keypoints] * count), np.full((count, 14), 0.9), np.tile([5, 5, 155, 115], (count, 1)), "lsp14"
    )


@pytest.fixture
def page():
    """Makes pages, and closes them after the test."""
    with contextlib.ExitStack() as stack:

        def make(address: str = HERE, token: str | None = None, **options) -> ServeSink:
            sink = ServeSink(address, token, **options)
            stack.callback(sink.close, complete=True)
            return sink

        yield make


class Camera(threading.Thread):
    """Writes frames at 100 per second until told to stop, and measures how long each takes."""

    def __init__(self, sink: ServeSink, size=(120, 160)) -> None:
        super().__init__()
        self.sink, self.size, self.times, self.over = sink, size, [], threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.01):
            shot = frame(len(self.times), self.size)
            before = time.perf_counter()
            self.sink.write(shot, people())
            self.times.append(time.perf_counter() - before)

    def __enter__(self) -> Camera:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()


def get(sink, path="/", headers=None, method="GET"):
    """Status, headers and body of one request, with nothing added to it."""
    where = urlsplit(sink.url)
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=60)
    try:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def wait_until(true, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def test_the_page_stands_alone_and_trusts_nobody(page):
    status, headers, body = get(page())
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    text = body.decode()
    assert not re.findall(r"""(?:src|href)=["'](?!data:|snapshot)""", text)
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    names = ("Cache-Control", "X-Content-Type-Options", "Referrer-Policy", "Cross-Origin-Resource-Policy", "Server")
    assert [headers[name] for name in names] == ["no-store", "nosniff", "no-referrer", "same-origin", "edgepose"]
    assert get(page(), "/nothing")[0] == 404
    assert get(page(), "/", method="POST")[0] == 405


def test_a_snapshot_is_the_newest_frame_with_its_skeletons(page):
    sink = page()
    assert get(sink, "/snapshot.jpg")[::2] == (503, b"there is no frame yet\n")
    sink.write(frame(6), people())
    sink.write(frame(7), people())
    status, headers, body = get(sink, "/snapshot.jpg")
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    assert headers["Content-Disposition"] == 'attachment; filename="edgepose-000007.jpg"'
    picture = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (120, 160, 3)
    assert abs(int(picture[110, 10, 0]) - 57) < 5
    assert picture[10, 10].min() > 150  # a joint


def test_health_tells_whether_frames_come(page, monkeypatch):
    sink = page(token=TOKEN)
    assert get(sink, "/healthz")[::2] == (200, b"ok\n")  # without the token: for the machine that watches the board
    sink.write(frame(), people())
    now = time.monotonic()
    monkeypatch.setattr("edgepose.serve.time.monotonic", lambda: now + 12.3)
    assert get(sink, "/healthz")[::2] == (503, b"no frame for 12 s\n")


async def parts(response):
    """JPEGs of a stream as they come."""
    boundary = response.headers["Content-Type"].partition("boundary=")[2].encode()
    assert await response.content.readline() == b"--" + boundary + b"\r\n"
    while True:
        head = await response.content.readuntil(b"\r\n\r\n")
        size = int(re.search(rb"Content-Length: (\d+)", head)[1])
        yield cv2.imdecode(np.frombuffer(await response.content.readexactly(size), np.uint8), cv2.IMREAD_COLOR)
        assert await response.content.readexactly(2 + len(boundary) + 4) == b"\r\n--" + boundary + b"\r\n"


def test_the_stream_is_one_jpeg_after_the_other(page):
    sink = page()

    async def watch():
        async with aiohttp.ClientSession() as session, session.get(sink.url + "stream.mjpg") as response:
            assert response.content_type == "multipart/x-mixed-replace"
            seen = []
            async for picture in parts(response):
                seen.append(int(picture[110, 10, 0]) - 50)
                if len(seen) == 10:
                    break
            return seen

    with Camera(sink):
        seen = asyncio.run(watch())
    assert (np.diff(seen) > 0).all()  # every picture is newer than the last
    wait_until(lambda: sink._feed.watchers == 0)


def test_opencv_can_read_the_stream(page):
    sink = page()
    with Camera(sink):
        capture = cv2.VideoCapture(sink.url + "stream.mjpg")
        ok, picture = capture.read()
        capture.release()
    assert ok
    assert picture.shape == (120, 160, 3)


async def messages(sink, count, seconds=0, **options):
    """The first messages of a WebSocket: (of frames, of figures)."""
    frames, figures = [], []
    async with aiohttp.ClientSession() as session, session.ws_connect(sink.url + "ws", **options) as connection:
        while len(frames) < count or len(figures) < seconds:
            message = json.loads(await connection.receive_str(timeout=60), parse_constant=pytest.fail)
            (figures if "stats" in message else frames).append(message)
    return frames, figures


def test_the_websocket_tells_poses_and_figures(page):
    stats = {"fps": np.float64(29.5), "latency_ms": {"p50": 41.0, "p95": float("nan")}, "dropped": 3}
    sink = page(stats=lambda: stats, title="starter on camera 0")
    with Camera(sink):
        frames, figures = asyncio.run(messages(sink, 5, seconds=2))
    assert [row["schema"] for row in frames + figures] == [1] * (len(frames) + len(figures))
    assert (np.diff([row["frame"] for row in frames]) > 0).all()
    assert frames[0]["people"][0]["keypoints"][0] == [10.0, 10.0, 0.9]
    last = figures[-1]["stats"]
    assert (last["title"], last["people"], last["fps"]) == ("starter on camera 0", 1, 29.5)
    assert (last["latency_ms"], last["dropped"]) == ({"p50": 41.0, "p95": None}, 3)
    assert last["uptime_s"] >= 1
    assert last["frames"] > 20
    assert "temperature_c" in last


def test_it_counts_frames_itself_and_survives_broken_figures(page, caplog):
    def broken():
        raise KeyError("p95")

    sink = page(stats=broken)
    with Camera(sink) as camera:
        wait_until(lambda: len(camera.times) > 20)
        _, figures = asyncio.run(messages(sink, 1, seconds=2))
    assert 0 < figures[-1]["stats"]["fps"] < 101
    ours = [record.getMessage() for record in caplog.records if record.name == "edgepose.serve"]
    assert ours == ["the live page shows no figures of the pipeline: KeyError: 'p95'"]


def test_each_frame_is_encoded_once_and_only_while_somebody_watches(page, monkeypatch):
    drawn, real = [], serve.annotated
    monkeypatch.setattr(serve, "annotated", lambda *given: drawn.append(given) or real(*given))
    sink = page(max_fps=1000)
    for i in range(100):
        sink.write(frame(i), people())
    assert drawn == []

    async def watch():
        async with aiohttp.ClientSession() as session, contextlib.AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(session.get(sink.url + "stream.mjpg")) for _ in range(3)]
            readers = [parts(stream) for stream in streams]
            counted = []
            for i in range(5):
                for reader in readers:
                    await anext(reader)
                counted.append(len(drawn))
                sink.write(frame(i), people())
            for reader in readers:
                await reader.aclose()
            return counted

    assert asyncio.run(watch()) == [1, 2, 3, 4, 5]


def test_writing_costs_nothing_while_nobody_watches(page):
    sink = page()
    with Camera(sink, (720, 1280)) as camera:
        wait_until(lambda: len(camera.times) >= 100)
    assert np.median(camera.times) < 0.0005


def memory_mb():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads its memory as Linux tells it")
def test_a_client_that_never_reads_costs_neither_time_nor_memory(page):
    sink = page(write_timeout_s=1.5)
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)  # 400 kB as JPEG
    where = urlsplit(sink.url)
    with contextlib.ExitStack() as stack:
        for path in ("/stream.mjpg", "/stream.mjpg"):  # a WebSocket's messages would take minutes to fill the buffers
            deaf = stack.enter_context(socket.socket())
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect((where.hostname, where.port))
            deaf.sendall(f"GET {path} HTTP/1.1\r\nHost: {where.netloc}\r\n\r\n".encode())
        times, started, gone, before_mb = [], time.monotonic(), None, memory_mb()
        while time.monotonic() - started < 60:
            before = time.perf_counter()
            sink.write(Frame(noise, len(times), "camera 0", 0.0), people())
            times.append(time.perf_counter() - before)
            if len(times) > 50 and sink._feed.watchers == 0:
                gone = time.monotonic() - started
                break
            time.sleep(0.01)
        assert gone is not None, "the deaf clients hold their places"
        assert gone > 1.0  # they had their time
        assert memory_mb() - before_mb < 25  # what was not sent to the two would be a hundred
        assert np.median(times) < 0.002
        with Camera(sink):  # and who reads is served
            assert len(asyncio.run(messages(sink, 3))[0]) == 3


def test_a_slow_client_sees_the_newest_frame_next(page):
    """What lies in the network's buffers comes first, but that is bounded: about a megabyte, two pictures here."""
    sink = page(max_fps=1000)
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        where = urlsplit(sink.url)
        client.connect((where.hostname, where.port))
        client.sendall(f"GET /stream.mjpg HTTP/1.1\r\nHost: {where.netloc}\r\n\r\n".encode())
        wait_until(lambda: sink._feed.watchers == 1)
        for i in range(60):
            sink.write(Frame(noise, i, "camera 0", 0.0), people())
            time.sleep(0.015)
        sink.write(frame(60, (100, 100)), people())
        client.settimeout(60)
        received = b""
        while received.count(b"Content-Length") < 2 or not 0 < last_size(received) < 50_000:
            received += client.recv(1 << 16)
    assert received.count(b"Content-Length") <= 6  # of 61


def last_size(stream):
    sizes = re.findall(rb"Content-Length: (\d+)", stream)
    return int(sizes[-1]) if sizes else 0


def test_clients_are_counted(page):
    sink = page(clients=2)

    async def crowd():
        async with aiohttp.ClientSession() as session, contextlib.AsyncExitStack() as stack:
            for path in ("stream.mjpg", "ws"):
                url = sink.url + path
                enter = session.ws_connect if path == "ws" else session.get
                for _ in range(2):
                    await stack.enter_async_context(enter(url))
                async with session.get(url) as answer:
                    assert (answer.status, await answer.text()) == (503, "2 are watching already: close one of them\n")
        async with aiohttp.ClientSession() as session, session.get(sink.url + "snapshot.jpg") as answer:
            assert answer.status == 200

    with Camera(sink) as camera:
        wait_until(lambda: camera.times)
        asyncio.run(crowd())
        wait_until(lambda: sink._feed.watchers == 0)
        assert asyncio.run(messages(sink, 1))[0]  # their places are free again


def test_idle_connections_are_counted_too(page):
    sink = page(clients=2)
    where = urlsplit(sink.url)
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection((where.hostname, where.port))) for _ in range(50)]
        answered, _, _ = select.select(idle, [], [], 5)
        assert answered[-1].recv(1000).startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        time.sleep(0.2)
        answered, _, _ = select.select(idle, [], [], 0)
        assert 50 - (2 * 2 + 16 + 8) <= len(answered) <= 50 - (2 * 2 + 16)
    wait_until(lambda: get(sink)[0] == 200)


def test_a_client_that_talks_is_sent_away(page):
    sink = page()

    async def talk():
        async with aiohttp.ClientSession() as session, session.ws_connect(sink.url + "ws") as connection:
            await connection.send_str("hello")
            while (message := await connection.receive(timeout=60)).type == aiohttp.WSMsgType.TEXT:
                pass
            return message.type

    assert asyncio.run(talk()) in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
    assert get(sink, "/ws")[::2] == (426, b"a WebSocket is expected here\n")


WRONG = b"this page needs its token: open /?token=... once\n"


def test_the_token_goes_in_once_and_comes_back_as_a_cookie(page):
    sink = page(token=TOKEN)
    for path in ("/", "/snapshot.jpg", "/stream.mjpg", "/ws", "/?token=wrong", "/?token=", "/?token=%ff"):
        assert get(sink, path)[::2] == (401, WRONG)
    status, headers, _ = get(sink, "/?token=correct%20horse%3B%20battery%3Dstaple")
    assert status == 200
    cookie = headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert "horse" not in cookie
    assert get(sink, "/", {"Cookie": cookie.partition(";")[0]})[0] == 200
    assert get(sink, "/", {"Cookie": cookie.partition(";")[0][:-1] + "0x"})[0] == 401
    assert get(sink, "/snapshot.jpg", {"Authorization": f"Bearer {TOKEN}"})[0] == 503  # let in, but no frame yet
    assert get(sink, "/", {"Authorization": "Bearer wrong"})[0] == 401
    assert "Set-Cookie" not in get(page(), "/?token=anything")[1]


def test_strangers_do_not_fill_the_log_and_the_token_is_not_in_it(page, caplog, capfd):
    caplog.set_level(logging.INFO, "aiohttp")
    caplog.set_level(logging.DEBUG, "edgepose")
    sink = page(token=TOKEN)
    where = urlsplit(sink.url)
    assert get(sink, "/?token=correct%20horse%3B%20battery%3Dstaple")[0] == 200
    upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: bm8=\r\n"
    requests = [
        b"GET /?token=correct%20horse HTTP/9.9\r\n\r\n",
        b"GET http://[/?token=correct%20horse HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 5000 + b"\r\n",
        b"\x00" * 5000,
        "GET /?token=%ff HTTP/1.1\r\nHost: x\r\nCookie: a=\xff;=;edgepose-80=\xe9\r\n\r\n".encode(),
        f"GET /ws?token=correct%20horse HTTP/1.1\r\nHost: x\r\n{upgrade}\r\n".encode(),
        f"GET /stream.mjpg HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode(),
    ]
    with Camera(sink):
        for request in requests * 3:
            with socket.create_connection((where.hostname, where.port)) as client, contextlib.suppress(OSError):
                client.sendall(request)  # and gone, before it is answered
        wait_until(lambda: sink._feed.watchers == 0)
    assert caplog.text == ""
    assert "".join(capfd.readouterr()) == ""


def test_a_picture_that_cannot_be_encoded_is_one_line(page, caplog, monkeypatch):
    monkeypatch.setattr(serve, "annotated", lambda *_: np.zeros((1, 70_000, 3), np.uint8))  # JPEG ends at 65535
    sink = page()
    sink.write(frame(), people())
    assert get(sink, "/snapshot.jpg")[0] == 500
    ours = [record.getMessage() for record in caplog.records]
    assert len(ours) == 1
    assert ours[0].startswith("live page: /snapshot.jpg failed: ")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:9000"}, 200),  # a tunnel: ssh -L 9000:127.0.0.1:8080 board
        ({"Host": "[::1]:8080"}, 200),
        ({"Host": "evil.example"}, 403),  # a name that was pointed at this machine
        ({"Host": "127.0.0.1.evil.example:8080"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "["}, 400),
        ({"Host": "localhost:9000", "Origin": "http://localhost:9000"}, 200),
        ({"Host": "localhost:9000", "Origin": "http://localhost:3000"}, 403),  # another server's page here
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),  # an <img> elsewhere
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),  # a link elsewhere
    ],
)
def test_other_sites_pages_get_nothing(page, headers, status):
    sink = page()
    sink.write(frame(), people())
    assert get(sink, "/snapshot.jpg", headers)[0] == status


def test_other_sites_pages_get_no_websocket(page):
    sink = page()
    with Camera(sink):
        assert asyncio.run(messages(sink, 1, origin=sink.url.rstrip("/")))[0]
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            asyncio.run(messages(sink, 1, origin="http://evil.example"))
    assert caught.value.status == 403


def test_with_a_token_any_name_will_do(page):
    sink = page("0.0.0.0:0", TOKEN)
    assert socket.gethostname() in sink.url
    port = urlsplit(sink.url).port
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", "/", headers={"Host": "board.local:80", "Authorization": f"Bearer {TOKEN}"})
        assert connection.getresponse().status == 200


@pytest.mark.parametrize(
    ("address", "token", "message"),
    [
        (
            "0.0.0.0:0",
            None,
            r"serve 0.0.0.0:0: anybody on the network could watch: set a token \(--serve-token or EDGE",
        ),
        ("[::]:0", "", r"serve \[::\]:0: anybody on the network could watch"),
        ("0.0.0.0:0", "short", r"serve 0.0.0.0:0: the token is too short: 8 characters or more"),
        ("8080", None, r"serve '8080': expected HOST:PORT, for instance 127.0.0.1:8080"),
        (":8080", None, r"serve ':8080': expected HOST:PORT"),
        ("127.0.0.1:http", None, r"serve '127.0.0.1:http': expected HOST:PORT"),
        ("127.0.0.1:8080/x", None, r"serve '127.0.0.1:8080/x': expected HOST:PORT"),
        ("me@127.0.0.1:8080", None, "expected HOST:PORT"),
        ("203.0.113.7:0", TOKEN, r"serve 203.0.113.7:0: cannot listen here \(Cannot assign requested address\)"),
        ("no.such.name.invalid:0", TOKEN, r"serve no.such.name.invalid:0: cannot listen here \("),
    ],
)
def test_addresses_that_cannot_be_served_are_one_line(monkeypatch, address, token, message):
    monkeypatch.delenv("EDGEPOSE_SERVE_TOKEN", raising=False)
    before = set(threading.enumerate())
    with pytest.raises(SinkError, match=f"^{message}" if message.startswith("serve") else message):
        ServeSink(address, token)
    assert set(threading.enumerate()) == before


def test_the_token_may_come_from_the_environment(page, monkeypatch):
    monkeypatch.setenv("EDGEPOSE_SERVE_TOKEN", TOKEN)
    sink = page("0.0.0.0:0")
    port = urlsplit(sink.url).port
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", "/")
        assert connection.getresponse().status == 401


def test_a_port_in_use_and_a_missing_package_are_one_line(page, monkeypatch):
    taken = urlsplit(page().url).netloc
    with pytest.raises(SinkError, match=f"^serve {taken}: the port is in use: choose another one$"):
        ServeSink(taken)
    monkeypatch.setitem(sys.modules, "edgepose.serve_app", None)
    with pytest.raises(SinkError, match=r"^the live page needs aiohttp: pip install 'edgepose\[serve\]'$"):
        ServeSink(HERE)


def test_closing_ends_everything_and_frees_the_port(page):
    before = set(threading.enumerate())
    sink = ServeSink(HERE)
    where = urlsplit(sink.url)
    with contextlib.ExitStack() as stack:
        with Camera(sink, (480, 640)):
            for path in ("/stream.mjpg", "/ws", "/"):
                client = stack.enter_context(socket.create_connection((where.hostname, where.port)))
                client.sendall(f"GET {path} HTTP/1.1\r\nHost: {where.netloc}\r\n\r\n".encode())
            stack.enter_context(socket.create_connection((where.hostname, where.port)))  # says nothing
            time.sleep(0.3)
        started = time.perf_counter()
        sink.close(complete=False)
        assert time.perf_counter() - started < 5
        assert set(threading.enumerate()) == before
        ServeSink(where.netloc).close(complete=True)


def test_the_temperature_is_the_processors(tmp_path):
    assert temperature_c(tmp_path) is None
    zones = {"iwlwifi": "81000", "cpu-thermal": "61250", "PMIC-Die": "100000", "soc-thermal": "58000", "gpu": "-274000"}
    for i, (kind, reading) in enumerate(zones.items()):
        (tmp_path / f"thermal_zone{i}").mkdir()
        (tmp_path / f"thermal_zone{i}" / "type").write_text(f"{kind}\n")
        (tmp_path / f"thermal_zone{i}" / "temp").write_text(f"{reading}\n")
    (tmp_path / "thermal_zone9").mkdir()  # not readable
    assert temperature_c(tmp_path) == 61.25
    for i in (1, 3):
        (tmp_path / f"thermal_zone{i}" / "temp").unlink()
    assert temperature_c(tmp_path) == 100.0
