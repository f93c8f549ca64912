"""Leeds Sports Pose and its extension: one person per picture, 14 joints, scored by PCK@0.2 of the torso.

Johnson & Everingham, BMVC 2010 (LSP) and CVPR 2011 (LSPET). Layouts that are read:

    lspet.zip, or a folder            images/<id>.jpg, joints.npz with ids (N,) and joints (N, 14, 3)
    lsp_dataset/ (original)           images/im0001.jpg, joints.mat (3, 14, 2000)
    lspet_dataset/ (original)         images/im00001.jpg, joints.mat (14, 3, 10000)

The third number of a joint says whether it is labelled, except in the original LSP, where every joint is. Of its
2,000 pictures the last 1,000 are the test set, and only those are used.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edgepose.calibration.datasets.base import Image, Labels, Picture, Scorer
from edgepose.calibration.datasets.files import read_mat, refuse_missing
from edgepose.calibration.datasets.labelled import PckScorer
from edgepose.errors import DatasetError
from edgepose.geometry import boxes_around
from edgepose.skeletons import get_skeleton
from edgepose.sources import read_image
from edgepose.types import ModelSpec

__all__ = ["LeedsSports"]

_JOINTS = get_skeleton("lsp14").joints
_SHOULDER, _HIP = _JOINTS.index("right_shoulder"), _JOINTS.index("left_hip")
_DIAGONAL = 0.4
"""Torso length over the diagonal of the joints' box, where shoulder or hip is not labelled."""
_LARGEST_PICTURE = 50_000_000
_ORIGINAL_LSP, _ORIGINAL_LSP_TEST = 2000, 1000

Member = Path | zipfile.ZipInfo


