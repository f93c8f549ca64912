"""COCO keypoints: annotations with boxes, or a detection file, scored by average precision."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.calibration.average_precision import average_precision, require_evaluator
from edgepose.calibration.datasets.base import Labels, Picture, Scorer
from edgepose.calibration.datasets.files import (
    LARGEST_PX,
    MALFORMED,
    check_present,
    read_json,
    read_picture,
    whole_number,
)
from edgepose.calibration.datasets.labelled import JointSlices, fit_labels, joint_order, joint_remarks
from edgepose.calibration.evidence import Accuracy
from edgepose.calibration.metrics import oks_nms
from edgepose.errors import DatasetError
from edgepose.geometry import clip_boxes_xywh
from edgepose.similarity import oks
from edgepose.types import ModelSpec, Poses

__all__ = ["CocoKeypoints", "coco_statistics"]

_LARGEST_AREA = 1e10
"""The evaluator counts nobody whose area is larger, in square pixels."""


@dataclass(frozen=True)
class _Person:
    """One annotation, with COCO's names: what the evaluator gets is this and nothing else."""

    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, ...]
    keypoints: tuple[float, ...]
    num_keypoints: int
    area: float
    iscrowd: int

    @classmethod
    def read(cls, row: Mapping[str, Any], category_id: int, joints: int) -> _Person:
        number, area = whole_number(row["id"]), float(row["area"])
        keypoints = _numbers(row["keypoints"], 3 * joints, f"annotation {number} has not 3 x {joints} finite keypoints")
        if not abs(area) <= _LARGEST_AREA:
            raise ValueError(f"annotation {number} has the area {area:g}, which is no area in a picture")
        return cls(
            id=number,
            image_id=whole_number(row["image_id"]),
            category_id=category_id,
            bbox=_numbers(row["bbox"], 4, f"annotation {number} has no finite box"),
            keypoints=keypoints,
            num_keypoints=whole_number(row.get("num_keypoints", sum(v > 0 for v in keypoints[2::3]))),
            area=area,
            iscrowd=int(row["iscrowd"]),
        )

    @property
    def labelled(self) -> bool:
        """Whether any joint is: crowds never are."""
        return bool(self.num_keypoints) and self.area > 0 and not self.iscrowd


def _numbers(values: Iterable[Any], count: int, otherwise: str) -> tuple[float, ...]:
    """So many finite numbers that may be places in a picture; raises ValueError with ``otherwise``."""
    numbers = tuple(float(v) for v in values)
    if len(numbers) != count or not all(abs(v) <= LARGEST_PX for v in numbers):
        raise ValueError(otherwise)
    return numbers


