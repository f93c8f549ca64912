"""Where frames come from: one grammar names every source.

    ============================  =======================================================  ======================
    URI                           what                                                     options
    ============================  =======================================================  ======================
    ``clip.mp4``                  a video, every frame in order                            fps, loop, pace
    ``photo.jpg``, ``folder``     an image; the images of a folder and below, by path      fps, loop, pace
    ``0``, ``v4l2://0``           a camera by number                                       size_wh, fps, fourcc
    ``/dev/video0``,              a camera by its device; ``/dev/v4l/by-id/...`` stays     size_wh, fps, fourcc
    ``v4l2:///dev/video0``        the same when cameras are plugged elsewhere
    ``rtsp://...``, ``rtsps://``  a network camera                                         (the server decides)
    ``http://...``, ``https://``  MJPEG, or any stream that FFmpeg opens; a video of       (the server decides)
                                  known length counts as a file
    ``csi://0``                   a Jetson's camera, through Argus and GStreamer           size_wh, fps
    ``picamera2://0``             a Raspberry Pi's camera                                  size_wh, fps
    ``gst:PIPELINE``              a GStreamer pipeline                                     (the pipeline decides)
    ``-``                         raw BGR24 frames on standard input, every frame          size_wh, fps, pace
    ============================  =======================================================  ======================

Files, folders and standard input give every frame in order. All others are live: they are read all the time, the newest
frame is handed over, and those that nobody took are counted. A live source that is lost is opened again. User names,
passwords and queries in a URI appear in no name, log or error.
"""

from __future__ import annotations

import itertools
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edgepose.errors import SourceError

if TYPE_CHECKING:
    from edgepose.live import LiveKind

# Read when OpenCV first opens a video: FFmpeg's complaints stay off the terminal unless they are asked for.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

__all__ = [
    "IMAGE_SUFFIXES",
    "Counters",
    "Frame",
    "Source",
    "SourceOptions",
    "image_files",
    "open_source",
    "quiet_opencv",
    "read_image",
]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})

_STREAMS = ("rtsp", "rtsps", "http", "https")
_BAD_READS = 8  # so many frames of a video file in a row may be damaged before it counts as over


@dataclass(frozen=True)
class Frame:
    """One picture and when it was taken.

    Attributes:
        image_bgr: (h, w, 3) uint8.
        index: Position in the source from 0; of a live source, gaps are frames that nobody took.
        name: The file's name, or the source's.
        time_s: Seconds since the first frame: by the frame rate in files, by the clock when live.
        captured_s: ``time.monotonic()`` when it arrived, or was decoded: how old it is can be told from this.
    """

    image_bgr: NDArray[np.uint8] = field(repr=False)
    index: int
    name: str
    time_s: float
    captured_s: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class SourceOptions:
    """How a source is opened. What does not apply to a source is refused.

    Attributes:
        size_wh: Width and height that a camera is asked for; of raw frames, what they have.
        fps: Frame rate that a camera is asked for; of a video, instead of its own; of a folder, that of its pictures,
            which makes them a film.
        fourcc: Pixel format that a camera is asked for, for instance ``MJPG``.
        loop: Start files again at their end; index and time go on.
        pace: Deliver files at their frame rate as if they were live: the newest frame only.
        reconnect: Open a live source again when it is lost, instead of raising.
        stall_s: A live source that gives no frame for so many seconds is lost.

    Raises:
        SourceError: A value is out of range.
    """

    size_wh: tuple[int, int] | None = None
    fps: float | None = None
    fourcc: str | None = None
    loop: bool = False
    pace: bool = False
    reconnect: bool = True
    stall_s: float = 5.0

    def __post_init__(self) -> None:
        if self.size_wh is not None and not all(1 <= side <= 16384 for side in self.size_wh):
            raise SourceError(f"size {self.size_wh[0]}x{self.size_wh[1]}: width and height of 1 to 16384 are possible")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise SourceError(f"{self.fps:g} frames per second: more than 0 and up to 1000 are possible")
        if self.fourcc is not None and not re.fullmatch(r"[\x20-\x7e]{4}", self.fourcc):
            raise SourceError(f"fourcc {self.fourcc!r}: four letters are needed, for instance MJPG or YUYV")
        if not 0 < self.stall_s < float("inf"):
            raise SourceError(f"stall time of {self.stall_s:g} s: a positive number is needed")


