"""Poses reach a real mosquitto: quality of service, rights, TLS, last will, and a broker that comes and goes."""

from __future__ import annotations

import json
import logging
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from edgepose import Poses, SinkError
from edgepose.mqtt import PASSWORD_VARIABLE, MqttSink, MqttTarget
from edgepose.sources import Frame

HERE = "127.0.0.1"
PLACES = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"


def frame(index=0):
    return Frame(np.zeros((8, 8, 3), np.uint8), index, "camera 0", index / 10)


def people(count=1):
    return Poses(np.full((count, 14, 2), 5.0), np.full((count, 14), 0.9), np.tile([1.0, 1, 7, 7], (count, 1)), "lsp14")


def free_port():
    with socket.socket() as probe:
        probe.bind((HERE, 0))
        return probe.getsockname()[1]


def wait_until(true, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


class Broker:
    """A mosquitto of our own."""

    def __init__(self, folder: Path, *lines: str) -> None:
        self.program = shutil.which("mosquitto", path=PLACES)
        if not self.program:
            pytest.skip("no mosquitto on PATH: apt-get install mosquitto")
        self.port = free_port()
        self.conf = folder / "mosquitto.conf"
        user = ["user root"] if os.geteuid() == 0 else []  # else it could not read its files in this folder
        self.conf.write_text("\n".join([f"listener {self.port} {HERE}", *user, *lines]) + "\n")
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with self.conf.with_suffix(".log").open("ab") as log:
            self.process = subprocess.Popen([self.program, "-c", self.conf], stdout=log, stderr=log)
        wait_until(self.answers)

    def answers(self) -> bool:
        assert self.process.poll() is None, self.conf.with_suffix(".log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex((HERE, self.port)) == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def brokers(tmp_path):
    """Makes brokers, and ends them after the test."""
    started = []

    def make(*lines: str) -> Broker:
        folder = tmp_path / f"broker{len(started)}"
        folder.mkdir()
        started.append(Broker(folder, *lines))
        return started[-1]

    yield make
    for broker in started:
        broker.kill()


@pytest.fixture
def broker(brokers):
    return brokers("allow_anonymous true")


@pytest.fixture
def listen():
    """Subscribes to a topic; the messages (topic, payload, qos, retained) come from a queue."""
    clients = []

    def start(port: int, topic: str = "#", user: str | None = None, password: str | None = None) -> queue.Queue:
        heard: queue.Queue = queue.Queue()
        ready = threading.Event()
        client = Client(CallbackAPIVersion.VERSION2)
        client.username_pw_set(user, password)
        client.on_message = lambda c, d, m: heard.put((m.topic, m.payload.decode(), m.qos, m.retain))
        client.on_connect = lambda c, *_: c.subscribe(topic, qos=2)
        client.on_subscribe = lambda *_: ready.set()
        client.connect(HERE, port)
        client.loop_start()
        clients.append(client)
        assert ready.wait(60)
        return heard

    yield start
    for client in clients:
        client.disconnect()
        client.loop_stop()


def next_of(heard: queue.Queue, topic: str):
    while True:
        message = heard.get(timeout=60)
        if message[0] == topic:
            return message


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_every_frame_is_one_message(broker, listen, qos):
    heard = listen(broker.port)
    sink = MqttSink(f"mqtt://{HERE}:{broker.port}/hall/camera?qos={qos}")
    assert next_of(heard, "hall/camera/status")[1] == "online"
    for i in range(5):
        sink.write(frame(i), people(i % 3))
    sink.close(complete=True)
    messages = [next_of(heard, "hall/camera") for _ in range(5)]
    rows = [json.loads(payload) for _, payload, _, _ in messages]
    assert [(row["schema"], row["frame"], len(row["people"])) for row in rows] == [(1, i, i % 3) for i in range(5)]
    assert rows[1]["people"][0]["keypoints"][0] == [5.0, 5.0, 0.9]
    assert {(q, retained) for _, _, q, retained in messages} == {(qos, False)}
    assert next_of(heard, "hall/camera/status")[1] == "offline"
    assert (sink.sent, sink.dropped) == (5, 0)
    late = listen(broker.port)
    assert late.get(timeout=60) == ("hall/camera/status", "offline", 1, True)


def test_only_people_and_a_rate(broker, listen, monkeypatch):
    heard = listen(broker.port, "edgepose")
    clock = [100.0]
    sink = MqttSink(f"mqtt://{HERE}:{broker.port}", only_people=True, max_rate_hz=10)
    monkeypatch.setattr("edgepose.mqtt.time.monotonic", lambda: clock[0])
    for i in range(90):  # three seconds at 30 frames per second, the last one without people
        sink.write(frame(i), people(1 if i < 60 else 0))
        clock[0] += 1 / 30
    monkeypatch.undo()
    sink.close(complete=True)
    frames = [json.loads(heard.get(timeout=60)[1])["frame"] for _ in range(sink.sent)]
    assert 20 <= len(frames) <= 21
    assert max(frames) < 60
    assert (np.diff(frames)[1:] == 3).all()
    assert sink.dropped == 0  # what was not asked for is not lost


def test_user_and_password(brokers, listen, tmp_path, monkeypatch, caplog):
    maker = shutil.which("mosquitto_passwd", path=PLACES)
    if not maker:
        pytest.skip("no mosquitto_passwd on PATH")
    subprocess.run([maker, "-b", "-c", tmp_path / "users", "ann", "s3cret/@#"], check=True)
    broker = brokers("allow_anonymous false", f"password_file {tmp_path / 'users'}")
    address = f"{HERE}:{broker.port}/t"
    heard = listen(broker.port, user="ann", password="s3cret/@#")
    caplog.set_level(logging.DEBUG)

    sink = MqttSink(f"mqtt://ann:s3cret%2F%40%23@{address}", qos=1)
    assert sink.name == f"mqtt://{address}"
    sink.write(frame(1), people())
    sink.close(complete=True)
    assert json.loads(next_of(heard, "t")[1])["frame"] == 1

    monkeypatch.setenv(PASSWORD_VARIABLE, "s3cret/@#")
    sink = MqttSink(f"mqtt://ann@{address}", qos=1)
    sink.write(frame(2), people())
    sink.close(complete=True)
    assert json.loads(next_of(heard, "t")[1])["frame"] == 2

    refusal = rf"^mqtt://{address}: the broker refuses \(Not authorized\): check user, password and rights$"
    with pytest.raises(SinkError, match=refusal):
        MqttSink(f"mqtt://ann:wrong@{address}")
    assert "s3cret" not in caplog.text + repr(vars(sink)) + repr(MqttTarget.from_url(f"mqtt://ann:s3cret@{address}"))


def openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A CA, and what it signed for the broker and for a client."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl on PATH")
    folder = tmp_path_factory.mktemp("certificates")
    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-batch")
    ca = ("-CA", folder / "ca.pem", "-CAkey", folder / "ca.key", "-CAcreateserial", "-days", 2)
    openssl(*new, "-x509", "-days", 2, "-subj", "/CN=our CA", "-keyout", folder / "ca.key", "-out", folder / "ca.pem",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign")  # fmt: skip
    for name, extension in (("broker", "subjectAltName=IP:127.0.0.1"), ("client", "subjectAltName=DNS:board")):
        key, request = folder / f"{name}.key", folder / f"{name}.csr"
        (folder / f"{name}.ext").write_text(f"{extension}\n")
        openssl(*new, "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        openssl("x509", "-req", "-in", request, *ca, "-extfile", folder / f"{name}.ext", "-out", folder / f"{name}.pem")
    return folder


# paho-mqtt leaves the socket of a failed handshake to the garbage collector
@pytest.mark.filterwarnings("ignore:.*ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning")
def test_tls_is_verified_by_default(brokers, certificates, caplog):
    own = [f"cafile {certificates}/ca.pem", f"certfile {certificates}/broker.pem", f"keyfile {certificates}/broker.key"]
    broker = brokers("allow_anonymous true", *own, "require_certificate true")
    url = f"mqtts://{HERE}:{broker.port}/t"
    client = {"cert": certificates / "client.pem", "key": certificates / "client.key"}

    sink = MqttSink(f"{url}?qos=1&ca={certificates}/ca.pem", **client)
    sink.write(frame(), people())
    sink.close(complete=True)
    assert (sink.sent, sink.dropped) == (1, 0)

    not_trusted = r"^mqtts://\S+/t: the broker's certificate is not trusted \(.+\): give its CA \(ca\)$"
    with pytest.raises(SinkError, match=not_trusted):
        MqttSink(url, **client)
    with pytest.raises(SinkError, match=r"certificate is not trusted \(Hostname mismatch, .*'localhost'"):
        MqttSink(url.replace(HERE, "localhost"), ca=certificates / "ca.pem", **client)
    with pytest.raises(SinkError, match=r"the broker hangs up|no broker answers"):
        MqttSink(url, ca=certificates / "ca.pem")  # without the certificate that it requires
    with pytest.raises(SinkError, match=r"the broker hangs up: does it want TLS \(mqtts://\)"):
        MqttSink(url.replace("mqtts", "mqtt"))
    MqttSink(url, verify=False, **client).close(complete=True)  # only where it is asked for


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"ca": "absent.pem"}, r"cannot use absent.pem \(No such file or directory\): PEM files are needed"),
        ({"ca": "ca.pem", "cert": "ca.pem", "key": "client.key"}, r"cannot use .* \(key values mismatch\)"),
        ({"ca": "client.key"}, r"cannot use .*client.key \(no certificate or crl found\)"),
    ],
)
def test_unusable_certificates_are_named(certificates, files, message):
    paths = {name: Path(file) if file == "absent.pem" else certificates / file for name, file in files.items()}
    with pytest.raises(SinkError, match=message):
        MqttSink(f"mqtts://{HERE}:{free_port()}/t", **paths)


