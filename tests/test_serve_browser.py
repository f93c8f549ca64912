"""The live page in a real browser: it is drawn, asks nobody else for anything, and shows what goes on.

The browser is driven over its debugging WebSocket (Chrome DevTools Protocol).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import aiohttp
import cv2
import numpy as np
import pytest

from edgepose import Poses
from edgepose.serve import ServeSink
from edgepose.sources import Frame

NAMES = ("chromium", "chromium-browser", "google-chrome")
TOKEN = "correct-horse-battery"
SIZES = {"wide": (1400, 900), "phone": (400, 800)}
LISTENS = re.compile(r"listening on (ws://\S+)\s")
GREEN = (60, 160, 40)  # the camera's picture, in BGR

pytestmark = pytest.mark.skipif(os.name != "posix", reason="starts a browser by its command line")


class Tab:
    """One page of a browser."""

    def __init__(self, connection: aiohttp.ClientWebSocketResponse) -> None:
        self.connection = connection
        self.session: dict[str, str] = {}
        self.events: list[dict] = []
        self.numbers = itertools.count(1)
        self.answers: dict[int, asyncio.Future] = {}

    async def listen(self) -> None:
        async for message in self.connection:
            data = json.loads(message.data)
            if "id" in data:
                self.answers[data["id"]].set_result(data)
            else:
                self.events.append(data)

    async def call(self, method: str, **parameters: object) -> dict:
        number = next(self.numbers)
        self.answers[number] = asyncio.get_running_loop().create_future()
        await self.connection.send_json({"id": number, "method": method, "params": parameters, **self.session})
        answer = await asyncio.wait_for(self.answers[number], 30)
        assert "error" not in answer, answer
        return answer["result"]

    async def value(self, expression: str) -> object:
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, expression: str) -> None:
        deadline = time.monotonic() + 60
        while not await self.value(expression):
            assert time.monotonic() < deadline, f"never true: {expression}"
            await asyncio.sleep(0.05)

    async def look(self, size: str, scheme: str) -> np.ndarray:
        """A screenshot."""
        width, height = SIZES[size]
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
        await self.call("Emulation.setDeviceMetricsOverride", **screen)
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        await asyncio.sleep(0.1)
        data = base64.b64decode((await self.call("Page.captureScreenshot", format="png"))["data"])
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)

    def of(self, *methods: str) -> list[dict]:
        return [event["params"] for event in self.events if event["method"] in methods]


async def eventually(true) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def opened(program: str, folder: str):
    """A tab of a browser of our own."""
    options = ["--headless", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-dev-shm-usage"]
    options += ["--remote-debugging-port=0", f"--user-data-dir={folder}"]
    options += ["--no-sandbox"] if os.geteuid() == 0 else []
    log = Path(f"{folder}.log")
    with log.open("wb") as file:
        process = subprocess.Popen([program, *options, "about:blank"], stdout=file, stderr=file)
    try:
        await eventually(lambda: process.poll() is not None or LISTENS.search(log.read_text(errors="replace")))
        assert process.poll() is None, log.read_text(errors="replace")
        address = LISTENS.search(log.read_text(errors="replace"))[1]
        async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as connection:
            tab = Tab(connection)
            listening = asyncio.create_task(tab.listen())
            target = await tab.call("Target.createTarget", url="about:blank")
            attached = await tab.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
            tab.session = {"sessionId": attached["sessionId"]}
            for domain in ("Page", "Runtime", "Network", "Log"):
                await tab.call(f"{domain}.enable")
            yield tab
            listening.cancel()
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def running(sink: ServeSink):
    """A camera that looks at a moving person, 10 pictures per second, unless told to pause."""
    over, paused = threading.Event(), threading.Event()
    picture = np.full((240, 320, 3), GREEN, np.uint8)
    keypoints = np.stack([np.linspace(40, 280, 14), np.linspace(20, 220, 14)], axis=1)[None]
    scores = np.full((1, 14), 0.9)
    scores[0, :3] = 0.1

    def shoot():
        for i in itertools.count():
            if over.wait(0.1):
                return
            if not paused.is_set():
                shift = [10 * np.sin(i), 0]
                person = Poses(keypoints + shift, scores, [[40, 20, 280, 220]], "lsp14", track_ids=[7])
                sink.write(Frame(picture, i, "camera 0", i / 10), person)

    thread = threading.Thread(target=shoot)
    thread.start()
    try:
        yield paused
    finally:
        over.set()
        thread.join()


def stats():
    now = time.monotonic()
    return {
        "fps": 25 + now % 5,
        "latency_ms": {"p50": 41.2, "p95": 55.0, "p99": 71.0},
        "dropped": 17,
        "temperature_c": 61.4,
        "pose_ms": {"p50": 22.1},
    }


@pytest.fixture
def browse(tmp_path):
    """Runs a visit of the page: a coroutine that takes the tab, the sink and what pauses the camera."""
    asked = os.environ.get("EDGEPOSE_CHROMIUM")
    program = asked or next(filter(None, map(shutil.which, NAMES)), None)
    if not program:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on PATH (or set EDGEPOSE_CHROMIUM)")

    def run(visit, sink: ServeSink, query: str = "") -> None:
        async def go(paused):
            async with opened(program, str(tmp_path / "profile")) as tab:
                await tab.call("Page.navigate", url=sink.url + query)
                await visit(tab, sink, paused)

        try:
            with running(sink) as paused:
                asyncio.run(go(paused))
        finally:
            sink.close(complete=True)

    return run


def drawn(shot: np.ndarray, scheme: str) -> bool:
    """Whether a screenshot has the scheme's background and the camera's picture."""
    background = (shot[4, 4].mean() < 60) == (scheme == "dark")
    return background and (abs(shot.astype(int) - GREEN).max(axis=2) < 12).sum() > 30_000


def text_of(name: str) -> str:
    return f"document.getElementById('{name}').textContent"


def test_it_shows_what_goes_on_and_asks_nobody_else(browse):
    async def visit(tab, sink, paused):
        await tab.until("document.body?.dataset.state === 'live'")
        await tab.until("document.getElementById('picture').naturalWidth === 320")
        assert 24 <= float(str(await tab.value(text_of("fps")))) <= 30
        shown = [await tab.value(text_of(name)) for name in ("title", "p50", "p95", "p99", "dropped", "temperature")]
        assert shown == ["starter on camera 0", "41ms", "55ms", "71ms", "17", "61°C"]
        await tab.until(text_of("who") + " === '70.9011 of 14 joints'")  # track 7, score 0.90
        assert await tab.value(text_of("more")) == "pose, msp50 22.1"
        curve = "document.querySelector('#fps-trace polyline').outerHTML"
        await tab.until(f"{curve} !== {json.dumps(await tab.value(curve))}")
        count = len(tab.of("Network.webSocketFrameReceived"))
        await eventually(lambda: len(tab.of("Network.webSocketFrameReceived")) > count + 5)

        for size, scheme in itertools.product(SIZES, ("light", "dark")):
            deadline = time.monotonic() + 60
            while not drawn(await tab.look(size, scheme), scheme):
                assert time.monotonic() < deadline, f"{size} {scheme} is not drawn"
            assert await tab.value("document.documentElement.scrollWidth") == SIZES[size][0]

        paused.set()
        await tab.until("document.body?.dataset.state === 'silent'")
        assert str(await tab.value(text_of("notice"))).startswith("No picture for ")
        paused.clear()
        await tab.until("document.body?.dataset.state === 'live'")

        asked = {request["request"]["url"] for request in tab.of("Network.requestWillBeSent")}
        asked |= {request["url"].replace("ws:", "http:") for request in tab.of("Network.webSocketCreated")}
        assert {re.sub(r"\?\d+$", "", url) for url in asked} == {sink.url, sink.url + "stream.mjpg", sink.url + "ws"}
        assert tab.of("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded") == []

    browse(visit, ServeSink("127.0.0.1:0", stats=stats, title="starter on camera 0"))


def test_the_button_saves_a_picture(browse, tmp_path):
    async def visit(tab, sink, paused):
        await tab.until("document.body?.dataset.state === 'live'")
        await tab.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "saved"))
        await tab.value("document.querySelector('a.button').click()")
        await eventually(lambda: list((tmp_path / "saved").glob("edgepose-*.jpg")))
        saved = list((tmp_path / "saved").glob("edgepose-*.jpg"))
        assert cv2.imread(str(saved[0])).shape == (240, 320, 3)

    browse(visit, ServeSink("127.0.0.1:0"))


def test_the_token_leaves_the_address_and_a_reload_needs_none(browse):
    async def visit(tab, sink, paused):
        await tab.until("document.body?.dataset.state === 'live'")
        assert await tab.value("location.href") == sink.url
        await tab.call("Page.reload")
        await tab.until("document.body?.dataset.state === 'live'")
        await tab.until("document.getElementById('picture').naturalWidth === 320")
        assert await tab.value("document.cookie") == ""  # script cannot read it

    browse(visit, ServeSink("127.0.0.1:0", TOKEN), query=f"?token={TOKEN}")


def test_a_hidden_page_lets_the_board_rest_and_a_lost_one_comes_back(browse):
    def hide(hidden: str) -> str:
        hiding = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true})"
        return f"{hiding % hidden}; document.dispatchEvent(new Event('visibilitychange'))"

    async def visit(tab, sink, paused):
        await tab.until("document.body?.dataset.state === 'live'")
        await tab.value(hide("true"))
        await eventually(lambda: sink._feed.watchers == 0)
        await tab.value(hide("false"))
        await tab.until("document.body?.dataset.state === 'live'")

        await tab.value("socket.close()")
        await tab.until("document.body?.dataset.state === 'lost'")
        assert await tab.value(text_of("notice")) == "The connection is lost. Trying again."
        await tab.until("document.body?.dataset.state === 'live'")
        await eventually(lambda: sink._feed.watchers == 2)

    browse(visit, ServeSink("127.0.0.1:0"))
