"""The COCO top-down protocol step by step, on values worked out by hand: boxes, regions, scores, NMS, flip, EXIF."""

from __future__ import annotations

import json
import math

import cv2
import numpy as np
import pytest

from edgepose import DatasetError, ModelSpec
from edgepose.calibration import validate as module
from edgepose.calibration.datasets import coco
from edgepose.calibration.datasets.coco import CocoKeypoints
from edgepose.pipeline import Estimator
from edgepose.preprocess import crop
from edgepose.skeletons import get_skeleton

SPEC = ModelSpec.pose2d("m", (256, 192), "coco17")
COCO = get_skeleton("coco17")
PEAK_XY = (24, 32)  # heatmap pixel; the centre of 48 x 64 is (23.5, 31.5)


class OnePeak:
    """Every joint is at the same heatmap pixel; five joints score 0.1, the others 0.9. Remembers its crops."""

    name, device, metadata = "peak", "cpu", {}
    inputs, outputs = (SPEC.input,), (SPEC.output,)

    def __init__(self):
        self.crops = []

    def run(self, feeds):
        self.crops += list(feeds["image"])
        ys, xs = np.mgrid[:64, :48]
        peak = np.exp(-((xs - PEAK_XY[0]) ** 2 + (ys - PEAK_XY[1]) ** 2) / 8)
        scores = np.r_[np.full(12, 0.9), np.full(5, 0.1)]
        maps = (scores[:, None, None] * peak).astype(np.float32)
        return {"heatmaps": np.repeat(maps[None], len(feeds["image"]), axis=0)}


@pytest.fixture
def results(monkeypatch):
    """What reaches the evaluator."""
    seen = []

    def record(annotations, rows, sigmas, image_ids):
        seen.extend(rows)
        return {"AP": 0.0}

    monkeypatch.setattr(coco, "average_precision", record)
    return seen


def person(number, box, **changes):
    row = {"id": number, "image_id": 0, "category_id": 1, "iscrowd": 0, "num_keypoints": 17, "area": 100.0}
    return row | {"bbox": box, "keypoints": [1, 1, 2] * 17} | changes


def dataset(folder, people, picture=None, detections=None):
    picture = np.zeros((400, 400, 3), np.uint8) if picture is None else picture
    cv2.imwrite(str(folder / "0.jpg"), picture)
    path = folder / "person_keypoints_x.json"
    images = [{"id": 0, "file_name": "0.jpg", "width": picture.shape[1], "height": picture.shape[0]}]
    categories = [{"id": 1, "name": "person", "keypoints": list(COCO.joints)}]
    path.write_text(json.dumps({"images": images, "annotations": people, "categories": categories}))
    return CocoKeypoints(path, detections)


def validate(data, engine=None, **options):
    return module.validate({"onnx-fp32": Estimator(engine or OnePeak(), SPEC)}, data, baseline="onnx-fp32", **options)


def test_a_box_that_leaves_the_image_is_clipped_grown_and_padded(tmp_path, results):
    """Box (-10, 5, 50, 20): x1 = 0, x2 = 49, so 50 wide, centre 24.5; y 5 to 24, centre 14.5.

    The height grows to 50 / 0.75, and both by 1.25: the region is 62.5 wide, a heatmap pixel 61.5 / 47 image pixels.
    """
    validate(dataset(tmp_path, [person(1, [-10, 5, 50, 20])]))
    step = 61.5 / 47
    expected = [24.5 + 0.5 * step, 14.5 + 0.5 * step]
    np.testing.assert_allclose(np.reshape(results[0]["keypoints"], (17, 3))[:, :2], [expected] * 17, atol=2e-3)


def test_only_people_with_labels_and_area_are_evaluated(tmp_path, results):
    people = [
        person(1, [10, 10, 50, 80]),
        person(2, [100, 10, 50, 80], iscrowd=1),
        person(3, [200, 10, 50, 80], num_keypoints=0, keypoints=[0] * 51),
        person(4, [10, 200, 50, 80], area=0),
        person(5, [500, 10, 50, 80]),  # outside the image
    ]
    assert validate(dataset(tmp_path, people)).crops == 1


def test_the_score_is_the_mean_of_the_joints_found_times_the_box_score(tmp_path, results):
    rows = [
        {"image_id": 0, "category_id": 1, "bbox": [10, 10, 50, 80], "score": 0.5},
        {"image_id": 0, "category_id": 1, "bbox": [200, 10, 50, 80], "score": -0.1},  # not a detection
    ]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    validate(dataset(tmp_path, [person(1, [10, 10, 50, 80])], detections=tmp_path / "d.json"))
    assert [row["score"] for row in results] == [pytest.approx(0.9 * 0.5, abs=1e-5)]


def test_detections_are_not_clipped(tmp_path, results):
    (tmp_path / "d.json").write_text(
        json.dumps([{"image_id": 0, "category_id": 1, "bbox": [-10, 5, 50, 20], "score": 1}])
    )
    validate(dataset(tmp_path, [person(1, [10, 10, 50, 80])], detections=tmp_path / "d.json"))
    assert results[0]["keypoints"][0] == pytest.approx(14.5 + 0.5 * 61.5 / 47, abs=2e-3)  # -10 + 49 / 2