CHILD = """
import sys, time
from edgepose.mqtt import MqttSink
sink = MqttSink(sys.argv[1])
print("connected", flush=True)
time.sleep(60)
"""


def test_a_board_that_dies_is_offline(broker, listen):
    heard = listen(broker.port, "t/status")
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, f"mqtt://{HERE}:{broker.port}/t"], stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout.readline() == "connected\n"
        assert heard.get(timeout=60)[1] == "online"
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert heard.get(timeout=60)[1] == "offline"


def test_the_pipeline_goes_on_without_its_broker(broker, listen, caplog):
    sink = MqttSink(f"mqtt://{HERE}:{broker.port}/t")
    broker.kill()
    wait_until(lambda: "connection lost" in caplog.text)
    before = time.perf_counter()
    for i in range(300):
        sink.write(frame(i), people())
    assert time.perf_counter() - before < 1
    assert (sink.sent, sink.dropped) == (0, 300)
    time.sleep(1.2)  # an attempt that fails is not logged again
    broker.start()
    heard = listen(broker.port)
    wait_until(lambda: "connected again" in caplog.text)
    assert next_of(heard, "t/status")[1] == "online"
    sink.write(frame(300), people())
    assert json.loads(next_of(heard, "t")[1])["frame"] == 300
    sink.close(complete=True)
    own = [record.getMessage() for record in caplog.records if record.name == "edgepose.mqtt"]
    assert len(own) == 2
    assert own[0].startswith(f"mqtt://{HERE}:{broker.port}/t: connection lost (")
    assert own[0].endswith("; messages are dropped until it is back")
    assert own[1].endswith("s, 300 messages dropped")


