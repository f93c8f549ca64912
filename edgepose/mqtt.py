"""Poses to an MQTT broker: one JSON message per frame, and whether the board is there.

``mqtt://user@host:1883/topic?qos=1``, and ``mqtts://`` for TLS. The poses are live: what a broker that is away or too
slow does not take is dropped and counted, and the pipeline never waits.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from edgepose.errors import SinkError
from edgepose.messages import frame_message
from edgepose.sources import Frame
from edgepose.types import Poses

if TYPE_CHECKING:
    from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessageInfo
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

__all__ = ["PASSWORD_VARIABLE", "MqttSink", "MqttTarget"]

PASSWORD_VARIABLE = "EDGEPOSE_MQTT_PASSWORD"
_PORTS = {"mqtt": 1883, "mqtts": 8883}
_KEEPALIVE_S = 20  # a board that loses its power is `offline` after one and a half of these
_LONGEST_WAIT_S = 30  # between two attempts to reconnect; the first waits one second, each next one twice as long
_CONNECT_S = 10.0
_FAREWELL_S = 2.0  # for what is still under way at the end

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MqttTarget:
    """Where messages go and how.

    Attributes:
        host, port, tls: The broker.
        topic: Of the poses; ``<topic>/status`` says ``online`` or ``offline``.
        user, password: None where the broker asks for none.
        qos: 0 at most once, 1 at least once, 2 exactly once, as long as the broker is there.
        max_rate_hz: Messages per second at most, 0 for every frame.
        only_people: Leave out frames without people.
        ca: Certificates (PEM) to trust instead of the system's.
        cert, key: This client's own certificate and key (PEM), for brokers that ask for one.
        verify: Check the broker's certificate and name.

    Raises:
        SinkError: The values do not fit each other.
    """

    host: str
    port: int = 1883
    tls: bool = False
    topic: str = "edgepose"
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    qos: int = 0
    max_rate_hz: float = 0.0
    only_people: bool = False
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    verify: bool = True

    def __post_init__(self) -> None:
        reason = self._objection()
        if reason:
            raise SinkError(f"MQTT address: {reason}")

    @property
    def name(self) -> str:
        """For people and logs: without user and password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"mqtt{'s' * self.tls}://{host}:{self.port}/{self.topic}"

    def _objection(self) -> str:
        if not self.topic.isprintable() or set("+#") & set(self.topic) or not 0 < len(self.topic.encode()) < 60_000:
            return "the topic cannot be empty or hold + or #: mqtt://HOST/TOPIC"
        if self.qos not in (0, 1, 2):
            return f"qos is 0, 1 or 2, not {self.qos}"
        if not 0 <= self.max_rate_hz < float("inf"):
            return f"max_rate_hz is 0 (every frame) or more, not {self.max_rate_hz}"
        if self.key and not self.cert:
            return "key without cert: give the client's certificate, too"
        if not self.tls and (self.ca or self.cert or not self.verify):
            return "ca, cert, key and verify are for mqtts://"
        return ""

    @classmethod
    def from_url(cls, url: str, **options: Any) -> MqttTarget:
        """Read ``mqtt[s]://[user[:password]@]host[:port][/topic][?option=value&...]``.

        A password that the URL lacks is taken from ``EDGEPOSE_MQTT_PASSWORD``, where process lists do not show it.

        Args:
            url: Its options are the fields from ``qos`` on. ``@ # / ?`` in a part are written ``%40 %23 %2F %3F``.
            options: Any field; they win over the URL, and None stands for its default.

        Raises:
            SinkError: It is no such URL. Since it may hold a password, the message never quotes it.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
            query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        except ValueError:
            raise SinkError(_NO_URL) from None
        # a second @ means that a password was cut in two: its end must not pass for a topic or an option
        astray = "@" in parts.path + parts.query or parts.fragment or not url.isprintable()
        if parts.scheme not in _PORTS or not parts.hostname or port == 0 or astray:
            raise SinkError(_NO_URL)
        user, password = (None if text is None else unquote(text) for text in (parts.username, parts.password))
        found: dict[str, Any] = {
            "host": parts.hostname,
            "port": port or _PORTS[parts.scheme],
            "tls": parts.scheme == "mqtts",
            "user": user,
            "password": password or os.environ.get(PASSWORD_VARIABLE),
        }
        if parts.path.strip("/"):
            found["topic"] = unquote(parts.path.strip("/"))
        given = {name: value for name, value in options.items() if value is not None}
        return cls(**(found | _options(query) | given))


_NO_URL = (
    "MQTT address: expected mqtt://HOST:PORT/TOPIC or mqtts://USER@HOST/TOPIC?qos=1 (@ # / ? in it: %40 %23 %2F %3F)"
)
_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_READERS: dict[str, Any] = {
    "qos": int,
    "max_rate_hz": float,
    "only_people": _FLAGS.__getitem__,
    "ca": Path,
    "cert": Path,
    "key": Path,
    "verify": _FLAGS.__getitem__,
}


def _options(query: dict[str, str]) -> dict[str, Any]:
    """What a URL says after its question mark."""
    found = {}
    for name, text in query.items():
        if name not in _READERS:
            raise SinkError(f"MQTT address: unknown option {name!r}; known: {', '.join(_READERS)}")
        try:
            found[name] = _READERS[name](text)
        except (KeyError, ValueError):
            raise SinkError(f"MQTT address: {name}={text!r} is not understood") from None
    return found


class MqttSink:
    """Publishes each frame's poses (docs/json-lines.md), and ``online`` or ``offline`` on ``<topic>/status``, retained.

    The broker says ``offline`` for a board that vanishes (last will). While the broker itself is away frames are
    dropped; attempts to reconnect come ever more slowly, every 30 s at last.

    Args:
        url: See :meth:`MqttTarget.from_url`.
        queue: Messages under way at most; beyond, frames are dropped.
        options: Fields of :class:`MqttTarget`, for instance ``topic``; they win over the URL.

    Attributes:
        name: The address without user and password.
        sent: Messages given to the network so far.
        dropped: Messages that did not reach the broker for all we know, because it was away or too slow.

    Raises:
        SinkError: paho-mqtt is missing, a certificate cannot be read, or the broker cannot be reached or refuses.
    """

    def __init__(self, url: str, *, queue: int = 100, **options: Any) -> None:
        self._target = MqttTarget.from_url(url, **options)
        self.name = self._target.name
        self.sent = 0
        self.dropped = 0
        self._queue = queue
        self._under_way: deque[MQTTMessageInfo] = deque()
        self._next_s = 0.0
        self._answered, self._parted = threading.Event(), threading.Event()
        self._refusal = ""
        self._lost: tuple[float, int] | None = None  # when, and what had been dropped by then
        self._client = self._made()
        self._connect()

    def write(self, frame: Frame, poses: Poses) -> None:
        """Publish one frame, unless the rate, ``only_people`` or the broker forbids it. Never waits for the network."""
        if (self._target.only_people and not len(poses)) or not self._due(time.monotonic()):
            return
        self._count_the_delivered()
        if not self._client.is_connected() or len(self._under_way) >= self._queue:
            self.dropped += 1
            return
        message = frame_message(frame, poses)
        self._under_way.append(self._client.publish(self._target.topic, message, self._target.qos))
        self.sent += 1

    def close(self, complete: bool) -> None:
        """Say ``offline`` and part; see :class:`edgepose.streaming.Sink`."""
        deadline_s = time.monotonic() + _FAREWELL_S
        self._deliver(deadline_s)
        self.dropped += self._count_the_delivered()
        if self._client.is_connected():
            self._under_way = deque([self._say("offline")])
            self._deliver(deadline_s)
        self._part()

    def _due(self, now_s: float) -> bool:
        """Whether the rate allows a message now. Half a period of slack keeps the rate where frames come unevenly."""
        if not self._target.max_rate_hz:
            return True
        due, period = now_s >= self._next_s, 1 / self._target.max_rate_hz
        if due:
            self._next_s = max(self._next_s + period, now_s + period / 2)
        return due

    def _count_the_delivered(self) -> int:
        """Forget what has arrived or was lost with its connection; the number still under way."""
        while self._under_way:
            try:
                if not self._under_way[0].is_published():
                    break
            except (RuntimeError, ValueError):
                self.dropped += 1
            self._under_way.popleft()
        return len(self._under_way)

    def _deliver(self, deadline_s: float) -> None:
        while self._client.is_connected() and self._count_the_delivered() and time.monotonic() < deadline_s:
            time.sleep(0.005)

    def _say(self, status: str) -> MQTTMessageInfo:
        return self._client.publish(f"{self._target.topic}/status", status, qos=1, retain=True)

    def _made(self) -> Client:
        """A client that knows everything but has not connected yet."""
        try:
            from paho.mqtt.client import Client
            from paho.mqtt.enums import CallbackAPIVersion
        except ImportError:
            raise SinkError("MQTT needs paho-mqtt 2: pip install 'edgepose[mqtt]'") from None
        target = self._target
        client = Client(CallbackAPIVersion.VERSION2)
        if target.user is not None:
            client.username_pw_set(target.user, target.password)
        if target.tls:
            client.tls_set_context(_tls(target))
        client.will_set(f"{target.topic}/status", "offline", qos=1, retain=True)
        client.max_queued_messages_set(self._queue)
        client.reconnect_delay_set(1, _LONGEST_WAIT_S)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        return client

    def _connect(self) -> None:
        try:
            self._client.connect(self._target.host, self._target.port, _KEEPALIVE_S)
        except ssl.SSLCertVerificationError as error:
            reason = error.verify_message
            raise SinkError(
                f"{self.name}: the broker's certificate is not trusted ({reason}): give its CA (ca)"
            ) from None
        except (OSError, ValueError) as error:  # ValueError: a host name that cannot be one
            raise SinkError(
                f"{self.name}: no broker answers ({_why(error)}): is it running, is this its port?"
            ) from None
        self._client.loop_start()
        if not self._answered.wait(_CONNECT_S):
            self._refusal = f"no answer within {_CONNECT_S:.0f} s: is this an MQTT broker?"
        if self._refusal:
            self._part()
            raise SinkError(f"{self.name}: {self._refusal}")

    def _part(self) -> None:
        """Disconnect and end paho's thread, also where the broker does not read any more."""
        connection = self._client.socket()
        waiting = self._client.disconnect() == 0
        if waiting and not self._parted.wait(1.0) and isinstance(connection, socket.socket):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._client.loop_stop()

    def _on_connect(
        self, client: Client, data: Any, flags: ConnectFlags, code: ReasonCode, properties: Properties | None
    ) -> None:
        if code.is_failure:
            self._refusal = self._refusal or f"the broker refuses ({code}): check user, password and rights"
        else:
            self._refusal = ""
            self._parted.clear()
            self._say("online")
            if self._lost:
                (when, dropped), self._lost = self._lost, None
                away_s, missed = time.monotonic() - when, self.dropped - dropped
                _log.warning("%s: connected again after %.0f s, %d messages dropped", self.name, away_s, missed)
        self._answered.set()

    def _on_disconnect(
        self, client: Client, data: Any, flags: DisconnectFlags, code: ReasonCode, properties: Properties | None
    ) -> None:
        self._parted.set()
        if not self._answered.is_set():
            self._refusal = "the broker hangs up: does it want TLS (mqtts://), or is this no MQTT?"
            self._answered.set()
        elif code.is_failure and not self._refusal and self._lost is None:
            self._lost = (time.monotonic(), self.dropped)
            _log.warning("%s: connection lost (%s); messages are dropped until it is back", self.name, code)


def _tls(target: MqttTarget) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=target.ca)
        if target.cert:
            context.load_cert_chain(target.cert, target.key, password=lambda: "")  # never ask on the terminal
    except (OSError, ValueError) as error:
        files = ", ".join(str(file) for file in (target.ca, target.cert, target.key) if file)
        raise SinkError(f"{target.name}: cannot use {files} ({_why(error)}): PEM files are needed") from None
    if not target.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _why(error: Exception) -> str:
    """The reason in a few words, without numbers and file names."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
