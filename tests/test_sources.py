"""Videos, folders, images, cameras, box files: what they give, and what is said when they cannot."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest

from edgepose import SourceError
from edgepose.assets import SAMPLE_CLIP
from edgepose.boxes import BoxFile
from edgepose.sources import Frame, SourceOptions, open_source, quiet_opencv


def test_a_video_gives_every_frame_in_time():
    source = open_source(str(SAMPLE_CLIP))
    frames = list(source)
    assert (source.fps, source.count, len(frames)) == (10.0, 80, 80)
    assert [f.index for f in frames] == list(range(80))
    assert frames[25].time_s == pytest.approx(2.5)
    assert frames[0].image_bgr.shape == (432, 768, 3)


def test_a_folder_gives_its_images_in_order_and_skips_the_unreadable(tmp_path):
    for name in ("b.png", "a.jpg"):
        cv2.imwrite(str(tmp_path / name), np.zeros((4, 6, 3), np.uint8))
    (tmp_path / "c.png").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("not an image")
    source = open_source(str(tmp_path))
    assert [f.name for f in source] == ["a.jpg", "b.png"]
    assert source.skipped == ["c.png"]
    assert [f.name for f in open_source(str(tmp_path / "b.png"))] == ["b.png"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.mp4", None, r"none.mp4: no such file, folder or camera index"),
        ("broken.mp4", b"no video", r"broken.mp4: not a video that OpenCV can decode"),
        ("empty.mp4", b"", r"empty.mp4: not a video that OpenCV can decode"),
        ("folder", "dir", r"folder: no images here \(looked for .bmp, .jpeg"),
    ],
)
def test_sources_that_cannot_be_opened(tmp_path, capfd, name, content, message):
    path = tmp_path / name
    if content == "dir":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(SourceError, match=message):
        open_source(str(path))
    assert capfd.readouterr().err == ""  # OpenCV's own complaints stay off the terminal


def test_a_camera_that_is_not_there(capfd):
    with pytest.raises(SourceError, match="camera 97: not there or in use: see /dev/video"):
        open_source("97")
    assert capfd.readouterr().err == ""


def test_images_of_which_none_can_be_read(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(SourceError, match="none of the 1 images can be decoded"):
        list(open_source(str(tmp_path)))


def films(tmp_path, count=6, fps=20.0):
    """A tiny video whose n-th frame is as bright as 20 n."""
    path = tmp_path / "tiny.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, (32, 24))
    for n in range(count):
        writer.write(np.full((24, 32, 3), 20 * n, np.uint8))
    writer.release()
    return path


def brightness(frames):
    return [round(float(f.image_bgr.mean()) / 20) for f in frames]


def test_a_video_that_loops_goes_on_in_time(tmp_path):
    with open_source(str(films(tmp_path)), SourceOptions(loop=True)) as source:
        frames = list(itertools.islice(source, 15))
    assert source.count == 0
    assert [f.index for f in frames] == list(range(15))
    assert np.diff([f.time_s for f in frames]) == pytest.approx(0.05)
    assert brightness(frames) == [n % 6 for n in range(15)]
    assert frames[0].captured_s < frames[-1].captured_s <= time.monotonic()


def test_the_frame_rate_of_a_video_can_be_put_right(tmp_path):
    source = open_source(str(films(tmp_path)), SourceOptions(fps=5))
    assert source.fps == 5
    assert [f.time_s for f in source] == pytest.approx(np.arange(6) / 5)


def test_a_paced_video_drops_what_nobody_took_and_is_on_time(tmp_path):
    source = open_source(str(films(tmp_path, count=12)), SourceOptions(pace=True))
    assert (source.live, source.moving, source.count) == (True, True, 0)
    start, frames = time.monotonic(), []
    for taken in source:
        frames.append(taken)
        assert taken.time_s >= taken.index / 20 - 1e-3  # never before its time
        if len(frames) == 1:
            time.sleep(0.3)
    assert time.monotonic() - start >= 11 / 20 - 0.05
    assert frames[-1].index == 11
    assert len(frames) + source.dropped == 12
    assert source.dropped >= 4
    assert brightness(frames) == [f.index for f in frames]


def test_a_paced_loop_ends_when_another_thread_closes_it(tmp_path):
    source = open_source(str(films(tmp_path)), SourceOptions(pace=True, loop=True))
    threading.Timer(0.5, source.close).start()
    times = [f.time_s for f in source]
    assert 3 <= len(times) <= 11
    assert times == sorted(times)
    assert [t.name for t in threading.enumerate() if t.name.startswith("pace")] == []


def test_images_with_a_frame_rate_are_a_film(tmp_path):
    for name in ("a.png", "c.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((4, 6, 3), np.uint8))
    (tmp_path / "b.png").write_bytes(b"no picture")
    source = open_source(str(tmp_path), SourceOptions(fps=4, loop=True))
    frames = list(itertools.islice(source, 5))
    assert (source.fps, source.moving, source.count) == (4, True, 0)
    assert [(f.name, f.time_s) for f in frames] == [
        ("a.png", 0.0),
        ("c.png", 0.5),
        ("a.png", 0.75),
        ("c.png", 1.25),
        ("a.png", 1.5),
    ]
    assert source.skipped == ["b.png"]  # once, not once each round
    with pytest.raises(SourceError, match="images have no frame rate of their own: pace needs fps"):
        open_source(str(tmp_path), SourceOptions(pace=True))


def test_images_that_vanish_end_a_loop(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 6, 3), np.uint8))
    frames = iter(open_source(str(tmp_path), SourceOptions(loop=True)))
    next(frames)
    (tmp_path / "a.png").unlink()
    with pytest.raises(SourceError, match="none of the 1 images can be decoded"):
        next(frames)


def test_a_paced_file_hands_its_error_on(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(SourceError, match="none of the 1 images can be decoded"):
        list(open_source(str(tmp_path), SourceOptions(pace=True, fps=10)))


def test_damaged_frames_of_a_video_are_skipped_and_counted(tmp_path):
    path = films(tmp_path)
    content = bytearray(path.read_bytes())
    starts = [m.start() for m in re.finditer(b"\xff\xd8\xff", content)]
    for number in (2, 3):  # their headers are gone
        content[starts[number] : starts[number] + 200] = bytes(200)
    path.write_bytes(content)
    source = open_source(str(path))
    frames = list(source)
    assert [f.index for f in frames] == [0, 1, 4, 5]  # the others keep their place and time
    assert [f.time_s for f in frames] == pytest.approx([0, 0.05, 0.2, 0.25])
    assert source.corrupt == 2


def test_a_file_can_be_closed_while_another_thread_reads_it(tmp_path):
    source = open_source(str(films(tmp_path)), SourceOptions(loop=True))
    threading.Timer(0.2, source.close).start()
    assert sum(1 for _ in source) > 6
    assert list(source) == []


@pytest.mark.parametrize(
    ("uri", "options", "message"),
    [
        ("VIDEO", {"size_wh": (640, 480)}, "tiny.avi: the option size_wh does not apply here: leave it out"),
        ("VIDEO", {"fourcc": "MJPG"}, "tiny.avi: the option fourcc does not apply here"),
        ("0", {"loop": True}, "camera 0: the option loop does not apply here"),
        ("/dev/video0", {"pace": True}, "camera /dev/video0: the option pace does not apply here"),
        ("rtsp://me:secret@cam/1", {"fps": 10}, "^rtsp://cam/1: the option fps does not apply here"),
        ("gst:videotestsrc", {"size_wh": (64, 48)}, "gst:videotestsrc: the option size_wh does not apply here"),
        ("csi://0", {"fourcc": "MJPG"}, "csi camera 0: the option fourcc does not apply here"),
        ("-", {"loop": True}, "standard input: the option loop does not apply here"),
        ("-", {}, "-: raw frames on standard input have no header: their size is needed"),
        (
            "ftp://me:secret@host/a",
            {},
            "^ftp://: no such kind of source: use a file, a folder, a camera",
        ),
        (" rtsp://me:secret@host/a", {}, "^ rtsp://: no such kind of source: use a file"),
        ("v4l2://front", {}, "v4l2://front: a number or a device is needed, for instance v4l2://0 or v4l2:///dev/v"),
        ("csi://left", {}, "csi://left: a camera's number is needed, for instance csi://0"),
        ("picamera2://", {}, "picamera2://: a camera's number is needed, for instance picamera2://0"),
        ("gst: ", {}, "gst:: a pipeline is needed, for instance gst:videotestsrc"),
        (
            "rtsp://me:sec/ret@cam/1",
            {},
            r"^rtsp://\.\.\.: no such address: write special characters in a password as %40",
        ),
        ("http://:80/", {}, "http://:80/: no such address"),
        ("", {}, "empty name: no such file, folder or camera index"),
    ],
)
def test_sources_and_options_that_make_no_sense(tmp_path, uri, options, message):
    uri = str(films(tmp_path)) if uri == "VIDEO" else uri
    with pytest.raises(SourceError, match=message):
        open_source(uri, SourceOptions(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size_wh": (0, 480)}, "size 0x480: width and height of 1 to 16384 are possible"),
        ({"fps": 0.0}, "0 frames per second: more than 0 and up to 1000 are possible"),
        ({"fps": float("nan")}, "nan frames per second"),
        ({"fourcc": "H264x"}, "fourcc 'H264x': four letters are needed, for instance MJPG"),
        ({"stall_s": 0.0}, "stall time of 0 s: a positive number is needed"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(SourceError, match=message):
        SourceOptions(**options)


def test_opencv_is_quiet_until_the_last_has_left():
    level = cv2.utils.logging.getLogLevel()
    first, second = quiet_opencv(), quiet_opencv()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert cv2.utils.logging.getLogLevel() == cv2.utils.logging.LOG_LEVEL_SILENT
    second.__exit__(None, None, None)
    assert cv2.utils.logging.getLogLevel() == level


READER = """
import sys
from edgepose.errors import SourceError
from edgepose.sources import SourceOptions, open_source
try:
    with open_source("-", SourceOptions(**eval(sys.argv[1]))) as source:
        for frame in source:
            print(frame.index, frame.image_bgr.shape, frame.image_bgr.flat[0], frame.image_bgr.flat[-1], frame.time_s)
