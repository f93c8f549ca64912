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
from edgepose.cli._predictions import score_predictions
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


def dataset(folder, people, picture=None, detections=None, **changes):
    picture = np.zeros((400, 400, 3), np.uint8) if picture is None else picture
    cv2.imwrite(str(folder / "0.jpg"), picture)
    path = folder / "person_keypoints_x.json"
    images = [{"id": 0, "file_name": "0.jpg", "width": picture.shape[1], "height": picture.shape[0]}]
    categories = [{"id": 1, "name": "person", "keypoints": list(COCO.joints)}]
    path.write_text(json.dumps({"images": images, "annotations": people, "categories": categories} | changes))
    return CocoKeypoints(path, detections)


def written(path, rows):
    path.write_text(json.dumps(rows))
    return path


def dogs():
    """Categories in which the people have the number 3, and only they have keypoints."""
    return {"categories": [{"id": 1, "name": "dog"}, {"id": 3, "name": "person", "keypoints": list(COCO.joints)}]}


BOX = [100, 100, 75, 100]
SCALE = (75 * 1.25 - 1) / 191
"""Picture pixels per crop pixel of that box, whose region is 75 x 1.25 wide and has its centre at (137, 149.5)."""
FOUND = np.array([137, 149.5]) + 0.5 * (75 * 1.25 - 1) / 47
"""Where ``OnePeak`` finds every joint."""


def at(x, y):
    return [float(x), float(y), 2] * 17


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
        {"id": None},
        {"id": "seven"},
        {"id": 1.5},
        {"category_id": "person"},
        {"iscrowd": None},
        {"num_keypoints": "many"},
        {"area": "large"},
        {"area": float("inf")},
        {"area": 1e300},
        {"bbox": [0, 0, 1e300, 5]},
        {"keypoints": [1e300, 1, 2] * 17},
        {"keypoints": [10**400, 1, 2] * 17},
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


@pytest.mark.parametrize("key", ["id", "category_id", "image_id", "bbox", "keypoints", "area", "iscrowd"])
def test_annotations_that_lack_something_are_named(tmp_path, key):
    row = person(1, BOX)
    del row[key]
    with pytest.raises(DatasetError, match=rf"x.json: not COCO keypoint annotations \(KeyError: '{key}'\)"):
        dataset(tmp_path, [row])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": [{"id": 0, "file_name": "0.jpg", "width": 0, "height": 9}]}, "image 0 is 0 x 9 pixels"),
        ({"images": [{"id": 0, "file_name": "0.jpg", "width": 9, "height": 1e300}]}, "is no whole number"),
        ({"images": [{"id": 0, "file_name": "0.jpg", "width": 9, "height": 9}] * 2}, "2 images have the id 0"),
        ({"categories": [{"keypoints": list(COCO.joints)}]}, "KeyError: 'id'"),
        ({"categories": [{"id": 1}]}, "a category with keypoints"),
        ({"annotations": [person(4, BOX), person(5, BOX), person("5", BOX)]}, "2 annotations have the id 5"),
        ({"annotations": [person(1, BOX, image_id=7)]}, "annotation 1 is on image 7, which is not listed"),
    ],
)
def test_damaged_annotation_files_are_named(tmp_path, change, message):
    with pytest.raises(DatasetError, match=r"x.json: not COCO keypoint annotations .*" + message):
        dataset(tmp_path, [], **change)


def test_the_evaluator_gets_what_was_read_and_checked(tmp_path):
    """Numbers in text are numbers; a person 0 counts, though the evaluator takes a match with 0 for none."""
    images = [{"id": "7", "file_name": "0.jpg", "width": "400", "height": 400.0}]
    row = person("0", BOX, image_id="7", category_id="1", area="7500", keypoints=at(*FOUND), segmentation=[])
    accuracy = validate(dataset(tmp_path, [row], images=images)).base.accuracy
    assert accuracy.value == pytest.approx(100)
    assert accuracy.people == 1


