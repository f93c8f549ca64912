"""MPI-INF-3DHP in the layout of P-STMO's preparation scripts, which later lifting models share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.calibration.datasets.arrays import as_dict, numeric_array, read_npz
from edgepose.calibration.datasets.base import LiftingClip
from edgepose.calibration.datasets.files import check_split, existing_file
from edgepose.errors import DatasetError
from edgepose.skeletons import get_skeleton

__all__ = ["JOINTS", "MpiInf3dhp"]

FILES = {"test": "data_test_3dhp.npz", "train": "data_train_3dhp.npz"}

JOINTS = (
    *("head_top", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow"),
    *("left_wrist", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle"),
    *("pelvis", "spine", "head"),
)
"""The files' 17 joints."""

_OUR_NAMES = {"neck": "thorax", "head": "neck", "head_top": "head"}
_ORDER = [[_OUR_NAMES.get(name, name) for name in JOINTS].index(joint) for joint in get_skeleton("h36m17").joints]
_SQUARE, _WIDE = (2048, 2048), (1920, 1080)


class MpiInf3dhp:
    """MPI-INF-3DHP for lifting models, with its joints put into the order of ``h36m17``.

    The dataset's ``neck`` is that skeleton's ``thorax``, its ``head`` the ``neck``, its ``head_top`` the ``head``; the
    others have the same names. A folder holds ``data_test_3dhp.npz`` (``data``: sequence TS1 to TS6 -> ``data_2d``
    (F, 17, 2) pixels, ``data_3d`` (F, 17, 3) millimetres in the camera's frame, ``valid`` (F,)) or
    ``data_train_3dhp.npz`` (``data``: "S1 Seq1" -> a list whose first item is camera -> ``data_2d``, ``data_3d``).
    ``data_3d`` is whichever annotation the preparation took; most take bodies scaled to one size (``univ_annot3``).

    All clips are of one group, since the published evaluation weighs every frame the same.

    Args:
        path: The folder.
        split: ``test`` or ``train``.
        stride: Takes every n-th frame of a clip.

    Raises:
        DatasetError: The file is missing, or an argument is none of the above.
    """

    kind = "mpi-inf-3dhp"
    skeleton = "h36m17"

    def __init__(self, path: Path, *, split: str = "test", stride: int = 1) -> None:
        check_split(path, split, FILES, stride)
        self.path = path
        self.split = split
        self.stride = stride
        self.file = existing_file(path, FILES[split], "P-STMO's")

    def sources(self) -> list[Path]:
        """The file."""
        return [self.file]

    def clips(self, limit: int | None = None) -> Iterator[LiftingClip]:
        """One clip per sequence, and per camera in training data, by name.

        Raises:
            DatasetError: The file is damaged, has arrays of an unexpected shape, or is in other units or joints.
        """
        return itertools.islice(self._clips(), limit)

    def _clips(self) -> Iterator[LiftingClip]:
        data = as_dict(read_npz(self.file, "data"), f"{self.file}: data")
        for sequence in sorted(data, key=str):
            where = f"{self.file}: {sequence}"
            if self.split == "test":
                yield self._clip(sequence, as_dict(data[sequence], where), where)
                continue
            cameras = as_dict(_first(data[sequence], where), where)
            for camera in sorted(cameras, key=_numerically):
                camera_where = f"{where}, camera {camera}"
                yield self._clip(f"{sequence} {camera}", as_dict(cameras[camera], camera_where), camera_where)

    def _clip(self, name: str, arrays: dict[str, Any], where: str) -> LiftingClip:
        xyz_mm = numeric_array(_entry(arrays, "data_3d", where), (None, len(JOINTS), 3), f"{where}: data_3d")
        frames = len(xyz_mm)
        xy = numeric_array(_entry(arrays, "data_2d", where), (frames, len(JOINTS), 2), f"{where}: data_2d")
        valid = np.ones(frames, bool)
        if self.split == "test":
            valid = numeric_array(_entry(arrays, "valid", where), (frames,), f"{where}: valid") != 0
        _check_body(xyz_mm[valid], where)
        xyz = xyz_mm[:: self.stride, _ORDER] / np.float32(1000)
        return LiftingClip(
            name=name,
            keypoints_xy=xy[:: self.stride, _ORDER],
            keypoints_xyz=xyz - xyz[:, :1],
            valid=valid[:: self.stride],
            image_wh=_WIDE if name in ("TS5", "TS6") else _SQUARE,
            group="all",
        )


def _first(value: Any, where: str) -> Any:
    if not isinstance(value, (list, tuple)) or not value:
        raise DatasetError(f"{where}: expected a list with the cameras as its first item, got {type(value).__name__}")
    return value[0]


def _entry(arrays: dict[str, Any], key: str, where: str) -> Any:
    if key not in arrays:
        raise DatasetError(f"{where}: no {key} (there are: {', '.join(map(str, arrays)) or 'none'})")
    return arrays[key]


def _numerically(camera: object) -> tuple[int, str]:
    text = str(camera)
    return (int(text), text) if text.isdecimal() else (-1, text)


def _check_body(xyz_mm: NDArray[np.float32], where: str) -> None:
    """Files of the same name are about in metres, and in Human3.6M's joint order."""
    if not len(xyz_mm):
        return
    thigh = _median_length(xyz_mm, "right_hip", "right_knee")
    if not thigh > _median_length(xyz_mm, "right_elbow", "right_wrist"):
        raise DatasetError(f"{where}: the joints are not in the order {', '.join(JOINTS)}; prepare the file anew")
    if not 100 < thigh < 1000:
        raise DatasetError(f"{where}: a thigh of {thigh:.3g}; expected millimetres")


def _median_length(xyz_mm: NDArray[np.float32], first: str, second: str) -> float:
    apart = xyz_mm[:, JOINTS.index(first)] - xyz_mm[:, JOINTS.index(second)]
    return float(np.median(np.linalg.norm(apart, axis=-1)))