class LeedsSports:
    """LSP or LSPET; implements ``PictureData``. Boxes are those around the labelled joints."""

    kind = "lsp"
    boxes = "around the labelled joints"
    joints: tuple[str, ...] | None = _JOINTS

    def __init__(self, root: Path) -> None:
        """Read the table of joints.

        Args:
            root: A zip file or folder in one of the layouts above.

        Raises:
            DatasetError: It is none of them, damaged, or without labelled people.
        """
        self.path = root
        self._archive = _open_archive(root) if root.is_file() else None
        ids, joints = self._table()
        visible = (joints[:, :, 2] > 0) & np.isfinite(joints).all(axis=2)
        labelled = visible.sum(axis=1) >= 2
        self.without_labels = int((~labelled).sum())
        self._ids, self._joints, self._visible = ids[labelled], joints[labelled], visible[labelled]
        if not len(self._ids):
            raise DatasetError(f"{root}: none of its {len(ids)} pictures has labelled joints")
        self._files = self._pictures_by_number()

    @staticmethod
    def recognises(root: Path) -> bool:
        """Whether there is a table of joints: a zip file, or a folder with ``joints.npz`` or ``joints.mat``."""
        return root.suffix.lower() == ".zip" or any((root / name).is_file() for name in ("joints.npz", "joints.mat"))

    def __len__(self) -> int:
        return len(self._ids)

    def pictures(self, limit: int | None = None) -> Iterator[Picture]:
        """One per labelled person, in the table's order."""
        numbers = [int(number) for number in self._ids[:limit]]
        missing = [self.path / "images" / f"{n:05d}.jpg" for n in numbers if n not in self._files]
        refuse_missing(missing, len(numbers), str(self.path))
        return (self._picture(i, number) for i, number in enumerate(numbers))

    def scorer(self, spec: ModelSpec) -> Scorer:
        """PCK@0.2, and 0.1, of the torso (right shoulder to left hip)."""
        remarks: tuple[str, ...] = ()
        if self.without_labels:
            remarks = (f"{self.without_labels} pictures have fewer than two labelled joints and are left out",)
        return PckScorer(spec, _JOINTS, name="PCK", share=0.2, where=str(self.path), remarks=remarks)

    def sources(self) -> list[Path]:
        """The archive, or the table."""
        return [self.path] if self._archive else [p for p in map(self.path.joinpath, _TABLES) if p.is_file()][:1]

    def _picture(self, row: int, number: int) -> Picture:
        joints, visible = self._joints[row, :, :2].astype(float), self._visible[row]
        box = boxes_around(joints[visible])
        ends = (_SHOULDER, _HIP)
        torso = np.linalg.norm(joints[_SHOULDER] - joints[_HIP])
        reference = torso if visible[list(ends)].all() else _DIAGONAL * np.linalg.norm(box[2:])
        file = self._files[number]
        return Picture(
            name=Path(_name(file)).name,
            file=_name(file),
            read=partial(self._read, file),
            boxes_xywh=box[None],
            labels=Labels(joints[None], visible[None], np.array([reference], float)),
            image_id=number,
        )

    def _read(self, member: Member) -> Image | None:
        if isinstance(member, Path):
            return read_image(member, exif=False)
        assert self._archive is not None
        try:
            data = np.frombuffer(self._archive.read(member), np.uint8)
            return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION), dtype=np.uint8)
        except (OSError, TypeError, ValueError, zipfile.BadZipFile, zlib.error, cv2.error):
            return None

    def _pictures_by_number(self) -> dict[int, Member]:
        members: list[Member] = []
        if self._archive is None:
            members += (self.path / "images").glob("*.jpg")
        else:
            members += [row for row in self._archive.infolist() if row.file_size < _LARGEST_PICTURE]
        numbers = {member: re.search(r"(\d+)\.jpg$", _name(member)) for member in members}
        return {int(found[1]): member for member, found in numbers.items() if found}

    def _table(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Numbers of the pictures (N,) and joints (N, 14, 3)."""
        try:
            if self._archive is not None:
                name = next(n for n in self._archive.namelist() if n.endswith("joints.npz"))
                return _from_npz(io.BytesIO(self._archive.read(name)))
            if (self.path / "joints.npz").is_file():
                return _from_npz(io.BytesIO((self.path / "joints.npz").read_bytes()))
            if (self.path / "joints.mat").is_file():
                return _from_mat(self.path / "joints.mat")
        except (StopIteration, OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as e:
            reason = f"{type(e).__name__}: {e}" if str(e) else "no joints.npz in it"
            raise DatasetError(f"{self.path}: its table of joints cannot be read ({reason}): copy it again") from None
        raise DatasetError(f"{self.path}: needs {' or '.join(_TABLES)} beside images/, or a zip file with them")


_TABLES = ("joints.npz", "joints.mat")


def _open_archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{path}: not a zip file, or truncated ({error}): copy it again") from None


def _from_npz(file: io.BytesIO) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    with np.load(file, allow_pickle=False) as data:
        ids, joints = np.asarray(data["ids"], np.int64), np.asarray(data["joints"], np.float64)
    if joints.shape != (len(ids), len(_JOINTS), 3):
        raise ValueError(f"joints {joints.shape} for {len(ids)} ids, expected (N, {len(_JOINTS)}, 3)")
    return ids, joints


def _from_mat(path: Path) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    joints = np.asarray(read_mat(path)["joints"], np.float64)
    if joints.shape[:2] == (len(_JOINTS), 3):
        return np.arange(1, joints.shape[2] + 1), joints.transpose(2, 0, 1)
    if joints.shape[:2] != (3, len(_JOINTS)):
        raise ValueError(f"joints {joints.shape}, expected (3, 14, N) or (14, 3, N)")
    joints = joints.transpose(2, 1, 0).copy()
    joints[:, :, 2] = 1  # the original says whether a joint is hidden: its place is labelled all the same
    first = _ORIGINAL_LSP_TEST if len(joints) == _ORIGINAL_LSP else 0
    return np.arange(first + 1, len(joints) + 1), joints[first:]


def _name(member: Member) -> str:
    return member.filename if isinstance(member, zipfile.ZipInfo) else member.name
