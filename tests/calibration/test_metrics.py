"""Metrics against hand-worked cases, an independent formula, and the reference's statistics."""

from __future__ import annotations

import contextlib
import io
import json
import math

import numpy as np
import pytest

from edgepose import DatasetError
from edgepose.calibration.average_precision import COCO_STATS, average_precision
from edgepose.calibration.metrics import oks_nms, pck, percentiles, score_bins, size_of, within
from edgepose.similarity import oks
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
    right = within(truth, other, [10] * 4, 0.2)
    by_joint = pck(right, visible, axis=0)
    assert by_joint[:2].tolist() == [pytest.approx(200 / 3), 0]
    assert np.isnan(by_joint[2])
    assert pck(right, visible) == pytest.approx(100 * 2 / 6)


def test_within_is_below_and_not_at():
    assert within([[[0, 0]]], [[[2, 0]]], [10], 0.2).tolist() == [[False]]
    assert within([[[0, 0]]], [[[1.999, 0]]], [10], 0.2).tolist() == [[True]]


def test_sizes_are_cocos():
    assert size_of([32**2 - 1, 32**2, 96**2 - 1, 96**2]).tolist() == ["small", "medium", "medium", "large"]


def test_score_bins_by_hand():
    """Scores beyond 0-1, as untrained models have, count into the outermost bins."""
    bins = score_bins([-0.5, 0.04, 0.15, 0.95, 1.7], [1, 3, 5, 7, 9])
    assert [(b.count, b.value) for b in bins if b.count] == [(2, 2), (1, 5), (2, 8)]
    assert (bins[1].low, bins[1].high) == (0.1, 0.2)
    assert np.isnan(bins[5].value)


def test_percentiles_of_nothing_are_none():
    assert percentiles([]) == ()
    assert percentiles(np.arange(101))[37] == 37


def annotations(people):
    """A tiny ground truth: one image per person."""
    names = list(get_skeleton("coco17").joints)
    return {
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


def results(people):
    return [
        {"image_id": i, "category_id": 1, "keypoints": np.c_[p, np.ones(17)].ravel().tolist(), "score": 0.9}
        for i, p in enumerate(people)
    ]


@pytest.mark.parametrize("shift_px", [0, 5, 10, 20, 400])
def test_average_precision_of_a_known_shift(shift_px):
    """Everybody is off by the same distance: AP is the share of the ten OKS thresholds 0.5 ... 0.95 that it passes."""
    people = np.random.default_rng(0).uniform(100, 300, (5, 17, 2))
    found = average_precision(annotations(people), results(people + np.array([shift_px, 0])), SIGMAS)
    similarity = sum(math.exp(-(shift_px**2) / (2 * 200 * 200 * (2 * sigma) ** 2)) for sigma in SIGMAS) / 17
    passed = sum(0.5 + 0.05 * i <= similarity for i in range(10))
    assert found["AP"] == pytest.approx(passed / 10, abs=1e-6)
    assert set(found) == set(COCO_STATS)


def test_images_that_are_not_evaluated_do_not_count():
    people = np.random.default_rng(0).uniform(100, 300, (4, 17, 2))
    truth = annotations(people)
    assert average_precision(truth, results(people[:2]), SIGMAS)["AR"] == pytest.approx(0.5)
    assert average_precision(truth, results(people[:2]), SIGMAS, [0, 1])["AR"] == pytest.approx(1)


def test_no_results_is_an_error():
    with pytest.raises(DatasetError, match="no poses to evaluate"):
        average_precision(annotations(np.zeros((1, 17, 2))), [], SIGMAS)


def test_equals_the_reference_statistics(shared):
    folder = shared / "data" / "coco-sample"
    expected = json.loads((shared / "golden" / "noisy_predictions_stats.json").read_text())
    predictions = json.loads((folder / "noisy_predictions.json").read_text())
    found = average_precision(json.loads((folder / "person_keypoints_val2017.json").read_text()), predictions, SIGMAS)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6)


def test_equals_pycocotools():
    """The reference implementation, on random truth (hidden, missing and crowded people) and noisy predictions."""
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    rng = np.random.default_rng(1)
    people = rng.uniform(50, 400, (40, 17, 2))
    truth = annotations(people)
    for i, row in enumerate(truth["annotations"]):
        visible = rng.random(17) < 0.7
        row["keypoints"] = np.c_[people[i], 2 * visible].ravel().tolist()
        row |= {"num_keypoints": int(visible.sum()), "image_id": i // 3, "area": float(rng.uniform(900, 40000))}
        row["iscrowd"] = int(i % 13 == 0)
    found = results(people + rng.normal(0, 12, people.shape))
    for i, row in enumerate(found):
        row |= {"image_id": i // 3, "score": float(rng.random())}
    with contextlib.redirect_stdout(io.StringIO()):
        reference = coco.COCO()
        reference.dataset = json.loads(json.dumps(truth))
        reference.createIndex()
        evaluator = evaluation.COCOeval(reference, reference.loadRes(found), "keypoints")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    ours = average_precision(truth, found, SIGMAS)
    assert 0 < ours["AP"] < 1
    assert list(ours.values()) == pytest.approx(list(evaluator.stats), abs=1e-9)