def similarity(distance, area):
    return sum(math.exp(-(distance**2) / (2 * area * (2 * s) ** 2)) for s in COCO.sigmas) / 17


@pytest.mark.parametrize(("target", "survivors"), [(0.92, 1), (0.88, 2)])
def test_people_more_alike_than_0_9_are_one(tmp_path, results, target, survivors):
    """The area of NMS is that of the region: (200 x 300, grown to 225 x 300) x 1.25 x 1.25."""
    area = 225 * 1.25 * 300 * 1.25
    low, high = 0.0, 400.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if similarity(middle, area) > target else (low, middle)
    rows = [
        {"image_id": 0, "category_id": 1, "bbox": [50 + d, 20, 200, 300], "score": s} for d, s in ((0, 0.9), (low, 0.8))
    ]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    validate(dataset(tmp_path, [person(1, [10, 10, 50, 80])], detections=tmp_path / "d.json"))
    assert len(results) == survivors
    assert results[0]["score"] == pytest.approx(0.81, abs=1e-5)


class PerPixel(OnePeak):
    """Each heatmap is the mean red of 4 x 4 crop pixels, plus a constant of the joint's own."""

    constants = np.linspace(0, 1, 17).astype(np.float32)

    def run(self, feeds):
        red = feeds["image"][..., 0].astype(np.float32) / 255
        blocks = red.reshape(len(red), 64, 4, 48, 4).mean(axis=(2, 4))
        return {"heatmaps": blocks[:, None] + self.constants[:, None, None]}


def test_the_flip_test_averages_with_the_mirrored_crop_mirrored_back_and_joints_exchanged():
    """For a model that looks at single pixels only, mirroring there and back changes nothing but left and right."""
    image = np.random.default_rng(0).integers(0, 256, (2, 256, 192, 3), dtype=np.uint8)
    estimator = Estimator(PerPixel(), SPEC)
    swapped = [
        COCO.joints.index(n.replace("left", "?").replace("right", "left").replace("?", "right")) for n in COCO.joints
    ]
    mean = (PerPixel.constants + PerPixel.constants[swapped]) / 2
    expected = estimator.heatmaps(image) - PerPixel.constants[:, None, None] + mean[:, None, None]
    np.testing.assert_allclose(estimator.heatmaps(image, flip=True), expected, atol=1e-6)


def test_validation_uses_the_flip_test_when_asked(tmp_path, results):
    engine = OnePeak()
    data = dataset(
        tmp_path, [person(1, [10, 10, 50, 80])], np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
    )
    validate(data, engine, flip=True)
    np.testing.assert_array_equal(engine.crops[1], engine.crops[0][:, ::-1])


def test_images_are_read_without_their_exif_orientation(tmp_path, results):
    picture = np.random.default_rng(0).integers(0, 256, (100, 200, 3), np.uint8)
    data = dataset(tmp_path, [person(1, [20, 10, 75, 80])], picture)
    jpeg = (tmp_path / "0.jpg").read_bytes()
    stored = cv2.imread(str(tmp_path / "0.jpg"))
    turned = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    (tmp_path / "0.jpg").write_bytes(jpeg[:2] + b"\xff\xe1" + (len(turned) + 2).to_bytes(2, "big") + turned + jpeg[2:])
    engine = OnePeak()
    validate(data, engine)
    region = np.array([[20 + 37, 10 + 39.5, 75 * 1.25, 100 * 1.25]])  # 75 x 80 grows to 75 x 100
    np.testing.assert_array_equal(engine.crops[0], crop(stored, region, (192, 256))[0])


@pytest.mark.parametrize(
    "change",
    [
        {"keypoints": []},
        {"keypoints": [1, 1, 2] * 14},
        {"keypoints": None},
        {"bbox": [1, 2, 3]},
        {"bbox": None},
        {"bbox": [0, 0, float("inf"), 5]},
        {"image_id": 7},
        {"area": None},
    ],
    ids=str,
)
def test_damaged_annotations_are_named(tmp_path, change):
    with pytest.raises(DatasetError, match=r"person_keypoints_x.json: not COCO keypoint annotations"):
        dataset(tmp_path, [person(1, [10, 10, 50, 80], **change)])


@pytest.mark.parametrize(
    "box", [[0, 0, float("inf"), 5], [0, 0, 1e300, 5], [1, 2, 3], [float("nan"), 0, 5, 5]], ids=str
)
def test_damaged_detections_are_named(tmp_path, results, box):
    (tmp_path / "d.json").write_text(json.dumps([{"image_id": 0, "category_id": 1, "bbox": box, "score": 1}]))
    with pytest.raises(DatasetError, match=r"d.json: not COCO detections"):
        validate(dataset(tmp_path, [person(1, [10, 10, 50, 80])], detections=tmp_path / "d.json"))


def test_nobody_to_evaluate_is_said(tmp_path, results):
    with pytest.raises(DatasetError, match="no person with labelled keypoints on its 1 images"):
        validate(dataset(tmp_path, [person(1, [10, 10, 50, 80], iscrowd=1)]))