except SourceError as error:
    print("error:", error)
"""


def read_stdin(content, **options):
    command = [sys.executable, "-c", READER, repr(options)]
    done = subprocess.run(command, input=content, capture_output=True, check=False, timeout=30)
    return done.stdout.decode().splitlines(), done.stderr.decode()


def test_raw_frames_come_through_a_pipe():
    size = 64 * 48 * 3  # more than one gulp of a pipe for three of them
    lines, errors = read_stdin(b"".join(bytes([n]) * size for n in range(20)), size_wh=(64, 48), fps=10.0)
    assert lines == [f"{n} (48, 64, 3) {n} {n} {n / 10}" for n in range(20)]
    assert errors == ""


def test_a_pipe_that_ends_inside_a_frame():
    lines, errors = read_stdin(bytes(5 * 4 * 3) + bytes(7), size_wh=(5, 4))
    assert len(lines) == 1
    assert errors == "standard input: ended inside a frame of 5x4, after 1 whole ones: another size?\n"
    lines, errors = read_stdin(bytes(59), size_wh=(5, 4))
    assert lines == ["error: standard input: ended before one whole frame of 5x4 came (59 bytes): another size?"]


def test_a_paced_pipe_gives_the_newest_frame():
    lines, _ = read_stdin(bytes(5 * 4 * 3) * 10, size_wh=(5, 4), pace=True)
    assert 1 <= len(lines) <= 10
    assert lines[-1].startswith("9 ")


def test_a_pipe_in_which_nothing_comes_can_be_closed(monkeypatch):
    reading, writing = os.pipe()
    with os.fdopen(reading) as pipe, os.fdopen(writing, "wb"):
        monkeypatch.setattr(sys, "stdin", pipe)
        source = open_source("-", SourceOptions(size_wh=(640, 480)))
        threading.Timer(0.2, source.close).start()
        assert list(source) == []


def test_no_frames_from_a_terminal_or_from_nowhere(monkeypatch):
    ours, theirs = os.openpty()
    with os.fdopen(ours), os.fdopen(theirs) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        with pytest.raises(SourceError, match="-: standard input is a terminal: pipe raw BGR24 frames into it"):
            open_source("-", SourceOptions(size_wh=(4, 4)))
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(SourceError, match="-: there is no standard input here: give another source"):
        open_source("-", SourceOptions(size_wh=(4, 4)))


def frame(index, name="clip.mp4"):
    return Frame(np.zeros((1, 1, 3), np.uint8), index, name, 0.0)


def test_boxes_by_frame_number_name_and_image_id(tmp_path):
    rows = [
        {"frame": 3, "bbox": [1, 2, 3, 4]},
        {"frame": 3, "bbox": [5, 5, 5, 5], "score": 0.2},
        {"frame": "a.jpg", "bbox": [1, 1, 1, 1]},
        {"image_id": 785, "category_id": 1, "bbox": [9, 9, 1, 1], "score": 0.9},
    ]
    (tmp_path / "boxes.json").write_text(json.dumps(rows))
    boxes = BoxFile(tmp_path / "boxes.json")
    assert boxes.of(frame(3)).tolist() == [[1, 2, 4, 6]]  # x1, y1, x2, y2; the weak one is left out
    assert boxes.of(frame(0, "a.jpg")).tolist() == [[1, 1, 2, 2]]
    assert boxes.of(frame(0, "000000000785.jpg")).tolist() == [[9, 9, 10, 10]]
    assert boxes.of(frame(4)).shape == (0, 4)
    assert boxes.of(frame(3, "785.mp4")).tolist() == [[1, 2, 4, 6]]  # a video's name is no image id
    assert boxes.of(frame(785)).shape == (0, 4)  # nor is a frame's number
    assert (boxes.used, boxes.dropped) == (4, 1)


@pytest.mark.parametrize("content", ["{", "[1]", '[{"bbox": [1, 2, 3, 4]}]', '[{"frame": 1, "bbox": [1, 2]}]', "{}x"])
def test_box_files_that_do_not_work(tmp_path, content):
    (tmp_path / "boxes.json").write_text(content)
    with pytest.raises(SourceError, match=r"boxes.json: not a box file .*it needs a JSON list of"):
        BoxFile(tmp_path / "boxes.json")
    with pytest.raises(SourceError, match=r"none.json: cannot be read \(No such file"):
        BoxFile(tmp_path / "none.json")
