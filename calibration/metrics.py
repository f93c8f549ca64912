"""Accuracy in pose units. In every function the first argument is the truth (or the FP32 model's answer)."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgepose.errors import DatasetError, EngineUnavailable

__all__ = ["COCO_STATS", "Agreement", "agreement", "coco_average_precision", "oks", "oks_nms", "pck"]

COCO_STATS = ("AP", "AP50", "AP75", "AP_M", "AP_L", "AR", "AR50", "AR75", "AR_M", "AR_L")

Floats = NDArray[np.float64]


def oks(truth_xy: ArrayLike, other_xy: ArrayLike, area_px: ArrayLike, sigmas: Sequence[float]) -> Floats:
    """Object keypoint similarity of each joint: exp(-d^2 / (2 area (2 sigma)^2)) (COCO keypoint evaluation).

    Args:
        truth_xy, other_xy: (..., K, 2) pixels.
        area_px: (...) person's area in square pixels.
        sigmas: K per-joint constants.

    Returns:
        (..., K) in 0-1. The similarity of a person is the mean over joints that count.
    """
    squared = ((np.asarray(truth_xy, float) - np.asarray(other_xy, float)) ** 2).sum(axis=-1)
    variance = (2 * np.asarray(sigmas)) ** 2
    area = np.asarray(area_px, float)[..., None] + np.spacing(1)
    return np.asarray(np.exp(-squared / (2 * area * variance)))


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


def pck(truth_xy: ArrayLike, other_xy: ArrayLike, visible: ArrayLike, reference_px: ArrayLike, share: float) -> Floats:
    """Percentage of correct keypoints, per joint: error below ``share`` of a reference length.

    Args:
        truth_xy, other_xy: (N, K, 2) pixels.
        visible: (N, K) whether the joint is labelled.
        reference_px: (N,) torso or head length.
        share: For instance 0.2.

    Returns:
        (K,) percent; NaN for a joint that is nowhere labelled.
    """
    error = np.linalg.norm(np.asarray(truth_xy, float) - np.asarray(other_xy, float), axis=-1)
    labelled = np.asarray(visible, bool)
    correct = (error < share * np.asarray(reference_px, float)[:, None]) & labelled
    total = labelled.sum(axis=0)
    return np.where(total > 0, 100 * correct.sum(axis=0) / np.maximum(total, 1), np.nan)


@dataclass(frozen=True)
class Agreement:
    """How far one variant's poses are from the baseline's on the same crops, without labels.

    Attributes:
        crops: Number of crops compared.
        joints: Number of joints compared: those that the baseline itself finds.
        share: Part of all joints that this is.
        mean_oks: Mean similarity of those joints, 1 is equal.
        p5_oks: 5th percentile of the crops' similarity: how the worst crops fare.
        mean_shift_px, p95_shift_px: Distance of those joints, crop pixels.
        joint_shift_px: Mean distance per joint name, crop pixels; joints that are nowhere found are left out.
        score_ratio: Median of the variant's score over the baseline's.
        max_abs_error: Largest difference of any heatmap value.
        snr_db: Power of the baseline's heatmaps over that of the difference, decibels; infinite where equal.
    """

    crops: int
    joints: int
    share: float
    mean_oks: float
    p5_oks: float
    mean_shift_px: float
    p95_shift_px: float
    joint_shift_px: Mapping[str, float]
    score_ratio: float
    max_abs_error: float
    snr_db: float


def agreement(
    baseline: tuple[ArrayLike, ArrayLike],
    other: tuple[ArrayLike, ArrayLike],
    *,
    crop_wh: tuple[int, int],
    padding: float,
    threshold: float,
    joints: Sequence[str],
    sigmas: Sequence[float],
    max_abs_error: float = float("nan"),
    snr_db: float = float("nan"),
) -> Agreement:
    """Compare two variants' answers for the same crops.

    Joints that the baseline does not find (score below ``threshold``) are peaks of noise and are left out; where
    it finds none at all, as with random weights, every joint counts.

    Args:
        baseline, other: Keypoints (N, K, 2) in crop pixels and scores (N, K).
        crop_wh: Size of a crop.
        padding: The person's box is the crop divided by this; OKS takes the box as the person's area.
        threshold: Score from which a joint counts as found.
        joints: K names.
        sigmas: K OKS constants.
        max_abs_error, snr_db: Heatmap differences, carried along.
    """
    truth, truth_scores = (np.asarray(a, float) for a in baseline)
    points, scores = (np.asarray(a, float) for a in other)
    found = truth_scores >= threshold
    if not found.any():
        found = np.ones_like(found)
    area = crop_wh[0] * crop_wh[1] / padding**2
    similarity = oks(truth, points, np.full(len(truth), area), sigmas)
    shift = np.linalg.norm(truth - points, axis=-1)
    crops = found.any(axis=1)
    per_crop = np.where(found, similarity, 0).sum(axis=1)[crops] / found.sum(axis=1)[crops]
    per_joint = {name: float(shift[found[:, k], k].mean()) for k, name in enumerate(joints) if found[:, k].any()}
    ratio = scores[found] / np.maximum(np.abs(truth_scores[found]), 1e-6)
    return Agreement(
        crops=len(truth),
        joints=int(found.sum()),
        share=float(found.mean()),
        mean_oks=float(similarity[found].mean()),
        p5_oks=float(np.percentile(per_crop, 5)),
        mean_shift_px=float(shift[found].mean()),
        p95_shift_px=float(np.percentile(shift[found], 95)),
        joint_shift_px=per_joint,
        score_ratio=float(np.median(ratio)),
        max_abs_error=max_abs_error,
        snr_db=snr_db,
    )


def coco_average_precision(
    annotations: Path,
    results: list[dict[str, Any]],
    sigmas: Sequence[float],
    image_ids: Sequence[int] | None = None,
) -> dict[str, float]:
    """COCO keypoint statistics, by faster-coco-eval.

    Args:
        annotations: A ``person_keypoints_*.json``.
        results: Rows of image_id, category_id, keypoints [x, y, score] * K, score.
        sigmas: K OKS constants.
        image_ids: Evaluate these images only; by default all.

    Returns:
        The ten names of ``COCO_STATS``, 0-1 (-1 where undefined).

    Raises:
        EngineUnavailable: faster-coco-eval is not installed.
        DatasetError: There are no results, or the annotations do not fit them.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise EngineUnavailable(f"COCO AP needs faster-coco-eval ({error}): pip install 'edgepose[validate]'") from None
    if not results:
        raise DatasetError(f"{annotations}: no poses to evaluate")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(json.loads(annotations.read_text(encoding="utf-8")))
        evaluator = COCOeval_faster(truth, truth.loadRes(results), "keypoints")
        evaluator.params.kpt_oks_sigmas = np.asarray(sigmas)
        if image_ids is not None:
            evaluator.params.imgIds = sorted(image_ids)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return {name: float(value) for name, value in zip(COCO_STATS, evaluator.stats[:10], strict=True)}
