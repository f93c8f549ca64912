"""Scores against labelled joints: what PCK data sets report, and the slices that every labelled data set shares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgepose.calibration.datasets.base import Labels, Picture
from edgepose.calibration.evidence import Accuracy
from edgepose.calibration.metrics import SIZES, masked_mean, pck, percentiles, score_bins, size_of, within
from edgepose.errors import DatasetError
from edgepose.geometry import scale_and_shift
from edgepose.skeletons import counterparts
from edgepose.types import ModelSpec

__all__ = ["JointSlices", "PckScorer", "fit_labels", "joint_order", "joint_remarks"]


def fit_labels(labels: Labels, order: Sequence[int | None]) -> Labels:
    """Labels in the order of the model's joints; those without a counterpart are not labelled."""
    columns = [index or 0 for index in order]
    known = np.array([index is not None for index in order])
    return Labels(labels.keypoints_xy[:, columns], labels.visible[:, columns] & known, labels.reference_px)


def joint_order(joints: Sequence[str], spec: ModelSpec, where: str) -> tuple[int | None, ...]:
    """Where each of the model's joints is among the data set's.

    Raises:
        DatasetError: No joint of the one has a counterpart in the other.
    """
    order = counterparts(joints, spec.joints.joints)
    if all(index is None for index in order):
        raise DatasetError(
            f"{where}: labels {', '.join(joints[:4])}, ... ({len(joints)} joints), {spec.name} finds "
            f"{', '.join(spec.joints.joints[:4])}, ... ({spec.skeleton}): it would need a map from those joints to "
            f"{spec.skeleton}, and there is none; for agreement without labels use --data unlabeled"
        )
    return order


def joint_remarks(joints: Sequence[str], spec: ModelSpec) -> tuple[str, ...]:
    """What to say where the data set and the model do not have the same joints."""
    own = spec.joints.joints
    order = counterparts(joints, own)
    missing = [name for name, index in zip(own, order, strict=True) if index is None]
    unused = [name for i, name in enumerate(joints) if i not in order]
    remarks = []
    if missing:
        remarks.append(f"{len(own) - len(missing)} of {len(own)} joints are judged; no labels for {', '.join(missing)}")
    if unused:
        remarks.append(f"labels without counterpart in {spec.skeleton}: {', '.join(unused)}")
    return tuple(remarks)


class JointSlices:
    """Keeps how right every labelled joint is, and cuts that by joint, by size of the person, and by score."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._quality: list[NDArray[np.float64]] = []
        self._visible: list[NDArray[np.bool_]] = []
        self._scores: list[NDArray[np.float32]] = []
        self._areas: list[NDArray[np.float64]] = []
        self._errors: list[NDArray[np.float64]] = []

    def add(
        self,
        picture: Picture,
        labels: Labels,
        regions: NDArray[np.float64],
        keypoints_xy: NDArray[np.float32],
        scores: NDArray[np.float32],
        quality: NDArray[np.float64],
    ) -> None:
        """Add N people: labels in the model's order, regions (N, 4), keypoints (N, K, 2) px, the rest (N, K)."""
        scale, _ = scale_and_shift(regions, self._spec.input_wh)
        error = np.linalg.norm(labels.keypoints_xy - keypoints_xy, axis=-1) / scale[:, None]
        self._quality.append(quality)
        self._visible.append(labels.visible)
        self._scores.append(scores)
        self._areas.append(picture.person_areas(regions, self._spec.crop_padding))
        self._errors.append(error[labels.visible])

    def per_person(self, without: Sequence[str] = ()) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Sum of the points (0-100) of each person's labelled joints, and how many those are."""
        quality, counted = self.judged(without)
        return 100 * np.where(counted, quality, 0).sum(axis=1), counted.sum(axis=1)

    @property
    def people(self) -> int:
        """People with at least one labelled joint."""
        return sum(int(visible.any(axis=1).sum()) for visible in self._visible)

    def judged(self, without: Sequence[str] = ()) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """(N, K) quality of all joints, and (N, K) which of them are labelled and not of the named ones."""
        others = np.array([name not in without for name in self._spec.joints.joints])
        return np.concatenate(self._quality), np.concatenate(self._visible) & others

    def accuracy(
        self, metric: str, value: float, stats: dict[str, float], joint_metric: str, remarks: tuple[str, ...]
    ) -> Accuracy:
        """The verdict, with the slices."""
        shares, visible = self.judged()
        quality = 100 * shares
        scores, sizes = np.concatenate(self._scores), size_of(np.concatenate(self._areas))
        per_joint = zip(self._spec.joints.joints, masked_mean(quality, visible, axis=0), strict=True)
        per_size = {size: float(masked_mean(quality[sizes == size], visible[sizes == size])) for size in SIZES}
        return Accuracy(
            metric=metric,
            value=value,
            unit="points",
            higher_is_better=True,
            people=self.people,
            stats=stats,
            joint_metric=joint_metric,
            per_joint={name: float(v) for name, v in per_joint if np.isfinite(v)},
            per_size={name: v for name, v in per_size.items() if np.isfinite(v)},
            reliability=score_bins(scores[visible], quality[visible]),
            error_percentiles=percentiles(np.concatenate(self._errors)),
            remarks=remarks,
        )


class PckScorer:
    """Percentage of correct keypoints; people without labelled joints count nowhere.

    Args:
        spec: The model.
        joints: The data set's joints.
        name: ``PCK`` or ``PCKh``.
        share: Headline share of the reference length; half of it is reported as well.
        without: Joints that the protocol leaves out of the mean.
        where: The data set, for errors.
        remarks: What a reader must know about the labels.
    """

    def __init__(
        self,
        spec: ModelSpec,
        joints: Sequence[str],
        *,
        name: str,
        share: float,
        where: str,
        without: Sequence[str] = (),
        remarks: tuple[str, ...] = (),
    ) -> None:
        self._order = joint_order(joints, spec, where)
        self._shares = (share, share / 2)
        self._slices = {share: JointSlices(spec), share / 2: JointSlices(spec)}
        self._name = name
        self._without = without
        self._where = where
        self._remarks = joint_remarks(joints, spec) + remarks

    def add(
        self,
        picture: Picture,
        regions: NDArray[np.float64],
        keypoints_xy: NDArray[np.float32],
        scores: NDArray[np.float32],
    ) -> None:
        """See ``Scorer``."""
        if picture.labels is None:
            return
        labels = fit_labels(picture.labels, self._order)
        for share, slices in self._slices.items():
            right = within(labels.keypoints_xy, keypoints_xy, labels.reference_px, share).astype(float)
            slices.add(picture, labels, regions, keypoints_xy, scores, right)

    def people(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """See ``Scorer``."""
        return self._slices[self._shares[0]].per_person(self._without)

    def result(self) -> Accuracy:
        """PCK over all labelled joints."""
        if not any(slices.people for slices in self._slices.values()):
            raise DatasetError(f"{self._where}: no person has a labelled joint that the model finds")
        stats = {
            f"{self._name}@{share:g}": float(pck(*slices.judged(self._without)))
            for share, slices in self._slices.items()
        }
        (headline, value), *_ = stats.items()
        return self._slices[self._shares[0]].accuracy(headline, value, stats, headline, self._remarks)