def _unique(ids: Sequence[int], what: str) -> None:
    for number, count in Counter(ids).most_common(1):
        if count > 1:
            raise ValueError(f"{count} {what} have the id {number}")


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
        try:
            self._read(read_json(annotations))
        except (*MALFORMED, StopIteration) as error:
            raise DatasetError(
                f"{annotations}: not COCO keypoint annotations ({type(error).__name__}: {error}): "
                "it needs images, annotations, and a category with keypoints"
            ) from None
        self._boxed = self._detected(detections) if detections else self._annotated()
        self.image_root = self._find_images()

    def _read(self, content: Mapping[str, Any]) -> None:
        numbers = [whole_number(row["id"]) for row in content["images"]]
        _unique(numbers, "images")
        self._names = {n: str(row["file_name"]) for n, row in zip(numbers, content["images"], strict=True)}
        self._sizes_wh = {n: _size_wh(n, row) for n, row in zip(numbers, content["images"], strict=True)}
        category = next(row for row in content["categories"] if row.get("keypoints"))
        self.category_id = whole_number(category["id"])
        self.joints: tuple[str, ...] = tuple(str(name) for name in category["keypoints"])
        rows = [row for row in content["annotations"] if whole_number(row["category_id"]) == self.category_id]
        self._people = [_Person.read(row, self.category_id, len(self.joints)) for row in rows]
        _unique([person.id for person in self._people], "annotations")
        lost = next((person for person in self._people if person.image_id not in self._names), None)
        if lost:
            raise ValueError(f"annotation {lost.id} is on image {lost.image_id}, which is not listed")

    @property
    def content(self) -> dict[str, Any]:
        """The annotations as they were read and checked, for the evaluator: it takes an id 0 for "no match"."""
        sizes = ((n, name, *self._sizes_wh[n]) for n, name in self._names.items())
        return {
            "images": [{"id": n, "file_name": name, "width": w, "height": h} for n, name, w, h in sizes],
            "annotations": [{**vars(person), "id": n} for n, person in enumerate(self._people, start=1)],
            "categories": [{"id": self.category_id, "keypoints": list(self.joints)}],
        }

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
        return len(self._names)

    def pictures(self, limit: int | None = None) -> Iterator[Picture]:
        """Images by their number, those without boxes too: nobody is found there."""
        ids = sorted(self._names)[:limit]
        check_present([self.image_root / self._names[i] for i in ids if i in self._boxed], str(self.path))
        return (self._picture(image_id) for image_id in ids)

    def scorer(self, spec: ModelSpec) -> Scorer:
        """Average precision, or why the joints do not fit."""
        require_evaluator()
        return _CocoScorer(self, spec)

    def sources(self) -> list[Path]:
        """The annotations, and the detections."""
        return [self.path, *([self.detections] if self.detections else [])]

    def predictions(self, path: Path) -> tuple[list[dict[str, Any]], int]:
        """Read COCO keypoint results: rows of image_id, category_id, keypoints and score; others' fields are dropped.

        Returns:
            The rows on these images, and how many there were on others.

        Raises:
            DatasetError: The file is malformed, holds NaN or another category, or nothing on these images.
        """
        content = read_json(path)
        try:
            rows = [self._prediction(number, row) for number, row in enumerate(content)]
        except MALFORMED as error:
            raise DatasetError(
                f"{path}: not COCO keypoint results ({type(error).__name__}: {error}): "
                "it needs rows of image_id, category_id, keypoints and score"
            ) from None
        kept = [row for row in rows if row["image_id"] in self._names]
        if not kept:
            raise DatasetError(f"{path}: holds no poses on the images of {self.path.name}")
        return kept, len(rows) - len(kept)

    def _prediction(self, number: int, row: Mapping[str, Any]) -> dict[str, Any]:
        count = len(self.joints)
        wrong = f"row {number} has not 3 x {count} finite keypoint numbers and a score"
        *keypoints, score = _numbers([*row["keypoints"], row["score"]], 3 * count + 1, wrong)
        category_id = whole_number(row["category_id"])
        if category_id != self.category_id:
            raise ValueError(f"row {number} is of category {category_id}, and {self.path.name} has {self.category_id}")
        image_id = whole_number(row["image_id"])
        return {"image_id": image_id, "category_id": category_id, "keypoints": keypoints, "score": score}

    def _picture(self, image_id: int) -> Picture:
        path = self.image_root / self._names[image_id]
        boxes, scores, labels = self._boxed.get(image_id, (np.zeros((0, 4)), np.zeros(0), None))
        return Picture(
            name=path.name,
            file=path.name,
            read=partial(read_picture, path, exif=False),
            boxes_xywh=boxes,
            box_scores=scores,
            labels=labels,
            areas_px=None if labels is None else labels.reference_px**2,
            image_id=image_id,
        )

    def _annotated(self) -> dict[int, _Boxed]:
        """Boxes and labels of annotated people by image; boxes without area are left out."""
        people: dict[int, list[_Person]] = defaultdict(list)
        for person in self._people:
            if person.labelled:
                people[person.image_id].append(person)
        if not people:
            raise DatasetError(f"{self.path}: no person with labelled keypoints on its {len(self._names)} images")
        boxed = {image_id: _boxed(rows, self._sizes_wh[image_id]) for image_id, rows in people.items()}
        boxed = {image_id: row for image_id, row in boxed.items() if len(row[0])}
        if not boxed:
            count = sum(map(len, people.values()))
            raise DatasetError(
                f"{self.path}: none of its {count} labelled people can be cropped: their boxes have no area inside "
                "their images; check bbox (x, y, width, height), and the images' width and height"
            )
        return boxed

    def _detected(self, path: Path) -> dict[int, _Boxed]:
        content = read_json(path)
        found: dict[int, list[tuple[float, ...]]] = defaultdict(list)
        try:
            for number, row in enumerate(content):
                if whole_number(row["category_id"]) == self.category_id:
                    wrong = f"row {number} has no finite box and score"
                    found[whole_number(row["image_id"])].append(_numbers([*row["bbox"], row["score"]], 5, wrong))
        except MALFORMED as error:
            raise DatasetError(
                f"{path}: not COCO detections ({type(error).__name__}: {error}): "
                "it needs rows of image_id, category_id, bbox and score"
            ) from None
        known = {i: np.array(found[i]) for i in found if i in self._names}
        usable = {i: rows[(rows[:, 2:4] > 0).all(axis=1) & (rows[:, 4] >= 0)] for i, rows in known.items()}
        boxed: dict[int, _Boxed] = {i: (rows[:, :4], rows[:, 4], None) for i, rows in usable.items() if len(rows)}
        if not boxed:
            people, here = (sum(map(len, rows.values())) for rows in (found, known))
            raise DatasetError(
                f"{path}: holds no person to crop: {people} of its {len(content)} rows are people (category_id "
                f"{self.category_id}), {here} of them on the images of {self.path.name}, and none of those has a box "
                "with area and a score from 0"
            )
        return boxed

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


