"""The accuracy of every variant of a bundle on the same crops, in one pass over the data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.calibration.coco import CocoImage, CocoKeypoints
from edgepose.calibration.compare import Comparison
from edgepose.calibration.metrics import Agreement, coco_average_precision, oks_nms
from edgepose.decode import decode
from edgepose.errors import DatasetError
from edgepose.geometry import regions_from_boxes
from edgepose.pipeline import Estimator
from edgepose.preprocess import crop
from edgepose.sources import read_image
from edgepose.types import ModelSpec, Poses

__all__ = ["Validation", "VariantAccuracy", "validate_coco", "validate_crops"]


@dataclass(frozen=True)
class VariantAccuracy:
    """One variant: COCO statistics (None without labels), agreement with the baseline, seconds in the engine."""

    variant: str
    stats: Mapping[str, float] | None
    agreement: Agreement
    seconds: float


@dataclass(frozen=True)
class Validation:
    """What was measured, and on what.

    Attributes:
        data: The annotation file, folder or video.
        boxes: Where the boxes are from: ``ground truth``, a detection file, or ``search``.
        baseline: The variant that the others are compared with.
        flip: Whether the flip test was on.
        images, crops: How many.
        skipped: Images that could not be read.
        rows: One per variant.
    """

    data: str
    boxes: str
    baseline: str
    flip: bool
    images: int
    crops: int
    skipped: list[str]
    rows: list[VariantAccuracy]


@dataclass
class _Track:
    """What one variant did so far."""

    results: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


Progress = Callable[[int, int], None]


def validate_coco(
    estimators: Mapping[str, Estimator],
    data: CocoKeypoints,
    *,
    baseline: str,
    detections: Path | None = None,
    flip: bool = False,
    limit: int | None = None,
    batch: int = 8,
    progress: Progress = lambda done, total: None,
) -> Validation:
    """COCO AP and AR of every variant, and its agreement with the baseline (top-down protocol).

    Args:
        estimators: By variant name; all of one model.
        data: Annotations and images.
        baseline: Name of the variant to compare with.
        detections: A detection file; ground-truth boxes without one.
        flip: Average with the mirrored crop.
        limit: Only the first images.
        batch: Crops per engine call at most.
        progress: Told how many images are done, and out of how many.

    Raises:
        DatasetError: The joints are not the model's, or no image can be read.
    """
    spec = estimators[baseline].spec
    _check_joints(data, spec)
    image_ids = data.image_ids[:limit]
    boxed = data.detections(detections) if detections else data.ground_truth()
    wanted = set(image_ids)
    images = [image for image in boxed if image.image_id in wanted]
    if not images:
        raise DatasetError(f"{data.annotations}: no person with keypoints on the {len(image_ids)} images asked for")
    comparison = Comparison(spec, tuple(estimators), baseline)
    tracks = {name: _Track() for name in estimators}
    skipped, crops = [], 0
    for done, image in enumerate(images, start=1):
        pixels = read_image(image.path, exif=False)
        if pixels is None:
            skipped.append(image.path.name)
            continue
        regions = regions_from_boxes(image.boxes_xywh, spec.aspect, spec.crop_padding)
        poses: dict[str, list[Poses]] = {name: [] for name in estimators}
        for start in range(0, len(regions), batch):
            part = regions[start : start + batch]
            heatmaps = _heatmaps(estimators, crop(pixels, part, spec.input_wh), flip, tracks)
            comparison.add(heatmaps)
            for name, maps in heatmaps.items():
                keypoints, scores = decode(maps, part)
                poses[name].append(Poses(keypoints, scores, np.zeros((len(part), 4), np.float32), spec.skeleton))
        for name, parts in poses.items():
            tracks[name].results += _coco_rows(image, parts, regions)
        crops += len(regions)
        progress(done, len(images))
    if not crops:
        raise DatasetError(f"{data.annotations}: none of the {len(images)} images can be read in {data.image_root}")
    agreements = comparison.result()
    return Validation(
        data=str(data.annotations),
        boxes=detections.name if detections else "ground truth",
        baseline=baseline,
        flip=flip,
        images=len(images) - len(skipped),
        crops=crops,
        skipped=skipped,
        rows=[
            VariantAccuracy(
                name,
                coco_average_precision(data.annotations, track.results, spec.joints.sigmas, image_ids),
                agreements[name],
                track.seconds,
            )
            for name, track in tracks.items()
        ],
    )


def validate_crops(
    estimators: Mapping[str, Estimator],
    crops: NDArray[np.uint8],
    data: str,
    *,
    baseline: str,
    flip: bool = False,
    skipped: Iterable[str] = (),
    progress: Progress = lambda done, total: None,
) -> Validation:
    """Agreement of every variant with the baseline on crops (N, H, W, 3) uint8 RGB; needs no labels."""
    comparison = Comparison(estimators[baseline].spec, tuple(estimators), baseline)
    tracks = {name: _Track() for name in estimators}
    for i in range(len(crops)):
        comparison.add(_heatmaps(estimators, crops[i : i + 1], flip, tracks))
        progress(i + 1, len(crops))
    agreements = comparison.result()
    rows = [VariantAccuracy(name, None, agreements[name], track.seconds) for name, track in tracks.items()]
    return Validation(data, "search", baseline, flip, len(crops), len(crops), list(skipped), rows)


def _heatmaps(
    estimators: Mapping[str, Estimator], crops: NDArray[np.uint8], flip: bool, tracks: Mapping[str, _Track]
) -> dict[str, NDArray[np.float32]]:
    answers = {}
    for name, estimator in estimators.items():
        start = time.perf_counter()
        answers[name] = estimator.heatmaps(crops, flip)
        tracks[name].seconds += time.perf_counter() - start
    return answers


def _coco_rows(image: CocoImage, parts: list[Poses], regions: NDArray[np.float64]) -> list[dict[str, Any]]:
    """COCO results of one image: keypoint score times box score, then OKS NMS at 0.9."""
    rows = [row for part in parts for row in part.to_coco(image.image_id)]
    for row, box_score in zip(rows, image.box_scores, strict=True):
        row["score"] *= float(box_score)
    if not rows:
        return []
    keypoints = np.concatenate([part.keypoints_xy for part in parts])
    sigmas = parts[0].skeleton_row.sigmas
    areas = regions[:, 2] * regions[:, 3]
    return [rows[i] for i in oks_nms(keypoints, [row["score"] for row in rows], areas, sigmas)]


def _check_joints(data: CocoKeypoints, spec: ModelSpec) -> None:
    joints = spec.joints.joints
    if data.joints != joints:
        raise DatasetError(
            f"{data.annotations}: {len(data.joints)} joints ({', '.join(data.joints[:3])}, ...), but {spec.name} has "
            f"{len(joints)} ({spec.skeleton}: {', '.join(joints[:3])}, ...): AP needs the same joints; "
            "for agreement without labels use --data unlabeled"
        )
