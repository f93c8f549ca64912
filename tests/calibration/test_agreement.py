"""Agreement of two variants, on heatmaps whose peaks are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgepose import ModelSpec
from edgepose.calibration.agreement import Comparison

SPEC = ModelSpec.pose2d("m", (128, 96), "lsp14")
STEP = 95 / 23  # crop pixels per heatmap pixel


def heatmaps(peaks, scores):
    """(1, 14, 32, 24): a Gaussian of the given height at each joint's heatmap pixel."""
    ys, xs = np.mgrid[:32, :24]
    return np.stack(
        [s * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / 4.5) for (x, y), s in zip(peaks, scores, strict=True)]
    ).astype(np.float32)[None]


PEAKS = [(6 + k % 4 * 3, 6 + k // 4 * 5) for k in range(14)]


def moved(joint, by):
    return [(x + by, y) if k == joint else (x, y) for k, (x, y) in enumerate(PEAKS)]


def compare(*pairs, clip=None, regions=None):
    """Each pair is one crop: what the baseline and the other variant answer."""
    comparison = Comparison(SPEC, ("base", "other"), "base")
    for i, (base, other) in enumerate(pairs):
        crop = np.full((1, 128, 96, 3), i, np.uint8)
        region = None if regions is None else regions[i : i + 1]
        comparison.add({"base": base, "other": other}, crop, (f"crop {i}",), region, clip=clip)
    return comparison


def test_agreement_by_hand():
    """Two crops; the baseline finds all joints but one in the first and three in the second; one has moved by 2."""
    scores = np.full(14, 0.9)
    scores[13] = 0.1  # not found: may move as it likes
    few = np.where(np.arange(14) < 3, 0.5, 0.1)
    comparison = compare(
        (heatmaps(PEAKS, scores), heatmaps([(x + 2 * (k in (0, 13)), y) for k, (x, y) in enumerate(PEAKS)], scores)),
        (heatmaps(PEAKS, few), heatmaps(PEAKS, 0.9 * few)),
    )
    result = comparison.result()["other"]
    area = 96 * 128 / 1.25**2
    similar = math.exp(-((2 * STEP) ** 2) / (2 * area * (2 * SPEC.joints.sigmas[0]) ** 2))
    assert (result.crops, result.joints, result.share) == (2, 16, 16 / 28)
    assert result.mean_oks == pytest.approx((similar + 15) / 16, abs=1e-4)
    assert result.p5_oks == pytest.approx((similar + 12) / 13 + 0.05 * (1 - (similar + 12) / 13), abs=1e-4)
    assert result.mean_shift_px == pytest.approx(2 * STEP / 16, abs=0.02)
    assert result.joint_shift_px["right_ankle"] == pytest.approx(STEP, abs=0.02)  # moved in one of two crops
    assert "head_top" not in result.joint_shift_px
    assert result.shift_percentiles[100] == pytest.approx(2 * STEP, abs=0.05)
    assert result.score_ratio == pytest.approx(1, abs=1e-5)
    assert (result.lost, result.gained) == (0, 0)
    assert result.jitter_px is None
    assert comparison.result()["base"].mean_oks == 1


def test_agreement_counts_every_joint_where_the_baseline_finds_none():
    weak = heatmaps(PEAKS, np.full(14, 0.1))
    assert compare((weak, weak)).result()["other"].joints == 14


def test_scores_that_mean_something_else_are_seen():
    """Half the score: three of the joints fall below 0.2, the order stays, so the correlation is perfect."""
    scores = np.r_[np.full(3, 0.3), np.linspace(0.5, 0.9, 11)]
    result = compare((heatmaps(PEAKS, scores), heatmaps(PEAKS, scores / 2))).result()["other"]
    assert result.mean_oks == pytest.approx(1)
    assert result.score_ratio == pytest.approx(0.5, abs=1e-5)
    assert result.score_correlation == pytest.approx(1)
    assert result.lost == pytest.approx(3 / 14)
    assert result.score_bins[3].value == pytest.approx(0.15, abs=1e-4)
    reverse = compare((heatmaps(PEAKS, scores / 2), heatmaps(PEAKS, scores))).result()["other"]
    assert reverse.gained == pytest.approx(3 / 11)


def test_people_are_sliced_by_size():
    """The same answers, cropped from a person of 25 and one of 250 pixels."""
    regions = np.array([[50, 50, 25, 33.3], [300, 300, 250, 333]]) * [1, 1, 1.25, 1.25]
    good = heatmaps(PEAKS, np.full(14, 0.9))
    result = compare((good, heatmaps(moved(0, 4), np.full(14, 0.9))), (good, good), regions=regions).result()["other"]
    assert set(result.size_oks) == {"small", "large"}
    assert result.size_oks["small"] < 0.99
    assert result.size_oks["large"] == 1


def test_jitter_is_the_mean_acceleration_in_picture_pixels():
    """The other variant's joint 0 jumps by one heatmap pixel and back, in a region twice as wide."""
    regions = np.tile([100.0, 100, 191, 255], (3, 1))  # 190 / 95: two picture pixels per crop pixel
    strong = np.full(14, 0.9)
    still = heatmaps(PEAKS, strong)
    comparison = compare(
        (still, still), (still, heatmaps(moved(0, 1), strong)), (still, still), clip=7, regions=regions
    )
    result = comparison.result()
    assert result["base"].jitter_px == pytest.approx(0, abs=1e-4)
    assert result["other"].jitter_px == pytest.approx(2 * (2 * STEP) / 14, rel=0.01)  # |0 - 2 d + 0| of one in 14


def test_frames_of_different_clips_do_not_follow_each_other():
    still = heatmaps(PEAKS, np.full(14, 0.9))
    comparison = Comparison(SPEC, ("base",), "base")
    for clip in (0, 0, 1, 1):
        comparison.add({"base": still}, np.zeros((1, 128, 96, 3), np.uint8), ("x",), clip=clip)
    assert comparison.result()["base"].jitter_px is None


def test_the_worst_ten_are_kept_worst_first():
    strong = np.full(14, 0.9)
    base = heatmaps(PEAKS, strong)
    pairs = [(base, heatmaps(moved(0, i % 13), strong)) for i in range(26)]
    exhibits = compare(*pairs).exhibits("other")
    assert len(exhibits) == 10
    assert [e.name for e in exhibits[:2]] == ["crop 12", "crop 25"]  # moved by twelve; the first of equals first
    assert exhibits[0].crop[0, 0, 0] == 12
    assert [e.oks for e in exhibits] == sorted(e.oks for e in exhibits)
    np.testing.assert_allclose(exhibits[0].variant_xy[0] - exhibits[0].baseline_xy[0], [12 * STEP, 0], atol=0.1)


def test_a_variant_that_breaks_is_left_out():
    still = heatmaps(PEAKS, np.full(14, 0.9))
    comparison = compare((still, still))
    comparison.add({"base": still}, np.zeros((1, 128, 96, 3), np.uint8), ("x",))
    assert set(comparison.result()) == {"base"}