@dataclass
class Counters:
    """What happened to a source so far.

    Attributes:
        dropped: Frames of a live source that nobody took.
        reconnects: How often it was lost and came back.
        corrupt: Frames that could not be used.
    """

    dropped: int = 0
    reconnects: int = 0
    corrupt: int = 0


@dataclass
class Source:
    """An opened source: iterate over it once, and close it; ``with`` does. Any thread may close it.

    Attributes:
        name: What was opened, for people.
        fps: Frames per second, 0 where the source has none (images) or does not say.
        count: Number of frames, 0 where unknown (camera) or without end.
        moving: Whether one frame follows from the last, as in a video; pictures in a folder do not.
        frames: Its frames.
        skipped: Names of files that could not be read so far.
        live: Whether frames come in their own time, the newest only.
        counters: What happened so far.
        stop: Ends the frames from outside.
    """

    name: str
    fps: float
    count: int
    moving: bool
    frames: Generator[Frame, None, None]
    skipped: list[str] = field(default_factory=list)
    live: bool = False
    counters: Counters = field(default_factory=Counters)
    stop: Callable[[], None] = lambda: None
    _closed: threading.Event = field(default_factory=threading.Event, init=False, repr=False)

    @property
    def dropped(self) -> int:
        """Frames that nobody took."""
        return self.counters.dropped

    @property
    def reconnects(self) -> int:
        """How often the source was lost and came back."""
        return self.counters.reconnects

    @property
    def corrupt(self) -> int:
        """Frames that could not be used."""
        return self.counters.corrupt

    def __iter__(self) -> Iterator[Frame]:
        for frame in self.frames:
            if self._closed.is_set():
                return
            yield frame

    def close(self) -> None:
        """Stop, and free the device, connection or file. Whoever iterates comes to the end."""
        self._closed.set()
        self.stop()
        try:
            self.frames.close()
        except ValueError:  # another thread is in it, and leaves it after this frame
            return

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Quiet:
    """OpenCV's log level is one for the whole process, and captures live in threads: the last to leave restores it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._level = 0
        # Debian 12 has OpenCV 4.6, the one with GStreamer there: its functions have another place.
        self._logging: Any = getattr(cv2.utils, "logging", cv2)

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._level = self._logging.getLogLevel()
                self._logging.setLogLevel(0)  # silent
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._logging.setLogLevel(self._level)


_QUIET = _Quiet()


def quiet_opencv() -> AbstractContextManager[None]:
    """Keep OpenCV's own warnings off the terminal: we report in one line."""
    return _QUIET


def read_image(path: Path, *, exif: bool = True) -> NDArray[np.uint8] | None:
    """Read a picture as (h, w, 3) uint8 BGR, or None where it cannot be decoded.

    Args:
        path: The file.
        exif: Turn the picture as its EXIF orientation says. Dataset protocols do not.
    """
    flags = cv2.IMREAD_COLOR if exif else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    with quiet_opencv():
        try:
            image: NDArray[np.uint8] | None = cv2.imread(str(path), flags)  # type: ignore[assignment]
        except cv2.error:  # a picture too large to decode, for instance
            return None
    return image


