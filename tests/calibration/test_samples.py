"""Calibration sets: repeatable, without repeats, from annotations, pictures and videos."""

from __future__ import annotations

import json
import zlib

import cv2
import numpy as np
import pytest

from edgepose import DatasetError, ModelSpec
from edgepose.assets import SAMPLE_CLIP
from edgepose.calibration import samples
from edgepose.calibration.datasets.registry import open_pictures
from edgepose.calibration.diversity import diverse_order
from edgepose.skeletons import get_skeleton

SPEC = ModelSpec.pose2d("m", (128, 96), "coco17")


def collect(path, *arguments, **options):
    return samples.collect(open_pictures(path), *arguments, **options)


def find_in_the_middle(image):
    """Everybody stands in the middle of the left half; dark pictures are empty."""
    height, width = image.shape[:2]
    return np.array([[width / 4, height / 2, height * 0.75, height]]), float(image.mean()), bool(image.mean() > 50)


def never(image):
    raise AssertionError("boxes are given: nobody has to be found")


@pytest.fixture
def coco(tmp_path):
    """Twelve people on four images, one person without keypoints, one crowd."""
    rng = np.random.default_rng(0)
    (tmp_path / "val2017").mkdir()
    people = []
    for i in range(4):
        cv2.imwrite(str(tmp_path / "val2017" / f"{i}.jpg"), rng.integers(0, 255, (200, 300, 3), np.uint8))
        for j in range(5):
            people.append(
                {
                    "id": len(people),
                    "image_id": i,
                    "category_id": 1,
                    "iscrowd": int(j == 4),
                    "num_keypoints": 0 if j == 3 else 5,
                    "area": 900,
                    "bbox": [10 + 40 * j, 20, 30, 60],
                    "keypoints": [0] * 51,
                }
            )
    data = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 300, "height": 200} for i in range(4)],
        "annotations": people,
        "categories": [{"id": 1, "name": "person", "keypoints": list(get_skeleton("coco17").joints)}],
    }
    path = tmp_path / "person_keypoints_val2017.json"
    path.write_text(json.dumps(data))
    return path


def test_annotated_people_are_cropped_without_a_search(coco):
    found = collect(coco, SPEC, 100, 0, never)
    assert found.crops.shape == (12, 128, 96, 3)
    assert found.crops.dtype == np.uint8
    assert len({row["sha256"] for row in found.rows}) == 12
    assert found.source_sha256


def test_a_folder_with_one_annotation_file_is_annotated(coco):
    assert len(collect(coco.parent, SPEC, 100, 0, never).crops) == 12


def test_the_seed_decides(coco):
    first, again, other = (collect(coco, SPEC, 8, seed, never) for seed in (1, 1, 2))
    assert first.rows == again.rows
    np.testing.assert_array_equal(first.crops, again.crops)
    assert first.rows != other.rows


def test_a_video_gives_different_frames():
    found = collect(SAMPLE_CLIP, SPEC, 10, 0, find_in_the_middle)
    assert len({row["file"] for row in found.rows}) == 10
    assert found.without_person == 0


def test_pictures_without_people_fill_up_best_first_and_are_counted(tmp_path):
    for i in range(12):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((60, 80, 3), 200 + i if i < 5 else i, np.uint8))
    found = collect(tmp_path, SPEC, 8, 0, find_in_the_middle)
    names = [str(row["file"]) for row in found.rows]
    assert set(names) == {*(f"{i}.png" for i in range(5)), "11.png", "10.png", "9.png"}
    assert found.without_person == 3


def test_a_search_ends(tmp_path):
    """Footage without people costs four searches per crop asked for, not one per frame."""
    searched = []

    def find_nobody(image):
        searched.append(image)
        return np.array([[30.0, 30, 45, 60]]), 0.0, False

    assert len(collect(SAMPLE_CLIP, SPEC, 8, 0, find_nobody).crops) == 8
    assert 8 <= len(searched) <= 32


def test_one_bad_file_is_one_bad_file_however_many_people_are_on_it(coco):
    (coco.parent / "val2017" / "2.jpg").write_bytes(b"no picture")
    found = collect(coco, SPEC, 100, 0, never)
    assert found.skipped == ["2.jpg"]
    assert len(found.crops) == 9


