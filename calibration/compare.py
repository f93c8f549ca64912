"""Variants of one model on the same crops: how far apart their poses are, without labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgepose.calibration.metrics import Agreement, agreement
from edgepose.decode import decode
from edgepose.pipeline import Estimator
from edgepose.types import ModelSpec

__all__ = ["Comparison", "compare_on_crops"]


@dataclass
class _Answers:
    """What one variant answered so far, in crop pixels."""

    keypoints: list[NDArray[np.float32]] = field(default_factory=list)
    scores: list[NDArray[np.float32]] = field(default_factory=list)
    max_abs_error: float = 0.0
    power: float = 0.0
    noise: float = 0.0

    @property
    def snr_db(self) -> float:
        return 10 * math.log10(self.power / self.noise) if self.noise and self.power else math.inf


class Comparison:
    """Collects variants' heatmaps batch by batch, and compares each with the baseline."""

    def __init__(self, spec: ModelSpec, names: tuple[str, ...], baseline: str) -> None:
        self._spec = spec
        self._baseline = baseline
        self._answers = {name: _Answers() for name in names}

    def add(self, heatmaps: Mapping[str, NDArray[np.float32]]) -> None:
        """Add each variant's heatmaps (N, K, h, w) for the same crops."""
        width, height = self._spec.input_wh
        for name, maps in heatmaps.items():
            regions = np.tile([(width - 1) / 2, (height - 1) / 2, width, height], (len(maps), 1))
            keypoints, scores = decode(maps, regions)
            answers = self._answers[name]
            answers.keypoints.append(keypoints)
            answers.scores.append(scores)
            difference = maps - heatmaps[self._baseline]
            answers.max_abs_error = max(answers.max_abs_error, float(np.abs(difference).max(initial=0)))
            answers.power += float(np.square(heatmaps[self._baseline]).sum())
            answers.noise += float(np.square(difference).sum())

    def result(self) -> dict[str, Agreement]:
        """Agreement of every variant with the baseline (the baseline's own is exact)."""
        skeleton = self._spec.joints
        joined = {
            name: (np.concatenate(answers.keypoints), np.concatenate(answers.scores))
            for name, answers in self._answers.items()
        }
        return {
            name: agreement(
                joined[self._baseline],
                joined[name],
                crop_wh=self._spec.input_wh,
                padding=self._spec.crop_padding,
                threshold=self._spec.score_threshold,
                joints=skeleton.joints,
                sigmas=skeleton.sigmas,
                max_abs_error=answers.max_abs_error,
                snr_db=answers.snr_db,
            )
            for name, answers in self._answers.items()
        }


def compare_on_crops(
    estimators: Mapping[str, Estimator],
    crops: NDArray[np.uint8],
    baseline: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Agreement]:
    """Run every estimator on crops (N, H, W, 3) uint8 RGB and compare with the baseline's answers."""
    comparison = Comparison(estimators[baseline].spec, tuple(estimators), baseline)
    for i in range(len(crops)):
        comparison.add({name: estimator.heatmaps(crops[i : i + 1]) for name, estimator in estimators.items()})
        progress(i + 1, len(crops))
    return comparison.result()
