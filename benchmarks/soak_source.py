"""Weeks of a camera in minutes: `soak_source.py [--bundle BUNDLE [--outputs FOLDER]] [--minutes 30] [--kill-every 60]`.

A local server sends the sample clip round and round as MJPEG at a steady pace, and is killed every so many seconds;
with --stalls it stands still every other time instead. Frames are read through `open_source` by a reader that works on
each, longer than a frame lasts unless told otherwise; with --bundle the poses of each frame are found, and with
--outputs they go to an annotated video, JSON lines, the live page, which somebody watches, and to a broker, --mqtt.
Prints every minute memory, threads, frames, drops and reconnects; at the end how fast memory grows (least squares over
samples of every 5 s, without the first minute, in which caches fill) and how old frames were when they were taken.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import resource
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np

from edgepose.assets import SAMPLE_CLIP
from edgepose.machine import machine
from edgepose.mqtt import MqttSink
from edgepose.pipeline import Pipeline
from edgepose.runtimes.load import load
from edgepose.serve import ServeSink
from edgepose.sinks import JsonLinesSink, VideoSink
from edgepose.sources import Frame, Source, SourceOptions, open_source
from edgepose.streaming import Sink


class MjpegServer:
    """Sends JPEG pictures to whoever asks, at a steady pace.

    Attributes:
        picture: Gives the bytes of the n-th picture of a connection; None sends nothing and keeps the connection, an
            empty one ends it.
        port: Where it listens, the same after a restart.
        boundary: Between two pictures.
        with_length: Whether each picture says how long it is.
    """

    def __init__(self, picture: Callable[[int], bytes | None], fps: float = 30, port: int = 0) -> None:
        self.picture, self.fps, self.port = picture, fps, port
        self.boundary, self.with_length = "frame", True
        self.start()

    def start(self) -> None:
        """Listen."""
        self._stop = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler())
        self._server.daemon_threads = False  # closing the server waits for them
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def kill(self) -> None:
        """Stop listening, and cut all connections."""
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Send the stream until it is over."""
        request.send_response(200)
        request.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={self.boundary}")
        request.end_headers()
        stop, due = self._stop, time.monotonic()
        for number in itertools.count():
            picture = self.picture(number)
            if picture == b"" or stop.wait(max(0.0, due - time.monotonic())):
                return
            if picture is not None:
                request.wfile.write(self._part(picture))
            due = max(due + 1 / self.fps, time.monotonic() - 1)

    def _part(self, picture: bytes) -> bytes:
        length = f"Content-Length: {len(picture)}\r\n" if self.with_length else ""
        return f"--{self.boundary}\r\nContent-Type: image/jpeg\r\n{length}\r\n".encode() + picture + b"\r\n"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        answer = self.answer

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                try:
                    answer(self)
                except OSError:  # the reader went away
                    self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        return Handler


def rss_kib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1024


def serve(port: int, fps: float) -> None:
    """Be the server, until standard input ends; a line on it stops and starts the pictures."""
    pictures = [cv2.imencode(".jpg", frame.image_bgr)[1].tobytes() for frame in open_source(str(SAMPLE_CLIP))]
    flowing = threading.Event()
    flowing.set()
    server = MjpegServer(lambda n: pictures[n % len(pictures)] if flowing.is_set() else None, fps, port)
    print(server.port, flush=True)
    for _ in sys.stdin:
        (flowing.clear if flowing.is_set() else flowing.set)()
    server.kill()


