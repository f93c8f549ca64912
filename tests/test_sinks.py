"""Outputs are whole under their name or not there, and show what was found."""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from edgepose import Poses, SinkError
from edgepose.draw import draw_poses, draw_text
from edgepose.errors import EdgePoseError, StopRequested
from edgepose.messages import frame_message
from edgepose.sinks import CocoResultsSink, JsonLinesSink, VideoSink, check_output
from edgepose.sources import Frame, open_source
from edgepose.streaming import run
from edgepose.window import WindowSink


def frame(index=0, size=(60, 80), name="clip.mp4"):
    return Frame(np.full((*size, 3), 90, np.uint8), index, name, index / 10)


def pose(score=0.9):
    xs = np.linspace(10, 70, 14)
    keypoints = np.stack([xs, np.linspace(10, 50, 14)], axis=1)[None]
    return Poses(keypoints, np.full((1, 14), score), np.array([[5, 5, 75, 55]]), "lsp14")


def test_json_lines_appear_when_they_are_finished(tmp_path):
    sink = JsonLinesSink(tmp_path / "poses.jsonl")
    sink.write(frame(0), pose())
    sink.write(frame(1), Poses.empty("lsp14"))
    assert not (tmp_path / "poses.jsonl").exists()
    sink.close(complete=True)
    rows = [json.loads(line) for line in (tmp_path / "poses.jsonl").read_text().splitlines()]
    assert [(row["schema"], row["frame"], row["name"], row["time_s"]) for row in rows] == [
        (1, 0, "clip.mp4", 0.0),
        (1, 1, "clip.mp4", 0.1),
    ]
    assert [len(row["people"]) for row in rows] == [1, 0]
    assert rows[0]["people"][0]["keypoints"][0] == [10.0, 10.0, 0.9]
    assert [p.name for p in tmp_path.iterdir()] == ["poses.jsonl"]


def test_every_field_is_documented():
    poses = pose()
    xyz = np.zeros((1, 17, 3))
    poses = Poses(poses.keypoints_xy, poses.scores, poses.boxes_xyxy, "lsp14", np.array([1]), xyz, "h36m17")
    row = json.loads(frame_message(frame(), poses))
    table = (Path(__file__).parent.parent / "docs" / "json-lines.md").read_text().partition("## COCO")[0]
    assert [*row, *row["people"][0]] == re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)


def test_json_has_null_where_something_is_missing(tmp_path):
    """Somebody who cannot be lifted, and a joint that has no place."""
    found = pose()
    lifted = replace(found, keypoints_xyz=np.full((1, 17, 3), np.nan), skeleton_xyz="h36m17")
    lifted.keypoints_xy[0, 3] = np.nan
    sink = JsonLinesSink(tmp_path / "poses.jsonl")
    sink.write(frame(), lifted)
    sink.close(complete=True)
    row = json.loads((tmp_path / "poses.jsonl").read_text(), parse_constant=pytest.fail)
    assert row["people"][0]["keypoints_xyz"] is None
    assert row["people"][0]["keypoints"][3][:2] == [None, None]


def test_coco_results_have_a_row_per_person_and_the_picture_in_the_name(tmp_path):
    path = tmp_path / "results.json"
    sink = CocoResultsSink(path)
    two = pose()[[0, 0]]
    for index, name, poses in ((0, "000000000139.jpg", two), (1, "b.png", pose()), (2, "camera 0", pose())):
        sink.write(frame(index, name=name), poses)
    sink.write(frame(3, name="000000000140.jpg"), Poses.empty("lsp14"))
    sink.write(frame(4, name="2024.mp4"), pose())  # the number of a video is no picture's
    sink.close(complete=True)
    rows = json.loads(path.read_text())
    assert [row["image_id"] for row in rows] == [139, 139, 1, 2, 4]
    assert {row["category_id"] for row in rows} == {1}
    assert rows[0]["keypoints"][:3] == [10.0, 10.0, pytest.approx(0.9)]
    assert rows[0]["score"] == pytest.approx(0.9)
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_coco_results_of_nobody_are_an_empty_list(tmp_path):
    sink = CocoResultsSink(tmp_path / "results.json")
    sink.write(frame(), Poses.empty("lsp14"))
    sink.close(complete=True)
    assert json.loads((tmp_path / "results.json").read_text()) == []