def image_files(folder: Path) -> list[Path]:
    """Pictures in a folder and below it, sorted by path."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def open_source(uri: str, options: SourceOptions = SourceOptions()) -> Source:
    """Open a source of frames.

    Args:
        uri: See the table at the top of this file.
        options: How to open it.

    Raises:
        SourceError: It cannot be opened, or an option does not apply to it.
    """
    kind = _live_kind(uri)
    if kind is not None:
        return _live(uri, kind, options)
    if uri == "-":
        from edgepose.raw_frames import standard_input

        _check_options("standard input", options, {"size_wh", "fps", "pace"})
        return _paced(standard_input(options), options)
    path = Path(uri)
    if not uri or not path.exists():
        raise SourceError(f"{uri or 'empty name'}: no such file, folder or camera index")
    _check_options(uri, options, {"fps", "loop", "pace"})
    return _paced(_file(path, options), options)


def _live_kind(uri: str) -> LiveKind | None:
    """The row of the grammar for a live source; None for what is read from its beginning to its end."""
    scheme, separator, rest = uri.partition("://")
    scheme = scheme.lower()
    if uri.startswith("gst:"):
        scheme, rest = "gst", uri.removeprefix("gst:")
    elif _is_device(uri):
        scheme, rest = "v4l2", uri
    elif not separator:
        return None
    if scheme in _STREAMS:
        from edgepose.streams import stream

        return stream(uri)
    from edgepose import cameras

    local = {"v4l2": cameras.v4l2, "csi": cameras.csi, "picamera2": cameras.picamera2, "gst": cameras.gstreamer}
    if scheme in local:
        return local[scheme](rest)
    raise SourceError(
        f"{scheme}://: no such kind of source: use a file, a folder, a camera (0, /dev/video0, csi://0, "
        "picamera2://0), rtsp://, http://, gst:PIPELINE or -"
    )


def _is_device(uri: str) -> bool:
    if uri.isdecimal() and len(uri) <= 3:
        return True
    return uri.startswith(("/dev/video", "/dev/v4l/")) or (uri.startswith("/dev/") and Path(uri).is_char_device())


def _check_options(name: str, options: SourceOptions, takes: Collection[str]) -> None:
    for row in fields(options):
        if row.name not in (*takes, "reconnect", "stall_s") and getattr(options, row.name) != row.default:
            raise SourceError(f"{name}: the option {row.name} does not apply here: leave it out")


def _live(uri: str, kind: LiveKind, options: SourceOptions) -> Source:
    from edgepose.live import open_live

    _check_options(kind.name, options, kind.takes)
    source = open_live(kind.name, partial(kind.open, options), options)
    if not source.count:
        return source
    source.close()  # it has an end: no frame may be lost
    return _video(uri, kind.name, options)


def _paced(source: Source, options: SourceOptions) -> Source:
    from edgepose.newest import open_paced

    return open_paced(source) if options.pace else source


def _file(path: Path, options: SourceOptions) -> Source:
    if path.is_dir():
        return _images(path, image_files(path), options)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return _images(path, [path], options)
    return _video(str(path), str(path), options)


def _images(path: Path, files: list[Path], options: SourceOptions) -> Source:
    if not files:
        raise SourceError(f"{path}: no images here (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
    if options.pace and not options.fps:
        raise SourceError(f"{path}: images have no frame rate of their own: pace needs fps")
    skipped: list[str] = []
    rate = options.fps or 1.0

    def frames() -> Generator[Frame, None, None]:
        for first in _rounds(options.loop, len(files)):
            unreadable = 0
            for index, file in enumerate(files, first):
                image = read_image(file)
                if image is not None:
                    yield Frame(image, index, file.name, index / rate)
                else:
                    unreadable += 1
                    if not first:  # a list that grows with every round would fill the memory
                        skipped.append(file.name)
            if unreadable == len(files):
                raise SourceError(f"{path}: none of the {len(files)} images can be decoded")

    count = 0 if options.loop else len(files)
    return Source(str(path), options.fps or 0, count, moving=bool(options.fps), frames=frames(), skipped=skipped)


def _rounds(loop: bool, length: int) -> Iterable[int]:
    """Number of the first frame of each round."""
    return itertools.count(0, length) if loop else (0,)


def _video(target: str, name: str, options: SourceOptions) -> Source:
    capture, first = _open_video(target, name)
    fps = options.fps or capture.get(cv2.CAP_PROP_FPS)
    count = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    rate = fps if 0 < fps <= 1000 else 25.0
    counters = Counters()

    def frames() -> Generator[Frame, None, None]:
        opened, head, index = capture, first, 0
        while True:
            for bad, image in _decoded(opened, head):
                counters.corrupt += bad
                index += bad
                yield Frame(image, index, Path(name).name, index / rate)
                index += 1
            if not options.loop:
                return
            opened, head = _open_video(target, name)

    return Source(name, rate, 0 if options.loop else count, moving=True, frames=frames(), counters=counters)


def _open_video(target: str, name: str) -> tuple[cv2.VideoCapture, NDArray[np.uint8]]:
    with quiet_opencv():
        capture = cv2.VideoCapture(target)
        ok, first = capture.read() if capture.isOpened() else (False, None)
    if not ok or first is None:
        raise SourceError(f"{name}: not a video that OpenCV can decode: is it whole, and is its codec common?")
    return capture, np.asarray(first, dtype=np.uint8)


def _decoded(capture: cv2.VideoCapture, first: NDArray[np.uint8]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Each picture, with the number of damaged ones just before it. At the end the capture is released."""
    image: NDArray[np.uint8] | None = first
    bad = 0
    try:
        while bad <= _BAD_READS:
            if image is not None:
                yield bad, image
                bad = 0
            ok, read = capture.read()
            image = np.asarray(read, dtype=np.uint8) if ok else None
            bad += image is None
    finally:
        capture.release()
