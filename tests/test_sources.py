"""Videos, folders, images, cameras, box files: what they give, and what is said when they cannot."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from edgepose import SourceError
from edgepose.assets import SAMPLE_CLIP
from edgepose.boxes import BoxFile
from edgepose.sources import Frame, open_source


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


class FakeCapture:
    """A camera that delivers three frames and is then unplugged."""

    def __init__(self, index):
        self.left = 3
        self.released = False
        FakeCapture.last = self

    def isOpened(self):  # noqa: N802
        return True

    def get(self, prop):
        return 30.0

    def read(self):
        self.left -= 1
        return (True, np.zeros((4, 4, 3), np.uint8)) if self.left >= 0 else (False, None)

    def release(self):
        self.released = True


def test_a_camera_that_stops_is_an_error_and_is_released(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    frames = []
    with pytest.raises(SourceError, match="camera 0: stopped delivering frames after 3"):
        frames.extend(open_source("0"))
    for _ in open_source("0"):
        break
    assert FakeCapture.last.left == 2


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
