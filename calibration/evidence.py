"""What a validation finds out, as values: accuracy against labels, agreement with the baseline, provenance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Accuracy",
    "Agreement",
    "Bin",
    "Exhibit",
    "LiftAgreement",
    "LiftEvidence",
    "LiftValidation",
    "Validation",
    "VariantEvidence",
    "evidence_dict",
]


@dataclass(frozen=True)
class Bin:
    """Joints whose score lies between ``low`` and ``high``: how many, and the mean of something over them.

    Attributes:
        low, high: Limits of the score, 0-1.
        count: How many joints.
        value: Mean over them; NaN where there are none.
    """

    low: float
    high: float
    count: int
    value: float


@dataclass(frozen=True)
class Accuracy:
    """One variant against labels.

    Attributes:
        metric: Headline, for instance ``AP``, ``PCK@0.2``, ``MPJPE``.
        value: The headline's value in ``unit``.
        unit: ``points`` (0-100) or ``mm``.
        higher_is_better: False for errors.
        people: People judged.
        stats: Everything that the protocol reports, by name, in ``unit``; -1 or NaN where undefined.
        joint_metric: What ``per_joint`` and ``per_size`` hold, for instance ``OKS`` or ``PCK@0.2``.
        per_joint: Joint name -> value in ``unit``; joints without labels are left out.
        per_size: ``small``, ``medium``, ``large`` (COCO's limits, 32 x 32 and 96 x 96 pixels, on the annotated
            area, else the box) -> value.
        reliability: Score bins -> share (0-100) of joints that are right: does a score keep its meaning?
        error_percentiles: 101 values: the 0th to 100th percentile of the distance to the truth, crop pixels.
        remarks: What a reader must know, for instance which joints had no counterpart.
    """

    metric: str
    value: float
    unit: str
    higher_is_better: bool
    people: int
    stats: Mapping[str, float]
    joint_metric: str = ""
    per_joint: Mapping[str, float] = field(default_factory=dict)
    per_size: Mapping[str, float] = field(default_factory=dict)
    reliability: tuple[Bin, ...] = ()
    error_percentiles: tuple[float, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def defined(self) -> bool:
        """Whether there is a headline: COCO's statistics are -1 where nothing could be judged."""
        return math.isfinite(self.value) and self.value >= 0

    def drop_of(self, other: Accuracy) -> float:
        """How much worse ``other`` is than this one, in ``unit``; negative where it is better, NaN where undefined."""
        if not (self.defined and other.defined):
            return math.nan
        return self.value - other.value if self.higher_is_better else other.value - self.value


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
        size_oks: ``small``, ``medium``, ``large`` people (see :class:`Accuracy`) -> mean similarity.
        shift_percentiles: 101 values: the 0th to 100th percentile of the distance, crop pixels.
        score_ratio: Median of the variant's score over the baseline's.
        score_correlation: Pearson correlation of the two scores over all joints; NaN where a side is constant.
        score_bins: Bins of the baseline's score -> the variant's mean score in each.
        lost, gained: Joints that only the baseline, or only the variant, finds, as a part of those the baseline finds.
        jitter_px: Mean acceleration of the joints in consecutive frames, picture pixels per frame squared;
            None where the data are no video.
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
    size_oks: Mapping[str, float]
    shift_percentiles: tuple[float, ...]
    score_ratio: float
    score_correlation: float
    score_bins: tuple[Bin, ...]
    lost: float
    gained: float
    jitter_px: float | None
    max_abs_error: float
    snr_db: float


@dataclass(frozen=True, eq=False)
class Exhibit:
    """One crop on which a variant and the baseline differ.

    Attributes:
        name: The picture, with the person's number in it.
        crop: (H, W, 3) uint8 RGB.
        baseline_xy, variant_xy: (K, 2) crop pixels.
        baseline_scores, variant_scores: (K,).
        oks: Similarity of the two over the joints that the baseline finds.
    """

    name: str
    crop: NDArray[np.uint8]
    baseline_xy: NDArray[np.float32]
    baseline_scores: NDArray[np.float32]
    variant_xy: NDArray[np.float32]
    variant_scores: NDArray[np.float32]
    oks: float


