"""Leeds Sports Pose and its extension: one person per picture, 14 joints, scored by PCK@0.2 of the torso.

Johnson & Everingham, BMVC 2010 (LSP) and CVPR 2011 (LSPET). Layouts that are read, as a folder or as a zip file:

    prepared                          images/<id>.jpg, joints.npz with ids (N,) and joints (N, 14, 3)
    lsp_dataset (original)            images/im0001.jpg, joints.mat (3, 14, 2000)
    lspet_dataset (original)          images/im00001.jpg, joints.mat (14, 3, 10000)

The third number of a joint says whether it is labelled, except in the original LSP, where every joint is. Of its
2,000 pictures the last 1,000 are the test set, and only those are used.

The torso is the distance from right shoulder to left hip. Where one of them is not labelled, 0.4 times the diagonal of
the box around the labelled joints stands for it, and the verdict says for how many people.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
from numpy.typing import NDArray

from edgepose.calibration.datasets.arrays import number_array, read_npz
from edgepose.calibration.datasets.base import Image, Labels, Picture, Scorer
from edgepose.calibration.datasets.files import LARGEST_PX, decode_picture, read_mat, read_picture, refuse_missing
from edgepose.calibration.datasets.labelled import PckScorer
from edgepose.errors import DatasetError
from edgepose.geometry import boxes_around
from edgepose.skeletons import get_skeleton
from edgepose.types import ModelSpec

__all__ = ["LeedsSports"]

_JOINTS = get_skeleton("lsp14").joints
_SHOULDER, _HIP = _JOINTS.index("right_shoulder"), _JOINTS.index("left_hip")
_DIAGONAL = 0.4
"""Torso length over the diagonal of the joints' box, where shoulder or hip is not labelled."""
_LARGEST_PICTURE = 50_000_000
_LARGEST_TABLE = 256 * 2**20
"""Unpacked bytes from which a table or a member of it is refused; the largest, LSPET's, has 5 MB."""
_NUMBER = re.compile(r"[^.]*?([0-9]{1,9})\.jpg")
_ORIGINAL_LSP, _ORIGINAL_LSP_TEST = 2000, 1000

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)

Member = Path | zipfile.ZipInfo
Table = tuple[NDArray[np.int64], NDArray[np.float64]]


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
        near = np.asarray((np.abs(joints) <= LARGEST_PX).all(axis=2))
        joints, visible = np.where(near[:, :, None], joints, 0), near & (joints[:, :, 2] > 0)
        boxes = np.array([boxes_around(row[seen, :2]) for row, seen in zip(joints, visible, strict=True)]).reshape(
            -1, 4
        )
        labelled = (boxes[:, 2:] > 0).any(axis=1)
        self.without_labels = int((~labelled).sum())
        self._ids, self._joints, self._visible = ids[labelled], joints[labelled], visible[labelled]
        self._boxes = boxes[labelled]
        if not len(self._ids):
            raise DatasetError(f"{root}: none of its {len(ids)} pictures has labelled joints")
        self.without_torso = int((~self._visible[:, [_SHOULDER, _HIP]].all(axis=1)).sum())
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
        """PCK@0.2, and 0.1, of the torso: see the module."""
        remarks = []
        if self.without_labels:
            remarks.append(
                f"{self.without_labels} pictures have fewer than two labelled joints (or all in one place) and are "
                "left out"
            )
        if self.without_torso:
            remarks.append(
                f"{self.without_torso} of {len(self)} people have no labelled torso: {_DIAGONAL} times the diagonal "
                "of their box stands for it"
            )
        return PckScorer(spec, _JOINTS, name="PCK", share=0.2, where=str(self.path), remarks=tuple(remarks))

    def sources(self) -> list[Path]:
        """The archive, or the table."""
        return [self.path] if self._archive else [p for p in map(self.path.joinpath, _TABLES) if p.is_file()][:1]

    def _picture(self, row: int, number: int) -> Picture:
        joints, visible = self._joints[row, :, :2].astype(float), self._visible[row]
        box = self._boxes[row]
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
            return read_picture(member, exif=False)
        assert self._archive is not None
        try:
            return decode_picture(self._archive.read(member), exif=False)
        except Exception:  # damaged archives make zipfile raise nearly anything
            return None

    def _pictures_by_number(self) -> dict[int, Member]:
        members: list[Member] = []
        if self._archive is None:
            members += (self.path / "images").glob("*.jpg")
        else:
            pictures = [row for row in self._archive.infolist() if PurePosixPath(row.filename).parent.name == "images"]
            members += [row for row in pictures if row.file_size < _LARGEST_PICTURE]
        numbers = {member: _NUMBER.fullmatch(Path(_name(member)).name) for member in members}
        return {int(found[1]): member for member, found in numbers.items() if found}

    def _table(self) -> Table:
        """Numbers of the pictures (N,) and joints (N, 14, 3)."""
        if self._archive is not None:
            return _packed_table(self._archive, self.path)
        tables = [self.path / name for name in _TABLES if (self.path / name).is_file()]
        if not tables:
            raise DatasetError(f"{self.path}: needs {' or '.join(_TABLES)} beside images/, or a zip file with them")
        return _parse_table(tables[0], str(tables[0]))


