"""COCO keypoints: annotations with boxes, or a detection file, scored by average precision."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.calibration.average_precision import average_precision, require_evaluator
from edgepose.calibration.datasets.base import Labels, Picture, Scorer
from edgepose.calibration.datasets.files import check_present, read_json
from edgepose.calibration.datasets.labelled import JointSlices, fit_labels, joint_order, joint_remarks
from edgepose.calibration.evidence import Accuracy
from edgepose.calibration.metrics import oks, oks_nms
from edgepose.errors import DatasetError
from edgepose.geometry import clip_boxes_xywh
from edgepose.sources import read_image
from edgepose.types import ModelSpec, Poses

__all__ = ["CocoKeypoints", "coco_statistics"]

_LARGEST = 1e6
"""Box coordinates beyond this, in pixels, are damaged data."""


@dataclass(frozen=True)
class _Person:
    """One annotation: whose box it is, its joints, and whether any of them is labelled (crowds never are)."""

    image_id: int
    box_xywh: tuple[float, ...]
    keypoints: tuple[float, ...]
    area: float
    labelled: bool

    @classmethod
    def read(cls, row: Mapping[str, Any], images: Mapping[int, Any], joints: int) -> _Person:
        image_id = int(row["image_id"])
        if image_id not in images:
            raise ValueError(f"annotation {row.get('id')} is on image {image_id}, which is not listed")
        x, y, w, h = (float(v) for v in row["bbox"])
        if len(row["keypoints"]) != 3 * joints or not np.isfinite([*row["keypoints"], x, y, w, h]).all():
            raise ValueError(
                f"annotation {row.get('id')} has not 3 x {joints} finite keypoint numbers and a finite box"
            )
        visible = any(v > 0 for v in row["keypoints"][2::3])
        area = float(row["area"])
        labelled = bool(row.get("num_keypoints", visible)) and area > 0 and not row["iscrowd"]
        return cls(image_id, (x, y, w, h), tuple(row["keypoints"]), area, labelled)


class CocoKeypoints:
    """A ``person_keypoints_*.json`` and its images; implements ``PictureData``."""

    kind = "coco"

    def __init__(self, annotations: Path, detections: Path | None = None) -> None:
        """Read the annotation file.

        Args:
            annotations: The JSON. Its images are looked for beside it, in a folder named like the last part of
                its name (``val2017``), in ``images/``, and one level up.
            detections: Rows of image_id, category_id, bbox and score whose boxes to use; by default the annotated
                people's.

        Raises:
            DatasetError: A file is missing or malformed, its images are not there, or there is nobody to crop.
        """
        self.path = annotations
        self.detections = detections
        self.content = read_json(annotations)
        try:
            self._images = {int(row["id"]): row for row in self.content["images"]}
            self._sizes_wh = {key: (int(row["width"]), int(row["height"])) for key, row in self._images.items()}
            person = next(row for row in self.content["categories"] if row.get("keypoints"))
            self.joints: tuple[str, ...] = tuple(str(name) for name in person["keypoints"])
            self._people = [_Person.read(row, self._images, len(self.joints)) for row in self.content["annotations"]]
            self._names = {key: str(row["file_name"]) for key, row in self._images.items()}
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError, StopIteration) as error:
            raise DatasetError(
                f"{annotations}: not COCO keypoint annotations ({type(error).__name__}: {error}): "
                "it needs images, annotations, and a category with keypoints"
            ) from None
        self._boxed = self._detected(detections) if detections else self._annotated()
        self.image_root = self._find_images()

    @classmethod
    def open(cls, root: Path, detections: Path | None = None) -> CocoKeypoints:
        """Open an annotation file, or the one in a COCO folder or its ``annotations/``.

        Raises:
            DatasetError: None is there, or more than one; or see the class.
        """
        if not root.is_dir():
            return cls(root, detections)
        found = _annotation_files(root)
        val = [p for p in found if "val" in p.stem]
        candidates = found if len(found) == 1 else val
        if len(candidates) != 1:
            names = ", ".join(p.name for p in found) or "none"
            raise DatasetError(
                f"{root}: needs one person_keypoints_*.json, here or in annotations/ (found: {names}): "
                "give the file itself"
            )
        return cls(candidates[0], detections)

    @staticmethod
    def recognises(root: Path) -> bool:
        """Whether this is a JSON file, or a folder with annotations, itself or in ``annotations/``."""
        return root.suffix.lower() == ".json" or bool(root.is_dir() and _annotation_files(root))

    @property
    def boxes(self) -> str:
        """Where the boxes are from."""
        return self.detections.name if self.detections else "ground truth"

    def __len__(self) -> int:
        return len(self._images)

    def pictures(self, limit: int | None = None) -> Iterator[Picture]:
        """Images by their number, those without boxes too: nobody is found there."""
        ids = sorted(self._images)[:limit]
        check_present([self.image_root / self._names[i] for i in ids if i in self._boxed], str(self.path))
        return (self._picture(image_id) for image_id in ids)

    def scorer(self, spec: ModelSpec) -> Scorer:
        """Average precision, or why the joints do not fit."""
        require_evaluator()
        return _CocoScorer(self, spec)

    def sources(self) -> list[Path]:
        """The annotations, and the detections."""
        return [self.path, *([self.detections] if self.detections else [])]

    def predictions(self, path: Path) -> list[dict[str, Any]]:
        """Read COCO keypoint results (rows of image_id, category_id, keypoints, score) on these images.

        Raises:
            DatasetError: The file is malformed, holds NaN, or nothing on these images.
        """
        rows = read_json(path)
        try:
            for number, row in enumerate(rows):
                values = [*row["keypoints"], row["score"]]
                if len(values) != 3 * len(self.joints) + 1 or not np.isfinite(values).all():
                    raise ValueError(f"row {number} has not 3 x {len(self.joints)} finite keypoint numbers and a score")
                int(row["category_id"])
            kept = [row for row in rows if int(row["image_id"]) in self._images]
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise DatasetError(
                f"{path}: not COCO keypoint results ({type(error).__name__}: {error}): "
                "it needs rows of image_id, category_id, keypoints and score"
            ) from None
        if not kept:
            raise DatasetError(f"{path}: holds no poses on the images of {self.path.name}")
        return kept

    def _picture(self, image_id: int) -> Picture:
        path = self.image_root / self._names[image_id]
        boxes, scores, labels = self._boxed.get(image_id, (np.zeros((0, 4)), np.zeros(0), None))
        return Picture(
            name=path.name,
            file=path.name,
            read=partial(read_image, path, exif=False),
            boxes_xywh=boxes,
            box_scores=scores,
            labels=labels,
            image_id=image_id,
        )

    def _annotated(self) -> dict[int, _Boxed]:
        """Boxes and labels of annotated people by image; boxes without area are left out."""
        people: dict[int, list[_Person]] = defaultdict(list)
        for person in self._people:
            if person.labelled:
                people[person.image_id].append(person)
        boxed: dict[int, _Boxed] = {}
        for image_id, rows in people.items():
            boxes = clip_boxes_xywh([person.box_xywh for person in rows], self._sizes_wh[image_id])
            usable = (boxes[:, 2:] > 0).all(axis=1)
            joints = np.array([person.keypoints for person in rows], float).reshape(len(rows), -1, 3)[usable]
            reference = np.sqrt([person.area for person in rows])[usable]
            labels = Labels(joints[:, :, :2], joints[:, :, 2] > 0, reference)
            boxed[image_id] = (boxes[usable], np.ones(int(usable.sum())), labels)
        if not boxed:
            raise DatasetError(f"{self.path}: no person with labelled keypoints on its {len(self._images)} images")
        return boxed

    def _detected(self, path: Path) -> dict[int, _Boxed]:
        boxes: dict[int, list[Any]] = defaultdict(list)
        scores: dict[int, list[float]] = defaultdict(list)
        try:
            for row in read_json(path):
                if row["category_id"] == 1 and int(row["image_id"]) in self._images and row["score"] >= 0:
                    x, y, w, h = (float(v) for v in row["bbox"])
                    if not np.isfinite([x, y, w, h]).all() or max(map(abs, (x, y, w, h))) > _LARGEST:
                        raise ValueError(f"bbox {row['bbox']}")
                    if w > 0 and h > 0:
                        boxes[int(row["image_id"])].append([x, y, w, h])
                        scores[int(row["image_id"])].append(float(row["score"]))
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise DatasetError(
                f"{path}: not COCO detections ({type(error).__name__}: {error}): "
                "it needs rows of image_id, category_id, bbox and score"
            ) from None
        if not boxes:
            raise DatasetError(f"{path}: holds no person (category_id 1) on the images of {self.path.name}")
        return {image_id: (np.array(boxes[image_id]), np.array(scores[image_id]), None) for image_id in boxes}

    def _find_images(self) -> Path:
        names = [self._names[image_id] for image_id in sorted(self._boxed)]
        split = self.path.stem.rpartition("_")[2]
        here = self.path.parent
        roots = [base / sub for base in (here, here.parent) for sub in ("", split, "images", f"images/{split}")]
        for root in roots:
            if any((root / name).is_file() for name in names[:20]):
                return root
        raise DatasetError(
            f"{self.path}: none of its {len(names)} images found (looked for {', '.join(names[:10])} in "
            f"{', '.join(str(root) for root in roots)})"
        )


_Boxed = tuple[NDArray[np.float64], NDArray[np.float64], Labels | None]
"""Boxes (N, 4), their scores (N,), and the labels of the same people where the boxes are theirs."""


class _CocoScorer:
    """Average precision of the whole, with OKS per joint where the boxes are the annotated people's."""

    def __init__(self, data: CocoKeypoints, spec: ModelSpec) -> None:
        self._data = data
        self._spec = spec
        self._order = joint_order(data.joints, spec, str(data.path))
        self._results: list[tuple[int, NDArray[np.float32], NDArray[np.float32]]] = []
        self._image_ids: list[int] = []
        self._slices = JointSlices(spec)

    def add(
        self,
        picture: Picture,
        regions: NDArray[np.float64],
        keypoints_xy: NDArray[np.float32],
        scores: NDArray[np.float32],
    ) -> None:
        """Keypoint score times box score, then OKS NMS at 0.9."""
        self._image_ids.append(picture.image_id)
        if not len(regions):
            return
        sigmas = self._spec.joints.sigmas
        poses = Poses(keypoints_xy, scores, np.zeros((len(regions), 4), np.float32), self._spec.skeleton)
        totals = poses.instance_scores
        if picture.box_scores is not None:
            totals = (totals * picture.box_scores).astype(np.float32)
        kept = oks_nms(keypoints_xy, totals, regions[:, 2] * regions[:, 3], sigmas)
        joints = np.concatenate([keypoints_xy, scores[:, :, None]], axis=2)
        self._results.append((picture.image_id, joints[kept], totals[kept]))
        if picture.labels is not None:
            labels = fit_labels(picture.labels, self._order)
            quality = oks(labels.keypoints_xy, keypoints_xy, labels.reference_px**2, sigmas)
            self._slices.add(labels, regions, keypoints_xy, scores, quality)

    def people(self) -> None:
        """Average precision is no mean over joints."""
        return

    def result(self) -> Accuracy:
        """AP in points."""
        rows = [
            {"image_id": image_id, "category_id": 1, "keypoints": joints.ravel().tolist(), "score": float(total)}
            for image_id, people, totals in self._results
            for joints, total in zip(people.round(3), totals, strict=True)
        ]
        stats = coco_statistics(self._data, self._spec, self._order, rows, self._image_ids)
        remarks = joint_remarks(self._data.joints, self._spec)
        if self._slices.people:
            return self._slices.accuracy("AP", stats["AP"], stats, "OKS", remarks)
        return Accuracy("AP", stats["AP"], "points", True, len(rows), stats, remarks=remarks)


