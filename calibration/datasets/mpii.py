"""MPII Human Pose: 16 joints, scored by PCKh@0.5 (Andriluka et al., CVPR 2014).

Layout, as the common top-down codebases have it:

    annot/valid.json (or mpii_val.json)       rows of image, center, scale, joints (16, 2), joints_vis (16,)
    annot/gt_valid.mat (or mpii_gt_val.mat)   headboxes_src (2, 2, N): the head boxes that errors are divided by
    images/

The reference length is 0.6 times the head box's diagonal. Without the MATLAB file it is the distance from upper neck to
head top, and the verdict says so. Pelvis and thorax count for nothing in the mean, as in the official evaluation.
Coordinates in these files count from 1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.calibration.datasets.base import Labels, Picture, Scorer
from edgepose.calibration.datasets.files import (
    LARGEST_PX,
    MALFORMED,
    check_present,
    read_json,
    read_mat,
    read_picture,
)
from edgepose.calibration.datasets.labelled import PckScorer
from edgepose.errors import DatasetError
from edgepose.skeletons import get_skeleton
from edgepose.types import ModelSpec

__all__ = ["MpiiHumanPose"]

_JOINTS = get_skeleton("mpii16").joints
_NECK, _TOP = _JOINTS.index("upper_neck"), _JOINTS.index("head_top")
_UNCOUNTED = ("pelvis", "thorax")
_HEAD_BIAS = 0.6
_SCALE_PX = 200
_DOWN_PX = 15  # the annotated centre is above the person's: moved down by this times the scale

_TABLES = ("annot/valid.json", "annot/mpii_val.json", "annotations/mpii_val.json", "valid.json", "mpii_val.json")
_HEADS = ("gt_valid.mat", "mpii_gt_val.mat")


class MpiiHumanPose:
    """MPII's validation people; implements ``PictureData``. Boxes come from the annotated centre and scale."""

    kind = "mpii"
    boxes = "ground truth"
    joints: tuple[str, ...] | None = _JOINTS

    def __init__(self, root: Path) -> None:
        """Read the annotations.

        Args:
            root: The folder that holds ``annot/`` and ``images/``, or the JSON itself.

        Raises:
            DatasetError: A file is missing or malformed, or nobody can be judged.
        """
        self.path = root if root.is_file() else _find(root)
        heads = [self.path.with_name(name) for name in _HEADS]
        self._heads = next((path for path in heads if path.is_file()), None)
        rows = read_json(self.path)
        try:
            self._read(rows)
        except MALFORMED as error:
            raise DatasetError(
                f"{self.path}: not MPII annotations ({type(error).__name__}: {error}): "
                "it needs rows of image, center, scale, joints and joints_vis"
            ) from None
        self._reference = self._head_sizes()
        usable = np.flatnonzero((self._reference > 0) & self._visible.any(axis=1))
        if not len(usable):
            raise DatasetError(
                f"{self.path}: none of its {len(self._names)} people has a head to divide errors by and labels"
            )
        self._pictures = _by_image(self._names, usable)
        self.left_out = len(self._names) - len(usable)
        self.image_root = self.path.parent.parent / "images"
        if not self.image_root.is_dir():
            self.image_root = self.path.parent / "images"

    @staticmethod
    def recognises(root: Path) -> bool:
        """Whether the folder has MPII's annotations in one of the usual places."""
        return root.is_dir() and any((root / name).is_file() for name in _TABLES)

    def __len__(self) -> int:
        return len(self._pictures)

    def pictures(self, limit: int | None = None) -> Iterator[Picture]:
        """Those with somebody to judge, numbered in the file's order."""
        chosen = list(self._pictures.items())[:limit]
        check_present([self.image_root / self._names[people[0]] for _, people in chosen], str(self.path))
        return (self._picture(number, people) for number, people in chosen)

    def scorer(self, spec: ModelSpec) -> Scorer:
        """PCKh@0.5, and 0.25."""
        remarks = []
        if self._heads is None:
            remarks.append(f"no {_HEADS[0]}: errors are divided by upper neck to head top, not by MPII's head boxes")
        if self.left_out:
            remarks.append(f"{self.left_out} people without a head or labelled joints are left out")
        return PckScorer(
            spec,
            _JOINTS,
            name="PCKh",
            share=0.5,
            where=str(self.path),
            without=_UNCOUNTED,
            remarks=tuple(remarks),
        )

    def sources(self) -> list[Path]:
        """The annotations, and the head boxes."""
        return [self.path, *([self._heads] if self._heads else [])]

    def _read(self, rows: Sequence[Any]) -> None:
        joints = np.array([row["joints"] for row in rows], float) - 1
        visible = np.array([row["joints_vis"] for row in rows], float) > 0
        centers = np.array([row["center"] for row in rows], float) - 1
        scales = np.array([row["scale"] for row in rows], float)
        self._names = [str(row["image"]) for row in rows]
        _check(joints, visible, centers, scales)
        near = (np.abs(joints) <= LARGEST_PX).all(axis=2)
        self._joints, self._visible = np.where(near[:, :, None], joints, 0), visible & near
        self._boxes = _boxes(centers, scales)

    def _picture(self, number: int, people: list[int]) -> Picture:
        path = self.image_root / self._names[people[0]]
        return Picture(
            name=path.name,
            file=path.name,
            read=partial(read_picture, path, exif=False),
            boxes_xywh=self._boxes[people],
            labels=Labels(self._joints[people], self._visible[people], self._reference[people]),
            image_id=number,
        )

    def _head_sizes(self) -> NDArray[np.float64]:
        if self._heads is None:
            head = np.linalg.norm(self._joints[:, _TOP] - self._joints[:, _NECK], axis=1)
            return np.where(self._visible[:, [_TOP, _NECK]].all(axis=1), head, 0.0)
        boxes, count = np.asarray(read_mat(self._heads).get("headboxes_src")), len(self._names)
        if count == 1 and boxes.shape == (2, 2):  # the reader drops axes of length 1
            boxes = boxes[:, :, None]
        if boxes.dtype.kind not in "iuf" or boxes.shape != (2, 2, count):
            raise DatasetError(
                f"{self._heads}: headboxes_src is {boxes.dtype} {boxes.shape}, expected numbers (2, 2, {count}): "
                f"it does not belong to {self.path.name}"
            )
        corners = boxes.astype(float)
        if (np.abs(corners) > LARGEST_PX).any():
            raise DatasetError(f"{self._heads}: a corner of headboxes_src is in no picture: get the file again")
        return np.asarray(_HEAD_BIAS * np.linalg.norm(corners[1] - corners[0], axis=0))