@dataclass(frozen=True)
class VariantEvidence:
    """One variant.

    Attributes:
        variant: Its name.
        engine: Engine and device, for instance ``onnxruntime cpu``.
        accuracy: Against labels, or None without.
        agreement: With the baseline (the baseline's own is exact).
        seconds: Wall time in the engine over all crops.
        worst: The crops that differ most from the baseline, worst first.
        megabytes: Size of its files, where known.
        latency_ms: Median of one crop alone, interleaved with the other variants, where it was measured.
        drop_interval: The drop from the baseline lies between these two with 95 % confidence (paired bootstrap over
            people); None for the baseline, and for metrics that are no mean over joints.
    """

    variant: str
    engine: str
    accuracy: Accuracy | None
    agreement: Agreement
    seconds: float
    worst: tuple[Exhibit, ...] = ()
    megabytes: float | None = None
    latency_ms: float | None = None
    drop_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Validation:
    """What was measured, and on what.

    Attributes:
        kind: Kind of data, for instance ``coco``.
        data: The annotation file, archive, folder or video.
        data_sha256: File name -> hash of the files that pin the data; empty for a folder of pictures.
        boxes: Where the boxes are from: ``ground truth``, a detection file, or ``search``.
        skeleton: Name of the model's skeleton.
        baseline: The variant that the others are compared with.
        flip: Whether the flip test was on.
        score_threshold: Joints that score less count as not found.
        images, crops: How many were measured.
        skipped: Pictures that could not be read and count nowhere.
        rows: One per variant that ran.
        failed: Variant -> why it did not run, or not to the end: it is broken.
        absent: Variant -> which engine or device it needs that this machine does not have.
        cpu_seconds: CPU time of the process, all threads together, while it measured.
        host_cpu_seconds: The part of it that was not spent in the engines: reading, cropping, decoding, counting.
    """

    kind: str
    data: str
    data_sha256: Mapping[str, str]
    boxes: str
    skeleton: str
    baseline: str
    flip: bool
    images: int
    crops: int
    skipped: tuple[str, ...]
    rows: tuple[VariantEvidence, ...]
    failed: Mapping[str, str] = field(default_factory=dict)
    cpu_seconds: float = 0.0
    host_cpu_seconds: float = 0.0
    score_threshold: float = 0.2
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def base(self) -> VariantEvidence | None:
        """The baseline's row; None where it is not among them, as when only INT8 was converted."""
        return next((row for row in self.rows if row.variant == self.baseline), None)

    def drop_of(self, row: VariantEvidence) -> float:
        """How much worse a row is than the baseline: points or mm, or NaN; 100 (1 - mean OKS) without labels."""
        if row.accuracy is None:
            return 100 * (1 - row.agreement.mean_oks)
        base = self.base
        return math.nan if base is None or base.accuracy is None else base.accuracy.drop_of(row.accuracy)


@dataclass(frozen=True)
class LiftAgreement:
    """How far one variant's poses in space are from the baseline's, for the same 2D keypoints or pictures.

    Attributes:
        poses: How many are compared.
        mean_mm, p95_mm: Mean and 95th percentile of the joints' distance, millimetres.
        worst_mm: Mean distance of the joints of the pose that differs most.
        joint_mm: Joint name -> mean distance.
        percentiles_mm: 101 values: the 0th to 100th percentile of the distance.
        max_abs_error: Largest difference of any coordinate, metres.
        snr_db: Power of the baseline's coordinates over that of the difference, decibels; infinite where equal.
    """

    poses: int
    mean_mm: float
    p95_mm: float
    worst_mm: float
    joint_mm: Mapping[str, float]
    percentiles_mm: tuple[float, ...]
    max_abs_error: float
    snr_db: float


@dataclass(frozen=True)
class LiftEvidence:
    """One variant of a lifting model, or of a chain of a 2D model and a lifting model.

    Attributes:
        variant: Its name; of a chain, ``<2D variant> > <3D variant>``.
        engine: Engine and device; of a chain, those of both.
        accuracy: Against truth in space, or None without.
        agreement: With the baseline (the baseline's own is exact).
        seconds: Wall time in the engines over all poses.
        megabytes: Size of its files, where known.
        latency_ms: Median of one pose alone, interleaved with the other variants, where it was measured.
        shift_px: Of a chain: mean distance of the 2D joints from the baseline's, picture pixels.
    """

    variant: str
    engine: str
    accuracy: Accuracy | None
    agreement: LiftAgreement
    seconds: float
    megabytes: float | None = None
    latency_ms: float | None = None
    shift_px: float | None = None


@dataclass(frozen=True)
class LiftValidation:
    """What was measured of a lifting model or of a chain, and on what.

    Attributes:
        kind: Kind of data, for instance ``mocap``; ``chain on video`` and the like for a chain.
        data: The file or folder.
        data_sha256: File name -> hash of the files that pin the data; empty for a folder of pictures.
        keypoints: Where the 2D keypoints are from, for people.
        skeleton: Name of the lifting model's skeleton.
        baseline: The variant that the others are compared with.
        flip: Whether answers are averaged with those for the mirrored pose.
        poses: How many poses were measured.
        skipped: Pictures that could not be read, and people who could not be lifted, in words.
        rows: One per variant that ran.
        failed: Variant -> why it did not run, or not to the end: it is broken.
        absent: Variant -> which engine or device it needs that this machine does not have.
    """

    kind: str
    data: str
    data_sha256: Mapping[str, str]
    keypoints: str
    skeleton: str
    baseline: str
    flip: bool
    poses: int
    skipped: tuple[str, ...]
    rows: tuple[LiftEvidence, ...]
    failed: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def base(self) -> LiftEvidence | None:
        """The baseline's row; None where it is not among them."""
        return next((row for row in self.rows if row.variant == self.baseline), None)

    def drop_of(self, row: LiftEvidence) -> float:
        """Millimetres that a row is worse than the baseline: of MPJPE, or without truth of the mean distance."""
        if row.accuracy is None:
            return row.agreement.mean_mm
        base = self.base
        return math.nan if base is None or base.accuracy is None else base.accuracy.drop_of(row.accuracy)


def evidence_dict(value: Any) -> Any:
    """Plain dicts and lists of the values above, for JSON; pictures are left out."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: evidence_dict(getattr(value, f.name)) for f in fields(value) if f.name != "crop"}
    if isinstance(value, Mapping):
        return {str(key): evidence_dict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [evidence_dict(item) for item in value]
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