def coco_statistics(
    data: CocoKeypoints,
    spec: ModelSpec,
    order: Sequence[int | None],
    rows: list[dict[str, Any]],
    image_ids: Sequence[int],
) -> dict[str, float]:
    """The ten COCO statistics in points; joints without a counterpart in the labels count as not labelled."""
    content = data.content if spec.joints.joints == data.joints else _reordered(data.content, order)
    try:
        stats = average_precision(content, rows, spec.joints.sigmas, image_ids)
    except DatasetError as error:
        raise DatasetError(f"{data.path}: {error}") from None
    return {name: 100 * value if value >= 0 else -1.0 for name, value in stats.items()}


def _reordered(content: Mapping[str, Any], order: Sequence[int | None]) -> dict[str, Any]:
    """The annotations with the model's joints instead of the file's own."""

    def fit(row: Mapping[str, Any]) -> dict[str, Any]:
        old = row["keypoints"]
        joints = [(0, 0, 0) if i is None else tuple(old[3 * i : 3 * i + 3]) for i in order]
        labelled = sum(v > 0 for *_, v in joints)
        return {**row, "keypoints": [v for joint in joints for v in joint], "num_keypoints": labelled}

    return {**content, "annotations": [fit(row) for row in content["annotations"]]}


def _annotation_files(root: Path) -> list[Path]:
    return sorted(p for folder in (root, root / "annotations") for p in folder.glob("person_keypoints_*.json"))
