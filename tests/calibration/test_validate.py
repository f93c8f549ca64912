"""Validation: AP of a perfect and a broken model, detections, limits, and who is compared with whom."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest

from edgepose import DatasetError, ModelSpec, load
from edgepose.assets import SAMPLE_CLIP
from edgepose.calibration.datasets.base import Picture
from edgepose.calibration.datasets.coco import CocoKeypoints
from edgepose.calibration.datasets.pictures import Unlabeled
from edgepose.calibration.metrics import drop_interval
from edgepose.calibration.reading import RegionFinder
from edgepose.calibration.validate import validate
from edgepose.pipeline import Estimator
from edgepose.skeletons import get_skeleton

SPEC = ModelSpec.pose2d("m", (256, 192), "coco17")
COLOURS = np.stack([np.arange(17) * 14 + 15, 255 - np.arange(17) * 14, np.full(17, 128)], axis=1).astype(np.uint8)


class ColourEngine:
    """A perfect model for made-up pictures: every joint is a disc in a colour of its own."""

    name, device, metadata = "colours", "cpu", {}
    inputs, outputs = (SPEC.input,), (SPEC.output,)

    def __init__(self, shift=0):
        self.shift = shift

    def run(self, feeds):
        small = feeds["image"][:, 1::4, 1::4].astype(int)  # heatmap pixel i sees crop pixel 4 i + 1
        distance = np.abs(small[:, None] - COLOURS[None, :, None, None].astype(int)).sum(-1)
        maps = np.exp(-distance / 6).astype(np.float32)
        maps = np.stack([[cv2.GaussianBlur(m, (0, 0), 1.5) for m in crop] for crop in maps])
        return {"heatmaps": np.roll(maps, self.shift, axis=3)}

    def close(self):
        pass


@pytest.fixture
def coco(tmp_path):
    """Six images with one person each, whose joints are coloured discs."""
    rng = np.random.default_rng(0)
    images, people = [], []
    for i in range(6):
        picture = np.zeros((400, 400, 3), np.uint8)
        joints = np.array([[120 + 45 * (k % 4), 80 + 55 * (k // 4)] for k in range(17)]) + rng.uniform(-8, 8, (17, 2))
        for (x, y), colour in zip(joints, COLOURS, strict=True):
            cv2.circle(picture, (round(x), round(y)), 9, colour[::-1].tolist(), -1)
        cv2.imwrite(str(tmp_path / f"{i}.png"), picture)
        images.append({"id": i, "file_name": f"{i}.png", "width": 400, "height": 400})
        points = np.c_[np.round(joints), np.full(17, 2)].ravel().tolist()
        box = [90, 50, 200, 300]
        person = {"id": i + 1, "image_id": i, "category_id": 1, "iscrowd": 0, "num_keypoints": 17, "area": 60000.0}
        people.append(person | {"bbox": box, "keypoints": points})
    names = list(get_skeleton("coco17").joints)
    categories = [{"id": 1, "name": "person", "keypoints": names}]
    path = tmp_path / "person_keypoints_made.json"
    path.write_text(json.dumps({"images": images, "annotations": people, "categories": categories}))
    return path


@pytest.fixture
def estimators():
    return {name: Estimator(ColourEngine(shift), SPEC, name) for name, shift in (("onnx-fp32", 0), ("onnx-int8", 8))}


def test_a_perfect_model_has_ap_1_and_a_broken_one_is_seen(coco, estimators):
    result = validate(estimators, CocoKeypoints(coco), baseline="onnx-fp32")
    perfect, broken = result.rows
    assert perfect.accuracy.value == pytest.approx(100, abs=1e-4)
    assert perfect.agreement.mean_oks == 1
    assert broken.accuracy.value < 10
    assert broken.agreement.mean_oks < 0.5
    assert broken.agreement.mean_shift_px == pytest.approx(32, abs=2)  # eight heatmap pixels
    assert broken.agreement.max_abs_error > 0.1
    assert perfect.agreement.snr_db == np.inf
    assert broken.agreement.snr_db < 0  # nothing is where it should be: twice the power in the difference
    assert (result.images, result.crops, result.boxes) == (6, 6, "ground truth")


def test_detections_replace_the_boxes_and_copies_are_suppressed(coco, estimators, tmp_path):
    rows = [
        {"image_id": i, "category_id": 1, "bbox": [90 + d, 50, 200, 300], "score": 0.9 - d / 10}
        for i in range(6)
        for d in range(3)
    ]
    rows.append({"image_id": 0, "category_id": 3, "bbox": [0, 0, 9, 9], "score": 1.0})  # a car
    (tmp_path / "detections.json").write_text(json.dumps(rows))
    result = validate(
        {"onnx-fp32": estimators["onnx-fp32"]},
        CocoKeypoints(coco, tmp_path / "detections.json"),
        baseline="onnx-fp32",
        batch=2,
    )
    assert result.crops == 18
    assert result.rows[0].accuracy.value == pytest.approx(100, abs=1e-4)  # three copies would cost precision


def test_images_without_detections_are_missed_people(coco, estimators, tmp_path):
    rows = [{"image_id": i, "category_id": 1, "bbox": [90, 50, 200, 300], "score": 0.9} for i in range(3)]
    (tmp_path / "detections.json").write_text(json.dumps(rows))
    result = validate(
        {"onnx-fp32": estimators["onnx-fp32"]},
        CocoKeypoints(coco, tmp_path / "detections.json"),
        baseline="onnx-fp32",
    )
    assert result.rows[0].accuracy.stats["AR"] == pytest.approx(50)


def test_a_limit_evaluates_only_those_images(coco, estimators):
    result = validate(estimators, CocoKeypoints(coco), baseline="onnx-fp32", limit=2)
    assert result.images == 2
    assert result.rows[0].accuracy.stats["AR"] == pytest.approx(100)


def test_unreadable_images_are_named_and_count_nowhere(coco, estimators):
    (coco.parent / "3.png").write_bytes(b"")
    result = validate(estimators, CocoKeypoints(coco), baseline="onnx-fp32")
    assert result.skipped == ("3.png",)
    assert (result.images, result.crops) == (5, 5)
    assert result.rows[0].accuracy.stats["AR"] == pytest.approx(100)


def test_missing_images_stop_the_run_before_it_starts(coco, estimators):
    for i in (1, 4):
        (coco.parent / f"{i}.png").unlink()
    with pytest.raises(DatasetError, match=r"2 of 6 images are missing from .*: 1.png, 4.png: copy them there"):
        validate(estimators, CocoKeypoints(coco), baseline="onnx-fp32")
    assert validate(estimators, CocoKeypoints(coco), baseline="onnx-fp32", limit=1).images == 1


def test_the_flip_test_pulls_a_biased_model_to_the_middle(coco):
    """A model that is always eight heatmap pixels to the right finds, in the mirrored crop, the same to the left."""
    only = {"onnx-fp32": Estimator(ColourEngine(8), SPEC)}
    plain, flipped = (validate(only, CocoKeypoints(coco), baseline="onnx-fp32", flip=on).base for on in (False, True))
    assert plain.accuracy.error_percentiles[50] == pytest.approx(32, abs=2)
    assert flipped.accuracy.per_joint != plain.accuracy.per_joint


def test_agreement_needs_no_labels(coco, estimators):
    result = validate(estimators, Unlabeled(coco.parent), baseline="onnx-int8")
    assert [row.accuracy for row in result.rows] == [None, None]
    assert (result.boxes, result.crops) == ("search", 6)
    assert result.rows[1].agreement.mean_oks == 1  # the baseline agrees with itself
    assert result.rows[0].agreement.mean_oks < 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "holds no person"),
        ('[{"image_id": 1}]', r"not COCO detections \(KeyError"),
        ("{", "not JSON"),
    ],
)
def test_detection_files_that_do_not_work(coco, tmp_path, content, message):
    (tmp_path / "d.json").write_text(content)
    with pytest.raises(DatasetError, match=rf"d.json: {message}"):
        CocoKeypoints(coco, tmp_path / "d.json")


def test_a_root_needs_one_annotation_file(coco, tmp_path):
    assert CocoKeypoints.open(tmp_path).path == coco
    (tmp_path / "nowhere").mkdir()
    with pytest.raises(DatasetError, match=r"needs one person_keypoints_\*.json.*found: none"):
        CocoKeypoints.open(tmp_path / "nowhere")


class Blink(Unlabeled):
    """A video of which some frames cannot be read."""

    lost = ()

    def pictures(self, limit=None):
        for i, picture in enumerate(super().pictures(limit)):
            yield replace(picture, read=lambda: None) if i in self.lost else picture


def test_jitter_does_not_bridge_frames_that_are_lost(starter_bundle):
    """With every third frame lost no three follow each other."""
    data = Blink(SAMPLE_CLIP)
    data.lost = range(2, 80, 3)
    estimators = {"onnx-fp32": load(starter_bundle, variant="onnx-fp32")}
    result = validate(estimators, data, baseline="onnx-fp32", limit=48)
    assert len(result.skipped) == 16
    assert result.base.agreement.jitter_px is None
    data.lost = (20,)
    assert validate(estimators, data, baseline="onnx-fp32", limit=48).base.agreement.jitter_px > 0


def test_the_region_is_not_carried_from_one_clip_to_the_next(coco, estimators):
    """Pictures of one clip follow each other; the first of the next is searched anew."""
    finder = RegionFinder(estimators["onnx-fp32"])
    image = cv2.imread(str(coco.parent / "0.png"))
    searched = finder(Picture("a", "a", lambda: None, clip=0), image)
    points = np.tile([[100.0, 100]], (17, 1)) + np.arange(17)[:, None]
    finder.follow(
        Picture("a", "a", lambda: None, clip=0), points[None].astype(np.float32), np.ones((1, 17), np.float32)
    )
    followed = finder(Picture("b", "b", lambda: None, clip=0), image)
    assert followed[0, 0] == pytest.approx(108, abs=1)
    assert finder(Picture("c", "c", lambda: None, clip=1), image).tolist() == searched.tolist()


def test_host_work_is_counted_apart_from_the_engines(coco, estimators):
    """An engine that works for a while is not host work; a reader that does is."""

    class Busy(ColourEngine):
        def run(self, feeds):
            end = time.thread_time() + 0.02
            while time.thread_time() < end:
                pass
            return super().run(feeds)

    result = validate({"onnx-fp32": Estimator(Busy(), SPEC)}, CocoKeypoints(coco), baseline="onnx-fp32")
    assert result.cpu_seconds > 6 * 0.02
    assert 0 < result.host_cpu_seconds < result.cpu_seconds - 6 * 0.02


def test_the_interval_of_a_drop_by_hand():
    """Of 400 people with one joint each, every fourth is lost: 25 points, give or take 1.96 sqrt(0.25 x 0.75 / 400)."""
    base, other = np.full(400, 100.0), np.where(np.arange(400) % 4, 100.0, 0.0)
    low, high = drop_interval(base, other, np.ones(400))
    spread = 196 * (0.25 * 0.75 / 400) ** 0.5
    assert low == pytest.approx(25 - spread, abs=0.5)
    assert high == pytest.approx(25 + spread, abs=0.5)
    assert drop_interval(other, base, np.ones(400)) == (pytest.approx(-high, abs=0.5), pytest.approx(-low, abs=0.5))
    assert drop_interval(base[:1], other[:1], np.ones(1)) is None


def test_people_weigh_as_many_joints_as_they_have():
    """One person with nine joints loses none, nine with one lose it: nine of eighteen, not nine of ten."""
    base = np.r_[900.0, np.full(9, 100.0)]
    other = np.r_[900.0, np.zeros(9)]
    low, high = drop_interval(base, other, np.r_[9, np.ones(9)])
    assert low < 50 < high
