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

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.calibration.datasets.base import Labels, Picture, Scorer
from edgepose.calibration.datasets.files import check_present, read_json, read_mat
from edgepose.calibration.datasets.labelled import PckScorer
from edgepose.errors import DatasetError
from edgepose.skeletons import get_skeleton
from edgepose.sources import read_image
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
            DatasetError: A file is missing or malformed.
        """
        self.path = root if root.is_file() else _find(root)
        heads = [self.path.with_name(name) for name in _HEADS]
        self._heads = next((path for path in heads if path.is_file()), None)
        rows = read_json(self.path)
        try:
            joints = np.array([row["joints"] for row in rows], float) - 1
            visible = np.array([row["joints_vis"] for row in rows], float) > 0
            centers = np.array([row["center"] for row in rows], float) - 1
            scales = np.array([row["scale"] for row in rows], float)
            self._names = [str(row["image"]) for row in rows]
            _check(joints, visible, centers, scales)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DatasetError(
                f"{self.path}: not MPII annotations ({type(error).__name__}: {error}): "
                "it needs rows of image, center, scale, joints and joints_vis"
            ) from None
        self._joints, self._visible = joints, visible & np.isfinite(joints).all(axis=2)
        self._boxes = _boxes(centers, scales)
        self._reference = self._head_sizes()
        self._usable = np.flatnonzero((self._reference > 0) & self._visible.any(axis=1))
        self.image_root = self.path.parent.parent / "images"
        if not self.image_root.is_dir():
            self.image_root = self.path.parent / "images"

    @staticmethod
    def recognises(root: Path) -> bool:
        """Whether the folder has MPII's annotations in one of the usual places."""
        return root.is_dir() and any((root / name).is_file() for name in _TABLES)

    def __len__(self) -> int:
        return len(self._usable)

    def pictures(self, limit: int | None = None) -> Iterator[Picture]:
        """One per annotated person, in the file's order."""
        rows = self._usable[:limit]
        check_present([self.image_root / self._names[i] for i in rows], str(self.path))
        return (self._picture(int(i)) for i in rows)

    def scorer(self, spec: ModelSpec) -> Scorer:
        """PCKh@0.5, and 0.25."""
        remarks = []
        if self._heads is None:
            remarks.append(f"no {_HEADS[0]}: errors are divided by upper neck to head top, not by MPII's head boxes")
        left_out = len(self._names) - len(self._usable)
        if left_out:
            remarks.append(f"{left_out} people without a head or labelled joints are left out")
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

    def _picture(self, row: int) -> Picture:
        path = self.image_root / self._names[row]
        return Picture(
            name=f"{path.name}#{row}",
            file=path.name,
            read=partial(read_image, path, exif=False),
            boxes_xywh=self._boxes[row : row + 1],
            labels=Labels(self._joints[row : row + 1], self._visible[row : row + 1], self._reference[row : row + 1]),
            image_id=row,
        )

    def _head_sizes(self) -> NDArray[np.float64]:
        if self._heads is None:
            head = np.linalg.norm(self._joints[:, _TOP] - self._joints[:, _NECK], axis=1)
            return np.where(self._visible[:, [_TOP, _NECK]].all(axis=1), head, 0.0)
        boxes = np.asarray(read_mat(self._heads).get("headboxes_src"), float)
        if boxes.shape != (2, 2, len(self._names)):
            raise DatasetError(
                f"{self._heads}: headboxes_src is {boxes.shape}, expected (2, 2, {len(self._names)}): "
                f"it does not belong to {self.path.name}"
            )
        return np.asarray(_HEAD_BIAS * np.linalg.norm(boxes[1] - boxes[0], axis=0))


def _find(root: Path) -> Path:
    found = next((root / name for name in _TABLES if (root / name).is_file()), None)
    if found is None:
        raise DatasetError(f"{root}: no MPII annotations here (looked for {', '.join(_TABLES)})")
    return found


def _check(joints: Any, visible: Any, centers: Any, scales: Any) -> None:
    count = len(joints)
    expected = {"joints": (count, len(_JOINTS), 2), "joints_vis": (count, len(_JOINTS)), "center": (count, 2)}
    for (name, shape), array in zip(expected.items(), (joints, visible, centers), strict=True):
        if array.shape != shape:
            raise ValueError(f"{name} {array.shape}, expected {shape}")
    if not count or not (np.isfinite(centers).all() and (scales > 0).all()):
        raise ValueError("no people, or a center or scale that is no number")


def _boxes(centers: NDArray[np.float64], scales: NDArray[np.float64]) -> NDArray[np.float64]:
    """Square boxes xywh of 200 px times the scale around the centre."""
    centers = centers + np.stack([np.zeros_like(scales), _DOWN_PX * scales], axis=1)
    sides = np.repeat(_SCALE_PX * scales[:, None], 2, axis=1)
    return np.concatenate([centers - (sides - 1) / 2, sides], axis=1)