def test_the_category_with_keypoints_counts_whatever_its_number(tmp_path):
    """Category 3 are the people; a dog without keypoints, and rows of dogs, say nothing."""
    dog = {"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 4], "iscrowd": 0, "area": 12}
    found = person(2, BOX, category_id=3, area=7500.0, keypoints=at(*FOUND))
    assert validate(dataset(tmp_path, [dog, found], **dogs())).base.accuracy.value == pytest.approx(100)
    rows = [{"image_id": 0, "category_id": c, "bbox": BOX, "score": 0.9} for c in (1, 3, "3")]
    rows[2]["score"] = -1
    data = dataset(tmp_path, [found], detections=written(tmp_path / "d.json", rows), **dogs())
    result = validate(data)
    assert (result.crops, result.base.accuracy.value) == (1, pytest.approx(100))


def test_oks_by_hand(tmp_path):
    """Everybody's joints are 5 px off, the area is 9000: exp(-25 / (2 x 9000 x (2 sigma)^2)), not of its root."""
    row = person(1, BOX, area=9000.0, keypoints=at(FOUND[0] + 3, FOUND[1] + 4))
    accuracy = validate(dataset(tmp_path, [row])).base.accuracy
    for name, sigma in zip(COCO.joints, COCO.sigmas, strict=True):
        assert accuracy.per_joint[name] == pytest.approx(100 * math.exp(-25 / (2 * 9000 * (2 * sigma) ** 2)), rel=0.01)


def test_errors_are_in_crop_pixels(tmp_path):
    """5 px of the picture are 10.3 of the crop: 191 steps between its pixels show 92.75 of the picture's."""
    row = person(1, BOX, area=9000.0, keypoints=at(FOUND[0] + 3, FOUND[1] + 4))
    errors = validate(dataset(tmp_path, [row])).base.accuracy.error_percentiles
    assert pytest.approx(10.297, abs=0.001) == 5 / SCALE
    assert errors == pytest.approx([5 / SCALE] * 101, abs=0.02)


def test_people_are_sorted_by_their_annotated_area(tmp_path):
    """95 x 95 is medium, though the box is 200 x 200."""
    rows = [person(1, [50, 50, 200, 200], area=95.0**2), person(2, [50, 50, 200, 200], area=97.0**2)]
    (picture,) = dataset(tmp_path, rows).pictures()
    assert picture.person_areas(np.zeros((2, 4)), 1.25) == pytest.approx([95**2, 97**2])
    assert set(validate(dataset(tmp_path, rows[:1])).base.accuracy.per_size) == {"medium"}
    assert set(validate(dataset(tmp_path, rows)).base.accuracy.per_size) == {"medium", "large"}


@pytest.mark.parametrize(
    "change",
    [
        {"bbox": [0, 0, float("inf"), 5]},
        {"bbox": [0, 0, 1e300, 5]},
        {"bbox": [1, 2, 3]},
        {"bbox": [float("nan"), 0, 5, 5]},
        {"score": float("inf")},
        {"score": float("nan")},
        {"score": 1e300},
        {"score": None},
        {"image_id": "first"},
        {"category_id": None},
    ],
    ids=str,
)
def test_damaged_detections_are_named(tmp_path, results, change):
    row = {"image_id": 0, "category_id": 1, "bbox": BOX, "score": 1} | change
    (tmp_path / "d.json").write_text(json.dumps([row]))
    with pytest.raises(DatasetError, match=r"d.json: not COCO detections"):
        validate(dataset(tmp_path, [person(1, [10, 10, 50, 80])], detections=tmp_path / "d.json"))


def test_nobody_to_evaluate_is_said(tmp_path, results):
    with pytest.raises(DatasetError, match="no person with labelled keypoints on its 1 images"):
        validate(dataset(tmp_path, [person(1, [10, 10, 50, 80], iscrowd=1)]))


def test_people_who_cannot_be_cropped_are_said(tmp_path):
    """Behind the corner of the picture, or without area."""
    people = [person(1, [-50, -50, -10, -10]), person(2, [500, 10, 5, 5]), person(3, [10, 10, 0, 5])]
    with pytest.raises(
        DatasetError, match=r"x.json: none of its 3 labelled people can be cropped: their boxes have no"
    ):
        dataset(tmp_path, people)


def test_detections_that_cannot_be_cropped_are_said(tmp_path):
    row = {"image_id": 0, "category_id": 1, "bbox": BOX, "score": 0.9}
    changes = ({"bbox": [1, 1, 0, 5]}, {"score": -1}, {"image_id": 8}, {"category_id": 2})
    rows = [row | change for change in changes]
    message = (
        r"d.json: holds no person to crop: 3 of its 4 rows are people \(category_id 1\), 2 of them on the images of "
        "person_keypoints_x.json, and none of those has a box with area and a score from 0"
    )
    with pytest.raises(DatasetError, match=message):
        dataset(tmp_path, [person(1, BOX)], detections=written(tmp_path / "d.json", rows))


# --- other tools' poses ----------------------------------------------------------------------------------------------


def pose(**changes):
    return {"image_id": 0, "category_id": 1, "keypoints": at(*FOUND), "score": 0.9} | changes


def test_numbers_in_text_and_other_fields_of_results(tmp_path):
    """With a bbox in the first row the evaluator would take every row's area from there."""
    data = dataset(tmp_path, [person(1, BOX)])
    rows = [pose(image_id="0", category_id="1", bbox="none", caption="a", segmentation=5), pose(image_id=8)]
    kept, elsewhere = data.predictions(written(tmp_path / "r.json", rows))
    assert kept == [{**pose(), "keypoints": pytest.approx(at(*FOUND))}]
    assert elsewhere == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([pose(), pose(category_id=3)], "row 1 is of category 3, and person_keypoints_x.json has 1"),
        ([pose(image_id="first")], "'first' is no whole number"),
        ([pose(score=float("inf"))], "row 0 has not 3 x 17 finite keypoint numbers and a score"),
        ([pose(keypoints=[1e300, 0, 1] * 17)], "row 0 has not 3 x 17 finite keypoint numbers"),
        ([pose(keypoints=[10**400, 0, 1] * 17)], "OverflowError"),
        ([pose(keypoints=None)], "TypeError"),
        ([5], "TypeError"),
        (5, "TypeError"),
    ],
)
def test_damaged_results_are_named(tmp_path, rows, message):
    data = dataset(tmp_path, [person(1, BOX)])
    with pytest.raises(DatasetError, match=r"r.json: not COCO keypoint results \(.*" + message):
        data.predictions(written(tmp_path / "r.json", rows))


def test_results_on_other_images_only(tmp_path):
    data = dataset(tmp_path, [person(1, BOX)])
    with pytest.raises(DatasetError, match=r"r.json: holds no poses on the images of person_keypoints_x.json"):
        data.predictions(written(tmp_path / "r.json", [pose(image_id=8)]))


def test_statistics_without_anybody_to_judge_are_undefined(tmp_path, capsys):
    """Of large people alone: AP of medium ones is -1 in the figures, and a dash in the table."""
    data = dataset(tmp_path, [person(1, BOX, area=97.0**2, keypoints=at(*FOUND))])
    path = written(tmp_path / "r.json", [pose(), pose(image_id=8), pose(image_id=9)])
    figures = score_predictions(path, "coco", data.path)
    assert figures["stats"]["AP_M"] == figures["stats"]["AR_M"] == -1
    assert figures["stats"]["AP"] == pytest.approx(100)
    assert (figures["poses"], figures["poses_on_other_images"]) == (1, 2)
    printed = capsys.readouterr().out
    assert [cell for cell in printed.split() if cell == "-"] == ["-", "-"]
    assert "1 poses, 2 on other images left out; COCO keypoint statistics" in printed
