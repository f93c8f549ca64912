"""Accuracy in pose units. In every function the first argument is the truth (or the FP32 model's answer)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgepose.calibration.evidence import Bin
from edgepose.similarity import oks

__all__ = [
    "SIZES",
    "drop_interval",
    "masked_mean",
    "oks_nms",
    "pck",
    "percentiles",
    "score_bins",
    "size_of",
    "within",
]

SIZES = ("small", "medium", "large")
"""COCO's classes of people by area: below 32 x 32 pixels, below 96 x 96, and above."""

_RESAMPLES = 1000

Floats = NDArray[np.float64]


def oks_nms(keypoints_xy: ArrayLike, scores: ArrayLike, areas_px: ArrayLike, sigmas: Sequence[float]) -> list[int]:
    """Indices of people that stay when those with OKS > 0.9 to a better one are dropped, best first.

    Args:
        keypoints_xy: (N, K, 2) pixels.
        scores: (N,).
        areas_px: (N,) square pixels; a pair is compared with the mean of its two areas.
        sigmas: K per-joint constants.
    """
    points, areas = np.asarray(keypoints_xy, float), np.asarray(areas_px, float)
    order = list(np.argsort(-np.asarray(scores, float), kind="stable"))
    kept: list[int] = []
    while order:
        best = int(order.pop(0))
        kept.append(best)
        rest = np.array(order, dtype=int)
        similar = oks(points[best], points[rest], (areas[best] + areas[rest]) / 2, sigmas).mean(axis=-1)
        order = [int(i) for i in rest[similar <= 0.9]]
    return kept


def within(truth_xy: ArrayLike, other_xy: ArrayLike, reference_px: ArrayLike, share: float) -> NDArray[np.bool_]:
    """(N, K) whether the error is below ``share`` of a reference length.

    Args:
        truth_xy, other_xy: (N, K, 2) pixels.
        reference_px: (N,) torso (PCK) or head (PCKh) length.
        share: For instance 0.2.
    """
    error = np.linalg.norm(np.asarray(truth_xy, float) - np.asarray(other_xy, float), axis=-1)
    return np.asarray(error < share * np.asarray(reference_px, float)[:, None])


def masked_mean(values: ArrayLike, mask: ArrayLike, axis: int | None = None) -> Any:
    """Mean of the values where the mask is true; NaN where it is true nowhere."""
    counts = np.asarray(mask, bool)
    total = np.where(counts, np.asarray(values, float), 0).sum(axis=axis)
    count = counts.sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)[()]


def pck(right: ArrayLike, labelled: ArrayLike, axis: int | None = None) -> Any:
    """Percentage of correct keypoints (Yang & Ramanan, TPAMI 2013).

    Args:
        right: (N, K) which joints are right: see :func:`within`.
        labelled: (N, K) which joints are labelled.
        axis: 0 for the K joints apart.

    Returns:
        Percent, or (K,) of them; NaN where nothing is labelled.
    """
    return 100 * masked_mean(right, labelled, axis)


def drop_interval(baseline: ArrayLike, other: ArrayLike, counts: ArrayLike) -> tuple[float, float] | None:
    """95 % confidence interval of how much a mean over joints drops: paired bootstrap over people (Efron 1979).

    Args:
        baseline, other: (N,) sums of each person's joints under the two variants.
        counts: (N,) how many joints those are.

    Returns:
        Lower and upper limit of mean(baseline) - mean(other); None with fewer than two people.
    """
    lost, joints = np.asarray(baseline, float) - np.asarray(other, float), np.asarray(counts, float)
    people = len(joints)
    if people < 2 or not joints.sum():
        return None
    rng = np.random.default_rng(0)
    drops = []
    for _ in range(_RESAMPLES):
        times = np.bincount(rng.integers(0, people, people), minlength=people)
        drops.append(times @ lost / max(times @ joints, 1))
    low, high = np.percentile(drops, [2.5, 97.5])
    return float(low), float(high)


def size_of(area_px: ArrayLike) -> NDArray[np.str_]:
    """Which of ``SIZES`` each area (N,) in square pixels belongs to."""
    return np.asarray(np.asarray(SIZES)[np.digitize(np.asarray(area_px, float), [32**2, 96**2])], np.str_)


def score_bins(scores: ArrayLike, values: ArrayLike, bins: int = 10) -> tuple[Bin, ...]:
    """Mean value in equal bins of the score from 0 to 1; scores beyond count into the outermost."""
    flat, held = np.ravel(scores), np.ravel(np.asarray(values, float))
    which = np.clip((flat * bins).astype(int), 0, bins - 1)
    return tuple(
        Bin(i / bins, (i + 1) / bins, int((which == i).sum()), float(masked_mean(held, which == i)))
        for i in range(bins)
    )


def percentiles(values: ArrayLike) -> tuple[float, ...]:
    """The 0th to 100th percentile: 101 values, none without values."""
    flat = np.ravel(values)
    return tuple(float(v) for v in np.percentile(flat, np.arange(101))) if len(flat) else ()