def test_coco_image_ids_are_given_or_clear(tmp_path):
    sink = CocoResultsSink(tmp_path / "a.json", {"left.jpg": 7})
    sink.write(frame(0, name="left.jpg"), pose())
    with pytest.raises(SinkError, match=r"a.json: right.jpg has no image id: is it a picture of this data set\?"):
        sink.write(frame(1, name="right.jpg"), pose())
    sink.close(complete=False)
    assert [row["image_id"] for row in json.loads((tmp_path / "a.json").read_text())] == [7]
    sink = CocoResultsSink(tmp_path / "b.json")
    sink.write(frame(3, name="x.jpg"), pose())
    with pytest.raises(SinkError, match=r"b.json: 3.jpg and x.jpg would both have image id 3"):
        sink.write(frame(4, name="3.jpg"), pose())
    sink.close(complete=True)


@pytest.fixture
def small_files():
    """Files of this process cannot grow beyond so many bytes: a disk that takes no more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("make", [JsonLinesSink, CocoResultsSink])
def test_rows_are_whole_when_the_disk_takes_no_more(tmp_path, small_files, make):
    path = tmp_path / "out.json"
    sink = make(path)
    small_files(2000)
    with pytest.raises(SinkError, match=r"out.json: cannot write on \(File too large\): the rows so far are whole"):
        run((frame(i) for i in range(100)), lambda _: pose(), [sink])
    text = path.read_text()
    rows = json.loads(text) if make is CocoResultsSink else [json.loads(line) for line in text.splitlines()]
    assert 1500 < len(text) <= 2000
    assert len(rows) >= 3


def noise(count, size=(240, 320)):
    g = np.random.default_rng(0)
    for i in range(count):
        yield Frame(g.integers(0, 255, (*size, 3), dtype=np.uint8), i, "camera 0", i / 30)


def nobody(_):
    return Poses.empty("lsp14")


@pytest.mark.parametrize(("suffix", "kept"), [(".avi", True), (".mkv", True), (".mp4", False)])
def test_a_video_that_the_disk_takes_no_more_of_ends_in_one_line(tmp_path, small_files, suffix, kept):
    """OpenCV says nothing. An .mp4 that is cut off cannot be played, and goes."""
    path = tmp_path / f"out{suffix}"
    video = VideoSink(path, fps=30)
    small_files(1_000_000)
    with pytest.raises(SinkError, match=rf"out{suffix}: the disk takes no more than these 1 MB \(a quota, a file size"):
        run(chain(noise(60, (480, 640)), (frame(i, (480, 640)) for i in range(60, 4000))), nobody, [video])
    assert path.exists() == kept
    if kept:
        assert sum(1 for _ in open_source(str(path))) >= 3


def test_a_recording_ends_whole_before_the_disk_is_full(tmp_path, monkeypatch):
    real, looks = os.statvfs, []

    def filling(path):
        looks.append(path)
        disk = real(path)
        free = 100_000_000 if len(looks) < 4 else 16_000_000
        return SimpleNamespace(f_flag=0, f_frsize=1, f_bavail=free, f_bsize=disk.f_bsize)

    monkeypatch.setattr(os, "statvfs", filling)
    path = tmp_path / "out.mp4"
    with pytest.raises(
        SinkError, match=r"out.mp4: the disk is full \(the last 16 MB .*\): the recording ends here, after 25"
    ):
        run(noise(100), nobody, [VideoSink(path, fps=30)])
    assert sum(1 for _ in open_source(str(path))) == 25


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (lambda path: SimpleNamespace(f_flag=os.ST_RDONLY, f_frsize=1, f_bavail=1e9), "the disk has become read-only"),
        (lambda path: os.stat("/nowhere"), r"the file or its disk is gone \(No such file or directory\)"),
    ],
)
def test_a_disk_that_goes_away_is_noticed(tmp_path, monkeypatch, trouble, message):
    monkeypatch.setattr(os, "statvfs", trouble)
    with pytest.raises(SinkError, match=rf"out.mkv: {message}: the recording ends here, after 1 frames"):
        run(noise(100), nobody, [VideoSink(tmp_path / "out.mkv", fps=30)])


def test_a_dark_quiet_scene_is_no_failure(tmp_path):
    """Black frames take so little that FFmpeg holds them back for minutes."""
    sink = VideoSink(tmp_path / "night.mp4", fps=30)
    black = Frame(np.zeros((48, 64, 3), np.uint8), 0, "camera 0", 0.0)
    for _ in range(5000):
        sink.write(black, Poses.empty("lsp14"))
    sink.close(complete=True)
    assert sum(1 for _ in open_source(str(tmp_path / "night.mp4"))) == 5000


@pytest.mark.parametrize(("here", "taken"), [({"avc1"}, "avc1"), (set(), None)])
def test_h264_where_opencv_has_it(tmp_path, monkeypatch, caplog, here, taken):
    """Which codecs OpenCV was built with differs; the first that opens is taken, and the log says which."""
    caplog.set_level(logging.INFO)
    real, asked = cv2.VideoWriter, []

    class Writer:
        fourcc = staticmethod(lambda *code: "".join(code))

        def __new__(cls, path, code, fps, size):
            asked.append(code)
            known = code != "avc1" or code in here
            return real(path, real.fourcc(*("MJPG" if known else "none")), fps, size)

    monkeypatch.setattr(cv2, "VideoWriter", Writer)
    sink = VideoSink(tmp_path / "out.mkv", fps=10)
    sink.write(frame(), pose())
    sink.close(complete=True)
    assert asked == (["avc1"] if taken else ["avc1", "MJPG"])
    assert f"out.mkv: 80x60, codec {taken or 'MJPG'}" in caplog.text


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv"])
def test_a_video_has_every_frame_even_of_another_size(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    sink = VideoSink(path, fps=10, caption="model")
    for i in range(5):
        sink.write(frame(i, (60, 80) if i != 3 else (90, 50)), pose())
    sink.close(complete=True)
    frames = [f.image_bgr for f in open_source(str(path))]
    assert len(frames) == 5
    assert all(f.shape == (60, 80, 3) for f in frames)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_video_without_frames_is_not_there(tmp_path):
    VideoSink(tmp_path / "out.mp4", fps=10).close(complete=True)
    assert list(tmp_path.iterdir()) == []


def test_limbs_are_drawn_where_joints_were_found():
    picture = frame().image_bgr
    drawn = draw_poses(picture, pose())
    changed = (drawn != picture).any(axis=-1)
    assert changed[10, 10]
    assert not changed[55, 5]
    assert (picture == 90).all()  # the input is not touched
    assert (draw_poses(picture, pose(score=0.1)) == picture).all()
    draw_text(drawn, "hello")
    assert (drawn[:8, :8] < 60).any()


def test_joints_far_outside_do_not_break_the_drawing():
    far = pose()
    far = Poses(far.keypoints_xy * 1e7, far.scores, far.boxes_xyxy, far.skeleton)
    assert draw_poses(frame().image_bgr, far).shape == (60, 80, 3)


def test_outputs_are_checked_before_the_work(tmp_path):
    path = tmp_path / "new" / "poses.jsonl"
    check_output(path, force=False)
    assert not path.exists()
    path.write_text("old")
    with pytest.raises(SinkError, match=r"poses.jsonl: exists: give another name, or --force"):
        check_output(path, force=False)
    check_output(path, force=True)
    assert path.read_text() == "old"
    with pytest.raises(SinkError, match="is a folder"):
        check_output(tmp_path, force=True)
    with pytest.raises(SinkError, match=r"out.mp4: cannot write here \(.*\): choose another folder"):
        check_output(path / "out.mp4", force=False)  # below a file
    with pytest.raises(SinkError, match=r"out.gif: unknown video type: use .mp4, .avi, .mkv"):
        VideoSink(tmp_path / "out.gif", fps=10)


def test_a_video_that_cannot_be_opened_says_so_and_the_other_sinks_are_closed(tmp_path):
    video = VideoSink(tmp_path / "big.mp4", fps=10)
    lines = JsonLinesSink(tmp_path / "poses.jsonl")
    huge = [Frame(np.zeros((9000, 9000, 3), np.uint8), 0, "huge", 0.0)]
    with pytest.raises(SinkError, match=r"big.mp4: OpenCV cannot write a 9000x9000 video of this type here: try .avi"):
        run(huge, lambda _: Poses.empty("lsp14"), [lines, video])
    assert [p.name for p in tmp_path.iterdir()] == ["poses.jsonl"]


@pytest.mark.parametrize("make", [lambda p: JsonLinesSink(p), lambda p: VideoSink(p, fps=10)])  # noqa: PLW0108
def test_a_result_that_was_cut_short_does_not_replace_a_whole_one(tmp_path, make):
    path = tmp_path / "out.avi"
    for old in (b"earlier result", None):
        path.write_bytes(old) if old else path.unlink()
        sink = make(path)
        sink.write(frame(), pose())
        sink.close(complete=False)
        assert path.exists()
        assert (path.read_bytes() == b"earlier result") == (old is not None)
    sink = make(path)
    sink.close(complete=True)  # nothing was written: the file that is there stays
    assert path.stat().st_size > 20
    assert [p.name for p in tmp_path.iterdir()] == ["out.avi"]


def test_inputs_links_and_devices_are_not_outputs(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"footage")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "clip.mp4")
    (tmp_path / "bundle").mkdir()
    for path in (tmp_path / "clip.mp4", tmp_path / "bundle" / "poses.jsonl"):
        with pytest.raises(SinkError, match="is part of the input"):
            check_output(path, force=True, inputs=[tmp_path / "clip.mp4", tmp_path / "bundle"])
    for path in (tmp_path / "link.jsonl", Path("/dev/null")):
        with pytest.raises(SinkError, match="is a folder, link or device"):
            check_output(path, force=True)


NO_WINDOWS = (
    "window: this OpenCV has no windows (opencv-python-headless): "
    "pip uninstall opencv-python-headless, then pip install opencv-python"
)


@pytest.mark.parametrize(
    ("gui", "display", "message"),
    [
        ("NONE", ":0", NO_WINDOWS),
        ("QT5", "", "window: there is no screen (DISPLAY is not set): run it on the desktop, or use --serve"),
    ],
)
def test_a_window_needs_windows_and_a_screen(monkeypatch, gui, display, message):
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: f"  Media\n  GUI:             {gui}\n    VTK: NO\n")
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(SinkError) as caught:
        WindowSink()
    assert str(caught.value) == message


@pytest.mark.parametrize(("key", "visible"), [(ord("q"), 1.0), (27, 1.0), (-1, 0.0)])
def test_q_esc_and_closing_the_window_end_the_run(monkeypatch, key, visible):
    """OpenCV's part is played: the tests' OpenCV has no windows."""
    shown, closed = [], []
    played = {
        "getBuildInformation": lambda: "  GUI:   QT5",
        "namedWindow": lambda *_: None,
        "resizeWindow": lambda *_: None,
        "imshow": lambda title, picture: shown.append(picture),
        "waitKey": lambda ms: key if len(shown) == 3 else -1,
        "getWindowProperty": lambda title, what: visible if len(shown) == 3 else 1.0,
        "destroyAllWindows": lambda: closed.append(True),
    }
    for name, function in played.items():
        monkeypatch.setattr(cv2, name, function)
    monkeypatch.setenv("DISPLAY", ":0")
    run((frame(i) for i in range(9)), lambda _: pose(), [WindowSink()])
    assert len(shown) == 3
    assert (shown[0] != 90).any()  # with the skeleton
    assert closed == [True]
    assert not issubclass(StopRequested, EdgePoseError)  # nothing went wrong