def _by_image(names: Sequence[str], usable: NDArray[np.int64]) -> dict[int, list[int]]:
    """Number of the image, by first appearance -> rows of its usable people."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    people: dict[int, list[int]] = defaultdict(list)
    for row in usable:
        people[numbers[names[row]]].append(int(row))
    return dict(sorted(people.items()))


def _find(root: Path) -> Path:
    found = next((root / name for name in _TABLES if (root / name).is_file()), None)
    if found is None:
        raise DatasetError(f"{root}: no MPII annotations here (looked for {', '.join(_TABLES)})")
    return found


def _check(joints: Any, visible: Any, centers: Any, scales: Any) -> None:
    count = len(joints)
    expected = {"joints": (len(_JOINTS), 2), "joints_vis": (len(_JOINTS),), "center": (2,), "scale": ()}
    for (name, shape), array in zip(expected.items(), (joints, visible, centers, scales), strict=True):
        if array.shape != (count, *shape):
            raise ValueError(f"{name} {array.shape}, expected {(count, *shape)}")
    if not count:
        raise ValueError("no people")
    far = ~(np.abs(centers) <= LARGEST_PX).all(axis=1) | ~((scales > 0) & (scales * _SCALE_PX <= LARGEST_PX))
    if far.any():
        raise ValueError(f"the center or the scale of row {far.argmax()} is no place or size in a picture")


def _boxes(centers: NDArray[np.float64], scales: NDArray[np.float64]) -> NDArray[np.float64]:
    """Square boxes xywh of 200 px times the scale around the centre."""
    centers = centers + np.stack([np.zeros_like(scales), _DOWN_PX * scales], axis=1)
    sides = np.repeat(_SCALE_PX * scales[:, None], 2, axis=1)
    return np.concatenate([centers - (sides - 1) / 2, sides], axis=1)
