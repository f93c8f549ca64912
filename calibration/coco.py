"""COCO keypoint annotations: people with boxes, one image at a time."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.errors import DatasetError
from edgepose.geometry import clip_boxes_xywh

__all__ = ["CocoImage", "CocoKeypoints"]


_LARGEST = 1e6
"""Box coordinates beyond this, in pixels, are damaged data."""


@dataclass(frozen=True)
class CocoImage:
    """One image with the boxes to crop: (N, 4) xywh pixels and their (N,) scores."""

    image_id: int
    path: Path
    boxes_xywh: NDArray[np.float64]
    box_scores: NDArray[np.float64]


@dataclass(frozen=True)
class _Person:
    """One annotation: whose box it is, and whether any of its keypoints is labelled (crowds never are)."""

    image_id: int
    box_xywh: tuple[float, ...]
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
        labelled = bool(row.get("num_keypoints", visible)) and float(row["area"]) > 0 and not row["iscrowd"]
        return cls(image_id, (x, y, w, h), labelled)


class CocoKeypoints:
    """A ``person_keypoints_*.json`` and its images."""

    def __init__(self, annotations: Path) -> None:
        """Read the annotation file.

        Args:
            annotations: The JSON. Its images are looked for beside it, in a folder named like the last part of
                its name (``val2017``), in ``images/``, and one level up.

        Raises:
            DatasetError: The file is missing, malformed, or its images are not there.
        """
        self.annotations = annotations
        data = _read_json(annotations)
        try:
            self._images = {int(row["id"]): row for row in data["images"]}
            self._sizes_wh = {key: (int(row["width"]), int(row["height"])) for key, row in self._images.items()}
            person = next(row for row in data["categories"] if row.get("keypoints"))
            self.joints = tuple(str(name) for name in person["keypoints"])
            self._people = [_Person.read(row, self._images, len(self.joints)) for row in data["annotations"]]
            self.image_root = self._find_images()
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError, StopIteration) as error:
            raise DatasetError(
                f"{annotations}: not COCO keypoint annotations ({type(error).__name__}: {error}): "
                "it needs images, annotations, and a category with keypoints"
            ) from None

    @staticmethod
    def is_root(folder: Path) -> bool:
        """Whether a folder holds annotations, itself or in ``annotations/``."""
        return any(True for sub in (folder, folder / "annotations") for _ in sub.glob("person_keypoints_*.json"))

    @classmethod
    def from_root(cls, root: Path) -> CocoKeypoints:
        """Find the one annotation file in a COCO folder or its ``annotations/``.

        Raises:
            DatasetError: None, or more than one.
        """
        if root.is_file():
            return cls(root)
        found = [p for folder in (root, root / "annotations") for p in folder.glob("person_keypoints_*.json")]
        val = [p for p in found if "val" in p.stem]
        candidates = found if len(found) == 1 else val
        if len(candidates) != 1:
            names = ", ".join(p.name for p in found) or "none"
            raise DatasetError(
                f"{root}: needs one person_keypoints_*.json, here or in annotations/ (found: {names}): "
                "give the file itself"
            )
        return cls(candidates[0])

    def _find_images(self) -> Path:
        names = [str(row["file_name"]) for row in self._images.values()]
        split = self.annotations.stem.rpartition("_")[2]
        here = self.annotations.parent
        roots = [base / sub for base in (here, here.parent) for sub in ("", split, "images", f"images/{split}")]
        for root in roots:
            if names and any((root / name).is_file() for name in names[:20]):
                return root
        raise DatasetError(
            f"{self.annotations}: none of its images found (looked for {names[0] if names else 'any'} in "
            f"{', '.join(str(root) for root in roots)})"
        )

    @property
    def image_ids(self) -> list[int]:
        """All annotated images, sorted."""
        return sorted(self._images)

    def ground_truth(self) -> Iterator[CocoImage]:
        """Images with the boxes of annotated people; boxes without area are left out."""
        boxes: dict[int, list[Any]] = defaultdict(list)
        for person in self._people:
            if person.labelled:
                boxes[person.image_id].append(person.box_xywh)
        for image_id in sorted(boxes):
            clipped = clip_boxes_xywh(boxes[image_id], self._sizes_wh[image_id])
            yield self._image(image_id, clipped, np.ones(len(clipped)))

    def detections(self, path: Path) -> Iterator[CocoImage]:
        """Images with the boxes of a detection file (rows of image_id, category_id, bbox, score).

        Raises:
            DatasetError: The file is malformed or holds no person on these images.
        """
        boxes: dict[int, list[Any]] = defaultdict(list)
        scores: dict[int, list[float]] = defaultdict(list)
        try:
            for row in _read_json(path):
                if row["category_id"] == 1 and int(row["image_id"]) in self._images and row["score"] >= 0:
                    x, y, w, h = (float(v) for v in row["bbox"])
                    if not np.isfinite([x, y, w, h]).all() or max(map(abs, (x, y, w, h))) > _LARGEST:
                        raise ValueError(f"bbox {row['bbox']}")
                    boxes[int(row["image_id"])].append([x, y, w, h])
                    scores[int(row["image_id"])].append(float(row["score"]))
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise DatasetError(
                f"{path}: not COCO detections ({type(error).__name__}: {error}): "
                "it needs rows of image_id, category_id, bbox and score"
            ) from None
        if not boxes:
            raise DatasetError(f"{path}: holds no person (category_id 1) on the images of {self.annotations.name}")
        for image_id in sorted(boxes):
            yield self._image(image_id, np.array(boxes[image_id]), np.array(scores[image_id]))

    def _image(self, image_id: int, boxes: NDArray[np.float64], scores: NDArray[np.float64]) -> CocoImage:
        usable = (boxes[:, 2:] > 0).all(axis=1)
        path = self.image_root / str(self._images[image_id]["file_name"])
        return CocoImage(image_id, path, boxes[usable], scores[usable])


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror})") from None
    except (RecursionError, ValueError) as error:
        raise DatasetError(f"{path}: not JSON ({error})") from None