def _size_wh(number: int, row: Mapping[str, Any]) -> tuple[int, int]:
    width, height = whole_number(row["width"]), whole_number(row["height"])
    if width < 1 or height < 1:
        raise ValueError(f"image {number} is {width} x {height} pixels")
    return width, height


def _boxed(people: Sequence[_Person], image_wh: tuple[int, int]) -> _Boxed:
    """One image's people whose box has area inside it."""
    boxes = clip_boxes_xywh([person.bbox for person in people], image_wh)
    usable = (boxes[:, 2:] > 0).all(axis=1)
    joints = np.array([person.keypoints for person in people], float).reshape(len(people), -1, 3)[usable]
    reference = np.sqrt([person.area for person in people])[usable]
    labels = Labels(joints[:, :, :2], joints[:, :, 2] > 0, reference)
    return boxes[usable], np.ones(int(usable.sum())), labels


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
            self._slices.add(picture, labels, regions, keypoints_xy, scores, quality)

    def people(self) -> None:
        """Average precision is no mean over joints."""
        return

    def result(self) -> Accuracy:
        """AP in points."""
        rows = [
            {
                "image_id": image_id,
                "category_id": self._data.category_id,
                "keypoints": joints.ravel().tolist(),
                "score": float(total),
            }
            for image_id, people, totals in self._results
            for joints, total in zip(people.round(3), totals, strict=True)
        ]
        order = None if self._spec.joints.joints == self._data.joints else self._order
        stats = coco_statistics(self._data, rows, self._spec.joints.sigmas, self._image_ids, order)
        remarks = joint_remarks(self._data.joints, self._spec)
        if self._slices.people:
            return self._slices.accuracy("AP", stats["AP"], stats, "OKS", remarks)
        return Accuracy("AP", stats["AP"], "points", True, len(rows), stats, remarks=remarks)


def coco_statistics(
    data: CocoKeypoints,
    rows: list[dict[str, Any]],
    sigmas: Sequence[float],
    image_ids: Sequence[int] | None = None,
    order: Sequence[int | None] | None = None,
) -> dict[str, float]:
    """The ten COCO statistics in points, -1 where undefined.

    Args:
        data: The labels.
        rows: Results, as COCO has them.
        sigmas: OKS constants of the results' joints.
        image_ids: Evaluate these images only; by default all.
        order: Where each of the results' joints is among the labels'; None where they are the same. Joints without a
            counterpart count as not labelled.

    Raises:
        DatasetError: There are no results.
    """
    content = data.content if order is None else _reordered(data.content, order)
    try:
        stats = average_precision(content, rows, sigmas, image_ids)
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