def test_a_broker_that_stays_away_does_not_keep_the_end_waiting(broker, caplog):
    threads = set(threading.enumerate())
    sink = MqttSink(f"mqtt://{HERE}:{broker.port}/t", qos=1)
    broker.kill()
    wait_until(lambda: "connection lost" in caplog.text)
    sink.write(frame(), people())
    before = time.perf_counter()
    sink.close(complete=True)
    assert time.perf_counter() - before < 10
    assert set(threading.enumerate()) == threads


@pytest.fixture
def deaf():
    """The port of a broker that says hello and then never reads again."""
    over = threading.Event()
    with socket.create_server((HERE, 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

        def talk():
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"\x20\x02\x00\x00")  # CONNACK
                over.wait()

        thread = threading.Thread(target=talk)
        thread.start()
        yield server.getsockname()[1]
        over.set()
        thread.join()


@pytest.mark.parametrize("qos", [0, 1])
def test_a_broker_that_never_reads_costs_neither_time_nor_memory(deaf, qos):
    threads = set(threading.enumerate())
    sink = MqttSink(f"mqtt://{HERE}:{deaf}/t", qos=qos, queue=20)
    crowd, times = people(40), []
    while sink.dropped < 50:  # the network's buffers take some hundred first
        before = time.perf_counter()
        sink.write(frame(len(times)), crowd)
        times.append(time.perf_counter() - before)
        assert len(times) < 5000
    assert np.median(times) < 0.02  # the most of it is making the JSON
    assert sink.sent + sink.dropped == len(times)
    assert sink._count_the_delivered() <= 20
    before = time.perf_counter()
    sink.close(complete=True)
    assert time.perf_counter() - before < 10
    assert set(threading.enumerate()) == threads


@pytest.mark.parametrize(
    "url",
    [
        "http://ann:pass%40word@host/t",
        "mqtt://",
        "mqtt://ann:pass@word/x@host/t",  # a second @ that is not written %40: the host would be wrong
        "mqtt://ann:pass/word@host/t",
        "mqtt://ann:12/word@host/t",  # 12 would be the port, and the rest of the password a topic
        "mqtt://ann:pass?word=1@host/t",
        "mqtt://ann:pass#word@host/t",
        "mqtt://host:99999/t",
        "mqtt://host:0/t",
        "mqtt://[::1/t",
        "mqtt://host/t?qos",
        "mqtt://host/t\n",
    ],
)
def test_a_wrong_address_is_never_quoted(url):
    with pytest.raises(SinkError) as caught:
        MqttTarget.from_url(url)
    assert str(caught.value).startswith(
        "MQTT address: expected mqtt://HOST:PORT/TOPIC or mqtts://USER@HOST/TOPIC?qos=1"
    )
    assert "word" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("mqtt://h/a/%23", {}, r"the topic cannot be empty or hold \+ or #"),
        ("mqtt://h/t", {"topic": ""}, "the topic cannot be empty"),
        ("mqtt://h/t?qos=3", {}, "qos is 0, 1 or 2, not 3"),
        ("mqtt://h/t?qos=x", {}, "qos='x' is not understood"),
        ("mqtt://h/t?only_people=maybe", {}, "only_people='maybe' is not understood"),
        (
            "mqtt://h/t?speed=3",
            {},
            "unknown option 'speed'; known: qos, max_rate_hz, only_people, ca, cert, key, verify",
        ),
        ("mqtt://h/t", {"max_rate_hz": -1.0}, "max_rate_hz is 0"),
        ("mqtt://h/t?ca=x.pem", {}, "ca, cert, key and verify are for mqtts://"),
        ("mqtts://h/t?key=x.pem", {}, "key without cert"),
    ],
)
def test_options_that_make_no_sense_are_named(url, options, message):
    with pytest.raises(SinkError, match=f"^MQTT address: {message}"):
        MqttTarget.from_url(url, **options)


