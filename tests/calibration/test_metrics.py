"""Metrics against hand-worked cases, an independent formula, and the reference's statistics."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from edgepose import DatasetError
from edgepose.calibration.metrics import COCO_STATS, agreement, coco_average_precision, oks, oks_nms, pck
from edgepose.skeletons import get_skeleton

SIGMAS = get_skeleton("coco17").sigmas


def test_oks_by_hand():
    """One joint, 3-4-5 triangle: exp(-25 / (2 * 100 * (2 * 0.1)^2))."""
    assert oks([[0, 0]], [[3, 4]], 100, [0.1])[0] == pytest.approx(math.exp(-25 / 8))
    assert oks([[5, 5]], [[5, 5]], 100, [0.1])[0] == 1


def test_oks_nms_keeps_the_best_of_near_copies():
    rng = np.random.default_rng(0)
    person = rng.uniform(0, 200, (17, 2))
    people = np.stack([person + 300, person, person + 0.5, person + 1])
    assert oks_nms(people, [0.5, 0.6, 0.9, 0.7], [20000] * 4, SIGMAS) == [2, 0]
    assert oks_nms(np.zeros((0, 17, 2)), [], [], SIGMAS) == []


def test_pck_by_hand():
    truth = np.zeros((4, 3, 2))
    other = np.zeros((4, 3, 2))
    other[:, 0, 0] = [1.9, 2.1, 1.9, 0]  # of 10: 0.2 is 2 px
    other[:, 1, 0] = 5
    visible = np.array([[1, 1, 0], [1, 1, 0], [1, 0, 0], [0, 1, 0]], bool)
    result = pck(truth, other, visible, [10] * 4, 0.2)
    assert result[:2].tolist() == [pytest.approx(200 / 3), 0]
    assert np.isnan(result[2])


def compare(truth, other, truth_scores, scores):
    return agreement(
        (truth, truth_scores),
        (other, scores),
        crop_wh=(96, 128),
        padding=1.25,
        threshold=0.2,
        joints=("a", "b", "c"),
        sigmas=(0.1, 0.1, 0.1),
    )


def test_agreement_by_hand():
    """Two crops, three joints; the baseline finds a and b in the first crop and a in the second."""
    truth = np.zeros((2, 3, 2))
    other = truth.copy()
    other[0, 0] = (3, 4)
    other[:, 2] = (90, 90)  # c is not found by the baseline: does not count
    result = compare(truth, other, np.array([[0.9, 0.5, 0.1], [0.3, 0.1, 0.1]]), np.full((2, 3), 0.45))
    area = 96 * 128 / 1.25**2
    similar = math.exp(-25 / (2 * area * 0.2**2))
    assert (result.crops, result.joints, result.share) == (2, 3, 0.5)
    assert result.mean_oks == pytest.approx((similar + 2) / 3)
    assert result.p5_oks == pytest.approx((similar + 1) / 2 + 0.05 * (1 - similar) / 2)
    assert result.mean_shift_px == pytest.approx(5 / 3)
    assert result.joint_shift_px == {"a": 2.5, "b": 0.0}
    assert result.score_ratio == pytest.approx(0.9)


def test_agreement_counts_every_joint_where_the_baseline_finds_none():
    truth, other = np.zeros((1, 3, 2)), np.full((1, 3, 2), 2.0)
    assert compare(truth, other, np.zeros((1, 3)), np.zeros((1, 3))).joints == 3


def coco_file(folder, people):
    """A tiny ground truth: one image per person."""
    names = list(get_skeleton("coco17").joints)
    data = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in range(len(people))],
        "annotations": [
            {
                "id": i + 1,
                "image_id": i,
                "category_id": 1,
                "iscrowd": 0,
                "num_keypoints": 17,
                "area": 200.0 * 200,
                "bbox": [100, 100, 200, 200],
                "keypoints": np.c_[person, np.full(17, 2)].ravel().tolist(),
            }
            for i, person in enumerate(people)
        ],
        "categories": [{"id": 1, "name": "person", "keypoints": names, "skeleton": []}],
    }
    path = folder / "person_keypoints_tiny.json"
    path.write_text(json.dumps(data))
    return path


def results(people):
    return [
        {"image_id": i, "category_id": 1, "keypoints": np.c_[p, np.ones(17)].ravel().tolist(), "score": 0.9}
        for i, p in enumerate(people)
    ]


@pytest.mark.parametrize("shift_px", [0, 5, 10, 20, 400])
def test_average_precision_of_a_known_shift(tmp_path, shift_px):
    """Everybody is off by the same distance: AP is the share of the ten OKS thresholds 0.5 ... 0.95 that it passes."""
    people = np.random.default_rng(0).uniform(100, 300, (5, 17, 2))
    found = coco_average_precision(coco_file(tmp_path, people), results(people + np.array([shift_px, 0])), SIGMAS)
    similarity = sum(math.exp(-(shift_px**2) / (2 * 200 * 200 * (2 * sigma) ** 2)) for sigma in SIGMAS) / 17
    passed = sum(0.5 + 0.05 * i <= similarity for i in range(10))
    assert found["AP"] == pytest.approx(passed / 10, abs=1e-6)
    assert set(found) == set(COCO_STATS)


def test_images_that_are_not_evaluated_do_not_count(tmp_path):
    people = np.random.default_rng(0).uniform(100, 300, (4, 17, 2))
    path = coco_file(tmp_path, people)
    assert coco_average_precision(path, results(people[:2]), SIGMAS)["AR"] == pytest.approx(0.5)
    assert coco_average_precision(path, results(people[:2]), SIGMAS, [0, 1])["AR"] == pytest.approx(1)


def test_no_results_is_an_error(tmp_path):
    with pytest.raises(DatasetError, match=r"person_keypoints_tiny.json: no poses to evaluate"):
        coco_average_precision(coco_file(tmp_path, np.zeros((1, 17, 2))), [], SIGMAS)


def test_equals_the_reference_statistics(shared):
    folder = shared / "data" / "coco-sample"
    expected = json.loads((shared / "golden" / "noisy_predictions_stats.json").read_text())
    predictions = json.loads((folder / "noisy_predictions.json").read_text())
    found = coco_average_precision(folder / "person_keypoints_val2017.json", predictions, SIGMAS)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6)
