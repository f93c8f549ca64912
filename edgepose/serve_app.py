"""The live page's server: who may come in, what they get, and how slow ones are kept from costing anything.

``serve.py`` imports this when it is needed: aiohttp is an extra.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import re
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.resources import files
from urllib.parse import urlsplit

from aiohttp import web

from edgepose.serve import Feed, Settings, Shown, is_loopback

__all__ = ["serve"]

_log = logging.getLogger(__name__)

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_PAGE = files("edgepose").joinpath("serve_page.html").read_text(encoding="utf-8")
_BOUNDARY = "edgepose-frame"
_SILENCE_S = 10.0  # without frames: /healthz says so
_COOKIE_DAYS = 30
_SPARE = 16  # connections beside those that watch: pages, snapshots, checks
_AT_ONCE = 8  # connections taken before they are counted: so many may be over the limit
_QUEUE = 128  # connections that the kernel keeps until they are taken


async def serve(
    feed: Feed, settings: Settings, listening: socket.socket, started: Callable[[Callable[[], object]], object]
) -> None:
    """Serve until told to stop.

    Args:
        feed: What to show.
        settings: Who may see it, and how much of it.
        listening: Where.
        started: Called with a function that ends the server, from any thread.
    """
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1, "edgepose-serve"))
    site = _Site(feed, settings)
    quiet = logging.Logger("aiohttp", logging.CRITICAL)  # a stranger's requests must not fill the log, nor a token
    runner = web.AppRunner(
        site.app(),
        access_log=None,
        logger=quiet,
        handler_cancellation=True,
        keepalive_timeout=30.0,
        shutdown_timeout=1.0,
    )
    await runner.setup()
    web_server = runner.server
    assert web_server is not None
    most = 2 * settings.clients + _SPARE
    server = await loop.create_server(
        lambda: web_server() if len(web_server.connections) < most else _TurnAway(),
        sock=listening,
        backlog=_AT_ONCE,
    )
    listening.listen(_QUEUE)  # asyncio takes one number for both
    pulse = loop.create_task(site.pulse())
    stop = asyncio.Event()
    feed.wake = lambda: loop.call_soon_threadsafe(site.wake)
    started(lambda: loop.call_soon_threadsafe(stop.set))
    await stop.wait()
    feed.wake = lambda: None
    pulse.cancel()
    server.close()
    await _settle()  # connections that were just taken become known
    for connection in web_server.connections:
        if connection.transport is not None:
            connection.transport.abort()  # a client that does not read would never let it close
    await _settle()
    await runner.cleanup()


async def _settle() -> None:
    """Let the loop do what it has at hand."""
    for _ in range(10):
        await asyncio.sleep(0)


class _TurnAway(asyncio.Protocol):
    """Answers one connection too many, before it has said anything."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        text = b"too many connections\n"
        transport.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))
        transport.close()