def test_an_address_says_everything(monkeypatch):
    monkeypatch.setenv(PASSWORD_VARIABLE, "from the environment")
    target = MqttTarget.from_url("mqtts://ann:a%40b@[::1]/hall%20a/cam?qos=2&max_rate_hz=2.5&only_people=yes&ca=ca.pem")
    assert (target.host, target.port, target.tls, target.topic) == ("::1", 8883, True, "hall a/cam")
    assert (target.user, target.password) == ("ann", "a@b")
    assert (target.qos, target.max_rate_hz, target.only_people, target.ca) == (2, 2.5, True, Path("ca.pem"))
    assert target.verify
    assert target.name == "mqtts://[::1]:8883/hall a/cam"
    assert MqttTarget.from_url("mqtt://ann@h", topic="x").password == "from the environment"


def test_no_broker_and_no_package_are_one_line(monkeypatch):
    port = free_port()
    with pytest.raises(SinkError, match=rf"^mqtt://{HERE}:{port}/t: no broker answers \(Connection refused\): is it"):
        MqttSink(f"mqtt://ann:secret@{HERE}:{port}/t")
    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    with pytest.raises(SinkError, match=r"^MQTT needs paho-mqtt 2: pip install 'edgepose\[mqtt\]'$"):
        MqttSink(f"mqtt://{HERE}:{port}/t")
