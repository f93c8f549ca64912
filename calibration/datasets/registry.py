"""Data sets by kind: one row each, imported when it is opened."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepose.calibration.datasets.base import LiftingData, PictureData
from edgepose.errors import DatasetError

__all__ = ["DATASETS", "LIFTING", "PICTURES", "DatasetRow", "open_lifting", "open_pictures"]


@dataclass(frozen=True)
class DatasetRow:
    """One kind of data.

    Attributes:
        kind: Name on the command line.
        target: ``module:Class``.
        help: What it is, and how it is scored.
        lifting: Whether it holds 3D truth for lifting models instead of pictures.
    """

    kind: str
    target: str
    help: str
    lifting: bool = False

    def load(self) -> Any:
        """The class."""
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name)


DATASETS = {
    row.kind: row
    for row in (
        DatasetRow("coco", "edgepose.calibration.datasets.coco:CocoKeypoints", "COCO keypoints: AP and AR"),
        DatasetRow("lsp", "edgepose.calibration.datasets.lsp:LeedsSports", "Leeds Sports Pose, LSPET: PCK@0.2"),
        DatasetRow("mpii", "edgepose.calibration.datasets.mpii:MpiiHumanPose", "MPII Human Pose: PCKh@0.5"),
        DatasetRow("unlabeled", "edgepose.calibration.datasets.pictures:Unlabeled", "images or a video: agreement"),
        DatasetRow("h36m", "edgepose.calibration.datasets.h36m:Human36M", "Human3.6M: MPJPE", lifting=True),
        DatasetRow(
            "mpi-inf-3dhp",
            "edgepose.calibration.datasets.mpi_inf_3dhp:MpiInf3dhp",
            "MPI-INF-3DHP: MPJPE, 3DPCK, AUC",
            lifting=True,
        ),
        DatasetRow("mocap", "edgepose.calibration.datasets.mocap:MocapPoses", "held-out 3D poses: MPJPE", lifting=True),
    )
}
PICTURES = tuple(kind for kind, row in DATASETS.items() if not row.lifting)
LIFTING = tuple(kind for kind, row in DATASETS.items() if row.lifting)


def open_pictures(root: Path, kind: str | None = None, detections: Path | None = None) -> PictureData:
    """Open a data set for 2D models.

    Args:
        root: Its folder or file.
        kind: One of ``PICTURES``; by default what the root looks like, and else unlabeled pictures.
        detections: A COCO detection file, for ``coco``.

    Raises:
        DatasetError: Nothing is there, or it is not of that kind.
    """
    if not root.exists():
        raise DatasetError(f"{root}: no such file or folder")
    row = DATASETS[kind] if kind else next(DATASETS[k] for k in PICTURES if DATASETS[k].load().recognises(root))
    if row.lifting:
        raise DatasetError(f"{root}: {row.kind} holds 3D poses for lifting models, and this model finds 2D joints")
    if row.kind == "coco":
        return row.load().open(root, detections)  # type: ignore[no-any-return]
    return row.load()(root)  # type: ignore[no-any-return]


def open_lifting(root: Path, kind: str) -> LiftingData:
    """Open a data set for lifting models; see :func:`open_pictures`."""
    if not root.exists():
        raise DatasetError(f"{root}: no such file or folder")
    return DATASETS[kind].load()(root)  # type: ignore[no-any-return]