class Vandal:
    """Runs the server in a process of its own, and kills it, or makes it stand still, every so many seconds."""

    def __init__(self, fps: float, every_s: float, down_s: float, stalls: bool) -> None:
        self._fps, self._every_s, self._down_s, self._stalls = fps, every_s, down_s, stalls
        self.port = 0
        self.kills = 0
        self._done = threading.Event()
        self._start()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _start(self) -> None:
        command = [sys.executable, __file__, "--serve", str(self.port), "--fps", str(self._fps)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def _work(self) -> None:
        while not self._done.wait(self._every_s):
            self.kills += 1
            if self._stalls and self.kills % 2 == 0:
                self._toggle()
                self._done.wait(self._down_s)
                self._toggle()
            else:
                self._end()
                self._done.wait(self._down_s)
                self._start()

    def _toggle(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()

    def close(self) -> None:
        """Stop, and end the server."""
        self._done.set()
        self._thread.join()
        self._end()


class Outputs:
    """Poses of each frame into every sink; somebody watches the live page."""

    def __init__(self, bundle: Path, folder: Path, mqtt: str | None) -> None:
        self._pipeline = Pipeline(load(bundle))
        self._page = ServeSink("127.0.0.1:0")
        self._sinks: list[Sink] = [
            VideoSink(folder / "soak.mp4", 15, "soak", 0.15),
            JsonLinesSink(folder / "soak.jsonl"),
            self._page,
            *([MqttSink(mqtt)] if mqtt else []),
        ]
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        with (
            suppress(OSError, HTTPException),
            urllib.request.urlopen(f"{self._page.url.rstrip('/')}/stream.mjpg") as stream,
        ):
            while stream.read(4096):
                pass

    def __call__(self, frame: Frame) -> None:
        """Work on a frame."""
        poses = self._pipeline(frame)
        for sink in self._sinks:
            sink.write(frame, poses)

    def close(self) -> None:
        """Finish the files, and see that somebody watched to the end."""
        print(f"the page is still watched: {self._watcher.is_alive()}")
        for sink in self._sinks:
            sink.close(complete=True)
        self._watcher.join(5)


class Figures:
    """What is measured while it runs, in arrays that are there from the beginning: it must not grow by itself."""

    def __init__(self, minutes: float) -> None:
        self._started = time.monotonic()
        self._every_s = min(5.0, 60 * minutes / 20)
        self._rss = np.zeros((int(60 * minutes / self._every_s) + 2, 2))
        self._samples = 0
        self._ages_ms = np.zeros(20_000)
        self.frames = 0

    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._started

    def take(self, frame: Frame) -> None:
        """Count a frame; now and then, see how much memory there is."""
        self._ages_ms[self.frames % len(self._ages_ms)] = 1e3 * (time.monotonic() - frame.captured_s)
        self.frames += 1
        if self.seconds() >= self._every_s * (self._samples + 1) and self._samples < len(self._rss):
            self._rss[self._samples] = self.seconds(), rss_kib()
            self._samples += 1

    def summary(self) -> str:
        """Two lines."""
        rss = self._rss[: self._samples]
        warm = rss[rss[:, 0] > min(60, self.seconds() / 2)]
        growth = 3600 * np.polyfit(warm[:, 0], warm[:, 1], 1)[0]
        p50, p95, p99 = np.percentile(self._ages_ms[: self.frames], [50, 95, 99])
        return (
            f"RSS grows by {growth:.0f} KiB per hour ({len(warm)} samples)\n"
            f"age of a frame when taken: p50 {p50:.1f} ms, p95 {p95:.1f} ms, p99 {p99:.1f} ms"
        )


def soak(source: Source, minutes: float, work: Callable[[Frame], object], kills: Callable[[], int]) -> Iterator[str]:
    """Read for so long; a line each minute, and the sums at the end."""
    figures = Figures(minutes)

    def line() -> str:
        counts = f"{figures.frames:7} {source.dropped:7} {source.reconnects:10} {kills():5}"
        threads = sum(thread is not end for thread in threading.enumerate())
        return f"{figures.seconds() / 60:6.1f} {rss_kib():9.0f} {threads:7} {counts}"

    end = threading.Timer(60 * minutes, source.close)  # it may be away when its time is over
    end.start()
    yield f"{'minute':>6} {'RSS KiB':>9} {'threads':>7} {'frames':>7} {'dropped':>7} {'reconnects':>10} {'kills':>5}"
    next_line = 1
    for frame in source:
        figures.take(frame)
        if figures.seconds() >= 60 * next_line:
            yield line()
            next_line += 1
        work(frame)
    end.join()
    yield line()
    yield figures.summary()


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--kill-every", type=float, default=60, metavar="SECONDS")
    parser.add_argument("--down", type=float, default=5, metavar="SECONDS", help="how long it is away each time")
    parser.add_argument("--fps", type=float, default=30)
    parser.add_argument("--work-ms", type=float, default=50, help="how long the reader works on a frame")
    parser.add_argument("--stalls", action="store_true")
    parser.add_argument("--bundle", type=Path, help="find poses with it, instead of waiting")
    parser.add_argument("--outputs", type=Path, metavar="FOLDER", help="into every sink; files go there")
    parser.add_argument("--mqtt", help="address of a broker, for --outputs")
    parser.add_argument("--serve", type=int, metavar="PORT", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        serve(arguments.serve, arguments.fps)
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    print(machine())
    work: Callable[[Frame], object] = lambda frame: time.sleep(arguments.work_ms / 1e3)  # noqa: E731
    outputs = None
    if arguments.outputs:
        arguments.outputs.mkdir(parents=True, exist_ok=True)
        work = outputs = Outputs(arguments.bundle, arguments.outputs, arguments.mqtt)
    elif arguments.bundle:
        work = Pipeline(load(arguments.bundle))
    vandal = Vandal(arguments.fps, arguments.kill_every, arguments.down, arguments.stalls)
    try:
        with open_source(f"http://127.0.0.1:{vandal.port}/live", SourceOptions(stall_s=2)) as source:
            for line in soak(source, arguments.minutes, work, lambda: vandal.kills):
                print(line, flush=True)
    finally:
        vandal.close()
        if outputs:
            outputs.close()
    print(f"threads after closing: {threading.active_count()}")


if __name__ == "__main__":
    main()
