"""A live web page for boards without a screen: what the camera sees, the poses on it, and how fast that is.

The pipeline leaves its newest frame in a :class:`Feed` and goes on. A thread of its own runs the server
(``serve_app.py``), which draws and encodes each frame once, and only while somebody watches.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import hmac
import ipaddress
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

import cv2

from edgepose.annotate import annotated
from edgepose.errors import SinkError
from edgepose.messages import SCHEMA, compact_json, frame_message
from edgepose.sources import Frame
from edgepose.types import Poses

__all__ = ["TOKEN_VARIABLE", "Feed", "ServeSink", "Settings", "Shown", "is_loopback", "temperature_c"]

TOKEN_VARIABLE = "EDGEPOSE_SERVE_TOKEN"
_SHORTEST_TOKEN = 8
_SEND_BUFFER = 1 << 18  # bytes that the kernel holds for a slow browser: more would only show it older pictures

_log = logging.getLogger(__name__)


class ServeSink:
    """Shows frames, poses and figures at ``http://<address>/``: see docs/live-page.md.

    Args:
        address: ``host:port``; port 0 takes a free one. Anything but this machine's own addresses needs a token.
        token: Who knows it may watch: once as ``/?token=...``, then by cookie. Also from ``EDGEPOSE_SERVE_TOKEN``.
        stats: The pipeline's figures, asked for once a second while somebody watches, by another thread. The page
            knows ``fps``, ``latency_ms`` (``p50``, ``p95``, ``p99``), ``dropped``, ``people``, ``temperature_c`` and
            ``uptime_s``; it lists numbers and texts by other names, too.
        title: What runs here, for people.
        clients: Streams at a time at most, and as many WebSockets.
        max_fps: Pictures per second of a stream at most.
        threshold: Joints that score less are not drawn.
        quality: Of the JPEGs, 1-100.
        write_timeout_s: After so long without reading a client is cut off.

    Attributes:
        url: Where the page is.

    Raises:
        SinkError: aiohttp is missing, a token is needed, or the address cannot be had.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:8080",
        token: str | None = None,
        *,
        stats: Callable[[], Mapping[str, object]] = dict,
        title: str = "",
        clients: int = 8,
        max_fps: float = 30.0,
        threshold: float = 0.2,
        quality: int = 80,
        write_timeout_s: float = 10.0,
    ) -> None:
        try:
            from edgepose.serve_app import serve
        except ImportError:
            raise SinkError("the live page needs aiohttp: pip install 'edgepose[serve]'") from None
        token = token or os.environ.get(TOKEN_VARIABLE) or None
        listening, self.url = _listen(address, token)
        self._feed = Feed(stats, title)
        settings = Settings(token, clients, max_fps, threshold, quality, write_timeout_s)
        started: Future[Callable[[], object]] = Future()
        running = serve(self._feed, settings, listening, started.set_result)
        self._thread = threading.Thread(target=asyncio.run, args=(running,), name="edgepose-serve", daemon=True)
        self._thread.start()
        self._stop = started.result(timeout=30)

    def write(self, frame: Frame, poses: Poses) -> None:
        """Leave a frame for those who watch. Returns at once; the frame's pixels must not change afterwards."""
        self._feed.put(frame, poses)

    def close(self, complete: bool) -> None:
        """End all connections and the server's thread; see :class:`edgepose.streaming.Sink`."""
        self._stop()
        self._thread.join()


@dataclass(frozen=True)
class Settings:
    """What the server needs to know; see :class:`ServeSink`."""

    token: str | None = field(repr=False)
    clients: int
    max_fps: float
    threshold: float
    quality: int
    write_timeout_s: float

    def knows(self, token: str) -> bool:
        """Whether this is the token, in a time that says nothing about it."""
        return self.token is not None and hmac.compare_digest(token.encode(errors="replace"), self.token.encode())

    def knows_cookie(self, cookie: str) -> bool:
        """The same for what a cookie says."""
        return hmac.compare_digest(cookie.encode(errors="replace"), self.cookie.encode())

    @cached_property
    def cookie(self) -> str:
        """Stands for the token in cookies, which other servers on this host see, too."""
        return hmac.new((self.token or "").encode(), b"edgepose live page", hashlib.sha256).hexdigest()


