"""How far a variant's poses are from the baseline's on the same crops: no labels needed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgepose.calibration.evidence import Agreement, Exhibit
from edgepose.calibration.metrics import SIZES, masked_mean, percentiles, score_bins, size_of
from edgepose.calibration.metrics_3d import acceleration
from edgepose.decode import decode
from edgepose.geometry import scale_and_shift
from edgepose.pipeline import Estimator
from edgepose.similarity import oks
from edgepose.types import ModelSpec

__all__ = ["Comparison", "CropNames", "compare_on_crops"]

CropNames = tuple[str, ...]
_EXHIBITS = 10

Floats = NDArray[np.float32]


@dataclass
class _Answers:
    """What one variant answered so far; keypoints in crop pixels."""

    keypoints: list[Floats] = field(default_factory=list)
    scores: list[Floats] = field(default_factory=list)
    max_abs_error: float = 0.0
    power: float = 0.0
    noise: float = 0.0
    worst: list[tuple[float, int, Exhibit]] = field(default_factory=list)

    @property
    def snr_db(self) -> float:
        return 10 * math.log10(self.power / self.noise) if self.noise and self.power else math.inf

    def exhibits(self) -> tuple[Exhibit, ...]:
        """Worst first."""
        return tuple(item for *_, item in sorted(self.worst, key=lambda entry: entry[:2], reverse=True))


class Comparison:
    """Collects variants' heatmaps batch by batch, and compares each with the baseline's.

    Memory stays flat: of each crop only keypoints and scores are kept, and of the worst ten their pixels.
    """

    def __init__(self, spec: ModelSpec, names: tuple[str, ...], baseline: str) -> None:
        self._spec = spec
        self._baseline = baseline
        self._answers = {name: _Answers() for name in names}
        self._regions: list[NDArray[np.float64]] = []
        self._areas: list[NDArray[np.float64]] = []
        self._clips: list[int | None] = []
        self._count = itertools.count()

    def add(
        self,
        heatmaps: Mapping[str, Floats],
        crops: NDArray[np.uint8],
        names: CropNames,
        regions: NDArray[np.float64] | None = None,
        areas_px: NDArray[np.float64] | None = None,
        clip: int | None = None,
    ) -> dict[str, tuple[Floats, Floats]]:
        """Add each variant's heatmaps (N, K, h, w) for the same crops.

        Args:
            heatmaps: By variant; a variant that is missing once is dropped.
            crops: (N, H, W, 3) uint8 RGB.
            names: Of the N crops, for people.
            regions: (N, 4) where they are from, picture pixels; by default the crops stand for themselves.
            areas_px: (N,) size of the people, square pixels; by default that of the regions without padding.
            clip: Crops that are added with the same number are of one person in consecutive frames.

        Returns:
            Each variant's keypoints (N, K, 2) in crop pixels, and scores (N, K).
        """
        width, height = self._spec.input_wh
        own = np.tile([(width - 1) / 2, (height - 1) / 2, width, height], (len(crops), 1))
        self._answers = {name: self._answers[name] for name in heatmaps}
        for name, maps in heatmaps.items():
            answers = self._answers[name]
            keypoints, scores = decode(maps, own)
            answers.keypoints.append(keypoints)
            answers.scores.append(scores)
            difference = maps - heatmaps[self._baseline]
            answers.max_abs_error = max(answers.max_abs_error, float(np.abs(difference).max(initial=0)))
            answers.power += float(np.square(heatmaps[self._baseline]).sum())
            answers.noise += float(np.square(difference).sum())
        regions = own if regions is None else regions
        self._regions.append(regions)
        padded = regions[:, 2] * regions[:, 3]
        self._areas.append(padded / self._spec.crop_padding**2 if areas_px is None else areas_px)
        self._clips += [clip] * len(crops)
        self._keep_worst(crops, names)
        return {name: (answers.keypoints[-1], answers.scores[-1]) for name, answers in self._answers.items()}

    def result(self) -> dict[str, Agreement]:
        """Agreement of every variant with the baseline (the baseline's own is exact)."""
        joined = {name: (np.concatenate(a.keypoints), np.concatenate(a.scores)) for name, a in self._answers.items()}
        regions = np.concatenate(self._regions)
        return {name: self._agreement(joined[self._baseline], joined[name], regions, name) for name in joined}

    def exhibits(self, name: str) -> tuple[Exhibit, ...]:
        """The crops on which a variant is furthest from the baseline, worst first."""
        return self._answers[name].exhibits()

    def _agreement(
        self, baseline: tuple[Floats, Floats], other: tuple[Floats, Floats], regions: NDArray[np.float64], name: str
    ) -> Agreement:
        (truth, truth_scores), (points, scores) = baseline, other
        spec, answers = self._spec, self._answers[name]
        found, similarity = self._found(truth_scores), self._similarity(truth, points)
        shift = np.linalg.norm(truth - points, axis=-1)
        crops = found.any(axis=1)
        sizes = size_of(np.concatenate(self._areas))
        seen, seen_by_other = truth_scores >= spec.score_threshold, scores >= spec.score_threshold
        ratio = scores[found] / np.maximum(np.abs(truth_scores[found]), 1e-6)
        return Agreement(
            crops=len(truth),
            joints=int(found.sum()),
            share=float(found.mean()),
            mean_oks=float(similarity[found].mean()),
            p5_oks=float(np.percentile(masked_mean(similarity, found, axis=1)[crops], 5)),
            mean_shift_px=float(shift[found].mean()),
            p95_shift_px=float(np.percentile(shift[found], 95)),
            joint_shift_px={
                joint: float(shift[found[:, k], k].mean())
                for k, joint in enumerate(spec.joints.joints)
                if found[:, k].any()
            },
            size_oks={
                size: float(similarity[sizes == size][found[sizes == size]].mean())
                for size in SIZES
                if found[sizes == size].any()
            },
            shift_percentiles=percentiles(shift[found]),
            score_ratio=float(np.median(ratio)),
            score_correlation=_correlation(truth_scores.ravel(), scores.ravel()),
            score_bins=score_bins(truth_scores, scores),
            lost=float((seen & ~seen_by_other).sum() / max(seen.sum(), 1)),
            gained=float((seen_by_other & ~seen).sum() / max(seen.sum(), 1)),
            jitter_px=self._jitter(points, found, regions),
            max_abs_error=answers.max_abs_error,
            snr_db=answers.snr_db,
        )

    def _found(self, scores: Floats) -> NDArray[np.bool_]:
        """Joints that count: peaks of noise do not, unless the baseline has no others, as with random weights."""
        found = np.asarray(scores >= self._spec.score_threshold)
        return found if found.any() else np.ones_like(found)

    def _similarity(self, truth: Floats, points: Floats) -> NDArray[np.float64]:
        """OKS per joint; the crop without its padding stands for the person's area."""
        width, height = self._spec.input_wh
        area = width * height / self._spec.crop_padding**2
        return oks(truth, points, np.full(len(truth), area), self._spec.joints.sigmas)

    def _jitter(self, points: Floats, found: NDArray[np.bool_], regions: NDArray[np.float64]) -> float | None:
        """Mean acceleration over frames whose neighbours are in the same clip, picture pixels per frame squared."""
        clips = np.array([-1 if clip is None else clip for clip in self._clips])
        middle = (clips[1:-1] >= 0) & (clips[:-2] == clips[1:-1]) & (clips[2:] == clips[1:-1])
        if not middle.any():
            return None
        scale, shift = scale_and_shift(regions, self._spec.input_wh)
        in_picture = points * scale[:, None, None] + shift[:, None]
        steady = found[:-2] & found[1:-1] & found[2:] & middle[:, None]
        jitter = float(masked_mean(acceleration(in_picture), steady))
        return jitter if math.isfinite(jitter) else None

    def _keep_worst(self, crops: NDArray[np.uint8], names: CropNames) -> None:
        base = self._answers[self._baseline]
        for name, answers in self._answers.items():
            if name == self._baseline:
                continue
            similarity = self._similarity(base.keypoints[-1], answers.keypoints[-1])
            found = base.scores[-1] >= self._spec.score_threshold
            per_crop = masked_mean(similarity, np.where(found.any(axis=1, keepdims=True), found, True), axis=1)
            for i in np.argsort(per_crop, kind="stable")[:_EXHIBITS]:
                entry = (1 - float(per_crop[i]), -next(self._count))
                if len(answers.worst) < _EXHIBITS or entry > answers.worst[0][:2]:
                    exhibit = _exhibit(names[i], crops[i], base, answers, i, float(per_crop[i]))
                    answers.worst = sorted([*answers.worst, (*entry, exhibit)])[-_EXHIBITS:]


def compare_on_crops(
    estimators: Mapping[str, Estimator],
    crops: NDArray[np.uint8],
    names: Sequence[str],
    baseline: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Comparison:
    """Run every estimator on crops (N, H, W, 3) uint8 RGB, named for people, and compare with the baseline."""
    comparison = Comparison(estimators[baseline].spec, tuple(estimators), baseline)
    for i in range(len(crops)):
        part = crops[i : i + 1]
        heatmaps = {name: estimator.heatmaps(part) for name, estimator in estimators.items()}
        comparison.add(heatmaps, part, (names[i],))
        progress(i + 1, len(crops))
    return comparison


def _exhibit(name: str, crop: NDArray[np.uint8], base: _Answers, other: _Answers, i: int, similarity: float) -> Exhibit:
    return Exhibit(
        name=name,
        crop=crop.copy(),
        baseline_xy=base.keypoints[-1][i],
        baseline_scores=base.scores[-1][i],
        variant_xy=other.keypoints[-1][i],
        variant_scores=other.scores[-1][i],
        oks=similarity,
    )


def _correlation(a: Floats, b: Floats) -> float:
    """Pearson's; NaN where a side is constant."""
    if len(a) < 2 or not (np.ptp(a) and np.ptp(b)):
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])