def test_annotations_in_their_usual_folder_are_used(coco):
    (coco.parent / "annotations").mkdir()
    coco.rename(coco.parent / "annotations" / coco.name)
    assert len(collect(coco.parent, SPEC, 100, 0, never).crops) == 12


def test_a_picture_that_is_too_large_is_skipped(tmp_path):
    header = b"\x89PNG\r\n\x1a\n" + bytes.fromhex("0000000d4948445200010000000100000802000000")
    (tmp_path / "bomb.png").write_bytes(header + zlib.crc32(header[12:]).to_bytes(4, "big"))
    for i in range(8):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((60, 80, 3), 200 + i, np.uint8))
    assert collect(tmp_path, SPEC, 9, 0, find_in_the_middle, minimum=8).skipped == ["bomb.png"]


def test_a_video_frame_is_the_frame_of_that_number(clip_frames):
    found = collect(SAMPLE_CLIP, SPEC, 8, 3, lambda image: (np.array([[384.0, 216, 324, 432]]), 1.0, True))
    from edgepose.preprocess import crop

    for row, pixels in zip(found.rows, found.crops, strict=True):
        frame = clip_frames[int(str(row["file"]).partition("#")[2])]
        np.testing.assert_array_equal(crop(frame, np.array([[384.0, 216, 324, 432]]), (96, 128))[0], pixels)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "a.json: not JSON"),
        ("a.json", "[]", "a.json: not COCO keypoint annotations"),
        ("a.json", '{"images": [], "annotations": [], "categories": []}', "a.json: not COCO keypoint annotations"),
        ("a.txt", "text", "a.txt: not a video that OpenCV can decode"),
    ],
)
def test_files_that_are_no_pictures(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DatasetError, match=message):
        collect(tmp_path / name, SPEC, 8, 0, never)


def test_images_that_are_not_there_are_named(coco):
    for path in (coco.parent / "val2017").iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match=r"none of its 4 images found \(looked for 0.jpg, 1.jpg, 2.jpg, 3.jpg in "):
        collect(coco, SPEC, 8, 0, never)


def test_a_picture_that_is_there_twice_is_taken_once(tmp_path):
    """The same picture again, and once more with a little noise, as from a camera that stands still."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (60, 80, 3), np.uint8) for _ in range(9)]
    noisy = np.clip(pictures[0].astype(int) + rng.integers(-1, 2, (60, 80, 3)), 0, 255).astype(np.uint8)
    for i, picture in enumerate([*pictures, pictures[3], noisy]):
        cv2.imwrite(str(tmp_path / f"{i:02d}.png"), picture)
    found = collect(tmp_path, SPEC, 30, 0, lambda image: (np.array([[40.0, 30, 45, 60]]), 1.0, True))
    assert len(found.crops) == 9
    assert found.duplicates == 2


def test_different_pictures_come_before_similar_ones(tmp_path):
    """Forty nearly equal pictures and four others: whatever the seed, the others are among the first eight."""
    for i in range(44):
        level = 100 + i if i < 40 else 10 * (i - 40)
        cv2.imwrite(str(tmp_path / f"{i:02d}.png"), np.full((60, 80, 3), level, np.uint8))
    for seed in range(5):
        found = collect(tmp_path, SPEC, 11, seed, lambda image: (np.array([[40.0, 30, 45, 60]]), 1.0, True))
        assert {f"{i}.png" for i in range(40, 44)} <= {row["file"] for row in found.rows}


def test_farthest_point_order_by_hand():
    """From 0 the furthest is 10; then 5 is 5 from both; then 8 (2 from 10); 0.3 is a duplicate of 0."""
    assert diverse_order([[0.0], [5.0], [8.0], [0.3], [10.0]]) == [0, 4, 1, 2]
    assert diverse_order(np.zeros((0, 1))) == []


def test_the_record_says_how_to_make_the_set_again(coco):
    record = collect(coco, SPEC, 8, 3, never).to_dict()
    assert (record["kind"], record["seed"], record["asked"], record["count"]) == ("coco", 3, 8, 8)
    assert "farthest-point order of 16x16 grey thumbnails" in str(record["rule"])
    assert set(record["source_sha256"]) == {coco.name}
