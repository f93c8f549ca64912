"""Outputs are whole under their name or not there, and show what was found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgepose import Poses, SinkError
from edgepose.draw import draw_poses, draw_text
from edgepose.pipeline import run
from edgepose.sinks import JsonLinesSink, VideoSink, check_output
from edgepose.sources import Frame, open_source


def frame(index=0, size=(60, 80)):
    return Frame(np.full((*size, 3), 90, np.uint8), index, "clip.mp4", index / 10)


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
    assert [row["frame"] for row in rows] == [0, 1]
    assert [len(row["people"]) for row in rows] == [1, 0]
    assert rows[0]["people"][0]["keypoints"][0] == [10.0, 10.0, 0.9]
    assert [p.name for p in tmp_path.iterdir()] == ["poses.jsonl"]


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