class _Site:
    """The routes."""

    def __init__(self, feed: Feed, settings: Settings) -> None:
        self._feed = feed
        self._settings = settings
        self._arrived = asyncio.Event()
        self._watching: Counter[str] = Counter()
        self._figures = (0, "")

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard], client_max_size=1024)
        app.router.add_get("/", self._page)
        app.router.add_get("/stream.mjpg", self._stream, allow_head=False)
        app.router.add_get("/ws", self._socket, allow_head=False)
        app.router.add_get("/snapshot.jpg", self._snapshot)
        app.router.add_get("/healthz", self._health)
        app.on_response_prepare.append(_add_headers)
        return app

    def wake(self) -> None:
        """Let everyone who waits look whether there is news."""
        self._arrived.set()
        self._arrived.clear()

    async def pulse(self) -> None:
        """Make the figures once a second."""
        while True:
            self._feed.count()
            if self._watching["sockets"]:
                self._figures = (self._figures[0] + 1, self._feed.figures())
                self.wake()
            await asyncio.sleep(1.0)

    @web.middleware
    async def _guard(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        _check_site(request, self._settings)
        if request.path != "/healthz":
            self._check_token(request)
        try:
            return await handler(request)
        except (ConnectionError, web.HTTPException):
            raise
        except Exception as error:
            _log.warning("live page: %s failed: %s: %s", request.path, type(error).__name__, error)
            raise

    def _check_token(self, request: web.Request) -> None:
        settings = self._settings
        if settings.token is None:
            return
        cookie = request.cookies.get(_cookie_name(request), "")
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        known = settings.knows(request.query.get("token", "")) or settings.knows(bearer)
        if not (known or settings.knows_cookie(cookie)):
            raise web.HTTPUnauthorized(text="this page needs its token: open /?token=... once\n")

    async def _page(self, request: web.Request) -> web.Response:
        response = web.Response(text=_PAGE, content_type="text/html")
        if "token" in request.query and self._settings.token is not None:
            response.set_cookie(
                _cookie_name(request),
                self._settings.cookie,
                httponly=True,
                samesite="Strict",
                max_age=_COOKIE_DAYS * 86400,
            )
        return response

    async def _health(self, request: web.Request) -> web.Response:
        silent_s = self._feed.silent_s()
        if silent_s < _SILENCE_S:
            return web.Response(text="ok\n")
        return web.Response(status=503, text=f"no frame for {silent_s:.0f} s\n")

    async def _snapshot(self, request: web.Request) -> web.Response:
        shown = self._feed.newest
        if shown is None:
            raise web.HTTPServiceUnavailable(text="there is no frame yet\n")
        name = f'attachment; filename="edgepose-{shown.frame.index:06d}.jpg"'
        jpeg = await self._jpeg(shown)
        return web.Response(body=jpeg, content_type="image/jpeg", headers={"Content-Disposition": name})

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        with self._place("streams"):
            kind = f"multipart/x-mixed-replace; boundary={_BOUNDARY}"
            response = web.StreamResponse(headers={"Content-Type": kind})
            await response.prepare(request)
            between = f"--{_BOUNDARY}\r\n".encode()  # sent after each picture, so that browsers show it at once
            await response.write(between)
            async for shown in self._frames():
                jpeg = await self._jpeg(shown)
                head = f"Content-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n".encode()
                if not await self._sent(request, response.write(b"".join([head, jpeg, b"\r\n", between]))):
                    break
            return response

    async def _frames(self) -> AsyncIterator[Shown]:
        """Always the newest frame, none twice, and not more often than is allowed."""
        loop, number, due_s = asyncio.get_running_loop(), 0, 0.0
        while True:
            shown = self._feed.newest
            if shown is None or shown.number == number:
                await self._arrived.wait()
                continue
            number, due_s = shown.number, loop.time() + 0.9 / self._settings.max_fps  # cameras are not that punctual
            yield shown
            await asyncio.sleep(due_s - loop.time())

    async def _jpeg(self, shown: Shown) -> bytes:
        """Drawn and encoded by the first who asks; the others wait for that."""
        if shown.encoding is None:
            make, loop = shown.jpeg, asyncio.get_running_loop()
            shown.encoding = loop.run_in_executor(None, make, self._settings.threshold, self._settings.quality)
        return await asyncio.shield(shown.encoding)

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        with self._place("sockets"):
            connection = web.WebSocketResponse(heartbeat=20.0, compress=False, max_msg_size=1024)
            if not connection.can_prepare(request):
                raise web.HTTPUpgradeRequired(text="a WebSocket is expected here\n")
            await connection.prepare(request)
            listening = asyncio.create_task(_until_it_speaks(connection))
            try:
                async for text in self._news(connection):
                    if not await self._sent(request, connection.send_str(text)):
                        break
            finally:
                listening.cancel()
            return connection

    async def _news(self, connection: web.WebSocketResponse) -> AsyncIterator[str]:
        """The newest frame's JSON and the newest figures, each once, until the connection closes."""
        number, second = 0, 0
        while not connection.closed:
            shown, figures = self._feed.newest, self._figures
            if figures[0] != second:
                second = figures[0]
                yield figures[1]
            if shown is not None and shown.number != number:
                number = shown.number
                yield shown.message
            elif self._figures[0] == second:
                await self._arrived.wait()

    async def _sent(self, request: web.Request, sending: Awaitable[None]) -> bool:
        """Whether the client took it in time. One that did not is cut off."""
        try:
            await asyncio.wait_for(sending, self._settings.write_timeout_s)
        except ConnectionError:
            return False
        except asyncio.TimeoutError:
            if request.transport is not None:
                request.transport.abort()
            return False
        return True

    @contextmanager
    def _place(self, kind: str) -> Iterator[None]:
        """A place among those who watch."""
        most = self._settings.clients
        if self._watching[kind] >= most:
            raise web.HTTPServiceUnavailable(text=f"{most} are watching already: close one of them\n")
        self._watching[kind] += 1
        self._feed.watchers += 1
        try:
            yield
        finally:
            self._watching[kind] -= 1
            self._feed.watchers -= 1


async def _until_it_speaks(connection: web.WebSocketResponse) -> None:
    """Answers pings and the closing handshake; nothing else is expected from a client."""
    await connection.receive()
    await connection.close()


def _check_site(request: web.Request, settings: Settings) -> None:
    """Refuse other sites' pages, also where their name has been pointed at this machine (DNS rebinding)."""
    host = request.headers.get("Host", "").lower()
    try:
        name, _ = _name_and_port(request)
        origin = urlsplit(request.headers.get("Origin", f"//{host}")).netloc.lower()
    except ValueError:
        raise web.HTTPBadRequest(text="the Host or Origin header is damaged\n") from None
    if settings.token is None and not is_loopback(name):
        raise web.HTTPForbidden(text="without a token this page answers to localhost only\n")
    embedded = request.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site")
    if origin != host or (embedded and request.headers.get("Sec-Fetch-Mode") != "navigate"):
        raise web.HTTPForbidden(text="another site's page cannot use this one\n")


def _name_and_port(request: web.Request) -> tuple[str, int]:
    parts = urlsplit("//" + request.headers.get("Host", ""))
    return parts.hostname or "", parts.port or 80


def _cookie_name(request: web.Request) -> str:
    """By port: a browser's cookies belong to a host with all its ports."""
    return f"edgepose-{_name_and_port(request)[1]}"


def _policy() -> str:
    """Nothing but the page's own style and script, by their hashes, and this server."""
    hashes = {}
    for tag in ("style", "script"):
        found = re.search(rf"<{tag}>(.*?)</{tag}>", _PAGE, re.DOTALL)
        assert found, tag
        hashes[tag] = base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{hashes['style']}'; script-src 'sha256-{hashes['script']}'; "
        "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": _policy(),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "edgepose",
    "X-Content-Type-Options": "nosniff",
}


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)