_TABLES = ("joints.npz", "joints.mat")


def _open_archive(path: Path) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{path}: not a zip file, or truncated ({error}): copy it again") from None
    for row in archive.infolist():
        if row.flag_bits & 1 or row.compress_type not in _METHODS:
            how = "encrypted" if row.flag_bits & 1 else "compressed in a way that Python cannot read"
            raise DatasetError(f"{path}: {row.filename} is {how}: unpack it, and give the folder")
    return archive


def _packed_table(archive: zipfile.ZipFile, path: Path) -> Table:
    members = {PurePosixPath(row.filename).name: row for row in archive.infolist()}
    name = next((name for name in _TABLES if name in members), None)
    if name is None:
        raise DatasetError(f"{path}: no {' or '.join(_TABLES)} in it")
    where = f"{path}: {members[name].filename}"
    if members[name].file_size > _LARGEST_TABLE:
        raise DatasetError(f"{where} unpacks to {members[name].file_size} bytes, over {_LARGEST_TABLE}: refused")
    try:
        content = archive.read(members[name])
    except Exception as error:  # damaged archives make zipfile raise nearly anything
        raise DatasetError(
            f"{where} cannot be read ({error or type(error).__name__}): copy the archive again"
        ) from None
    return _parse_table(io.BytesIO(content), where)


def _parse_table(file: Path | IO[bytes], where: str) -> Table:
    if where.endswith(".mat"):
        return _parse_mat(read_mat(file, where).get("joints"), where)
    ids = number_array(read_npz(file, "ids", where, _LARGEST_TABLE), (None,), f"{where}: ids")
    joints = number_array(
        read_npz(file, "joints", where, _LARGEST_TABLE), (len(ids), len(_JOINTS), 3), f"{where}: joints"
    )
    if not ((ids >= 0) & (ids < 1e9) & (ids == np.floor(ids))).all():
        raise DatasetError(f"{where}: ids are the numbers of the pictures, and some are no whole number from 0")
    return ids.astype(np.int64), joints.astype(np.float64)


def _parse_mat(value: object, where: str) -> Table:
    joints = number_array(value, (None, None, None), f"{where}: joints").astype(np.float64)
    if joints.shape[:2] == (len(_JOINTS), 3):
        return np.arange(1, joints.shape[2] + 1), joints.transpose(2, 0, 1)
    if joints.shape[:2] != (3, len(_JOINTS)):
        raise DatasetError(f"{where}: joints: expected shape (3, 14, N) or (14, 3, N), got {joints.shape}")
    joints = joints.transpose(2, 1, 0).copy()
    joints[:, :, 2] = 1  # the original says whether a joint is hidden: its place is labelled all the same
    first = _ORIGINAL_LSP_TEST if len(joints) == _ORIGINAL_LSP else 0
    return np.arange(first + 1, len(joints) + 1), joints[first:]


def _name(member: Member) -> str:
    return member.filename if isinstance(member, zipfile.ZipInfo) else member.name
