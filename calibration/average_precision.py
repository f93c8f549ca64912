"""COCO average precision of keypoints, by faster-coco-eval."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgepose.errors import DatasetError, EngineUnavailable

__all__ = ["COCO_STATS", "average_precision", "require_evaluator"]

COCO_STATS = ("AP", "AP50", "AP75", "AP_M", "AP_L", "AR", "AR50", "AR75", "AR_M", "AR_L")


def require_evaluator() -> Any:
    """The evaluator's module.

    Raises:
        EngineUnavailable: faster-coco-eval is not installed.
    """
    try:
        import faster_coco_eval
    except ImportError as error:
        raise EngineUnavailable(f"COCO AP needs faster-coco-eval ({error}): pip install 'edgepose[validate]'") from None
    return faster_coco_eval


def average_precision(
    annotations: Mapping[str, Any],
    results: list[dict[str, Any]],
    sigmas: Sequence[float],
    image_ids: Sequence[int] | None = None,
) -> dict[str, float]:
    """COCO keypoint statistics.

    Args:
        annotations: Content of a ``person_keypoints_*.json``.
        results: Rows of image_id, category_id, keypoints [x, y, score] * K, score.
        sigmas: K OKS constants.
        image_ids: Evaluate these images only; by default all.

    Returns:
        The ten names of ``COCO_STATS``, 0-1 (-1 where undefined).

    Raises:
        EngineUnavailable: faster-coco-eval is not installed.
        DatasetError: There are no results.
    """
    evaluation = require_evaluator()
    if not results:
        raise DatasetError("no poses to evaluate")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = evaluation.COCO(annotations)
        evaluator = evaluation.COCOeval_faster(truth, truth.loadRes(results), "keypoints")
        evaluator.params.kpt_oks_sigmas = np.asarray(sigmas)
        if image_ids is not None:
            evaluator.params.imgIds = sorted(image_ids)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return {name: float(value) for name, value in zip(COCO_STATS, evaluator.stats[:10], strict=True)}