class Shown:
    """A frame with its poses, and what has been made of it so far."""

    def __init__(self, number: int, frame: Frame, poses: Poses) -> None:
        self.number = number
        self.frame = frame
        self.poses = poses
        self.at_s = time.monotonic()
        self.encoding: asyncio.Future[bytes] | None = None

    @cached_property
    def message(self) -> str:
        """The frame's JSON."""
        return frame_message(self.frame, self.poses)

    def jpeg(self, threshold: float, quality: int) -> bytes:
        """The picture with its skeletons."""
        canvas = annotated(self.frame.image_bgr, self.poses, threshold)
        return cv2.imencode(".jpg", canvas, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


class Feed:
    """What the pipeline leaves for the server: the newest frame only, so nothing can pile up.

    Attributes:
        newest: The last frame.
        watchers: Who wants to be woken by the next one.
        wake: Wakes them, from any thread.
    """

    def __init__(self, stats: Callable[[], Mapping[str, object]], title: str) -> None:
        self.newest: Shown | None = None
        self.watchers = 0
        self.wake: Callable[[], object] = lambda: None
        self._stats = stats
        self._title = title
        self._started_s = time.monotonic()
        self._counted = (self._started_s, 0, 0.0)
        self._complained = False

    def put(self, frame: Frame, poses: Poses) -> None:
        """Take the next frame; called by the pipeline."""
        number = self.newest.number + 1 if self.newest else 1
        self.newest = Shown(number, frame, poses)
        if self.watchers:
            self.wake()

    def figures(self) -> str:
        """The statistics as JSON: ours, and over them the pipeline's."""
        own = self._own()
        try:
            return compact_json({"schema": SCHEMA, "stats": own | dict(self._stats())})
        except Exception as error:  # whatever it is: the page and the pipeline go on without these figures
            if not self._complained:
                _log.warning("the live page shows no figures of the pipeline: %s: %s", type(error).__name__, error)
            self._complained = True
            return compact_json({"schema": SCHEMA, "stats": own})

    def count(self) -> None:
        """Measure the frame rate; called about once a second."""
        then_s, before, _ = self._counted
        now_s, frames = time.monotonic(), self.newest.number if self.newest else 0
        self._counted = (now_s, frames, (frames - before) / max(now_s - then_s, 1e-3))

    def silent_s(self) -> float:
        """Seconds since the last frame, or since the start."""
        return time.monotonic() - (self.newest.at_s if self.newest else self._started_s)

    def _own(self) -> dict[str, object]:
        return {
            "title": self._title,
            "fps": round(self._counted[2], 1),
            "frames": self.newest.number if self.newest else 0,
            "people": len(self.newest.poses) if self.newest else 0,
            "temperature_c": temperature_c(),
            "uptime_s": round(time.monotonic() - self._started_s),
            "silent_s": round(self.silent_s(), 1),
        }


def temperature_c(folder: Path = Path("/sys/class/thermal")) -> float | None:
    """The processor's temperature as Linux tells it, in degrees Celsius; None where it does not."""
    zones = {}
    for zone in sorted(folder.glob("thermal_zone*")):
        with suppress(OSError, ValueError):
            degrees = int((zone / "temp").read_text()) / 1000
            zones[f"{zone.name} {(zone / 'type').read_text().strip().lower()}"] = degrees
    # boards have zones of other chips, too, some with a number that never changes
    own = [degrees for name, degrees in zones.items() if any(part in name for part in ("cpu", "soc", "pkg"))]
    return max((degrees for degrees in own or zones.values() if 0 < degrees < 150), default=None)


def is_loopback(host: str) -> bool:
    """Whether a name or address can only mean this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(address: str, token: str | None) -> tuple[socket.socket, str]:
    """A bound socket, and the page's URL."""
    host, port = _host_and_port(address)
    if token and len(token) < _SHORTEST_TOKEN:
        raise SinkError(f"serve {address}: the token is too short: {_SHORTEST_TOKEN} characters or more")
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        if not token and not is_loopback(str(where[0])):
            advice = f"set a token (--serve-token or {TOKEN_VARIABLE}), or serve 127.0.0.1"
            raise SinkError(f"serve {address}: anybody on the network could watch: {advice}")
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            listening.bind(where)
            listening.listen()
        except OSError:
            listening.close()
            raise
    except OSError as error:
        in_use = error.errno == errno.EADDRINUSE
        reason = "the port is in use: choose another one" if in_use else f"cannot listen here ({error.strerror})"
        raise SinkError(f"serve {address}: {reason}") from None
    everywhere = ipaddress.ip_address(where[0]).is_unspecified
    shown = socket.gethostname() if everywhere else f"[{host}]" if ":" in host else host
    return listening, f"http://{shown}:{listening.getsockname()[1]}/"


def _host_and_port(address: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port is None or parts.netloc != address or "@" in address:
        raise SinkError(f"serve {address!r}: expected HOST:PORT, for instance 127.0.0.1:8080")
    return host, port
