"""Reading the files that data sets are made of, with one line for each way they can be wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np

from edgepose.calibration.datasets.base import Image
from edgepose.errors import DatasetError
from edgepose.sources import quiet_opencv

__all__ = [
    "LARGEST_PX",
    "MALFORMED",
    "check_present",
    "check_split",
    "decode_picture",
    "existing_file",
    "npz_files",
    "read_json",
    "read_mat",
    "read_picture",
    "refuse_missing",
    "whole_number",
]

LARGEST_PX = 1e6
"""Coordinates and lengths beyond this, in pixels, are damaged data."""

MALFORMED = (AttributeError, KeyError, OverflowError, TypeError, ValueError)
"""What reading a JSON row raises where the row is not as it should be."""

_NAMED = 10
_WHOLE = re.compile(r"-?[0-9]{1,18}")


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises:
        DatasetError: It is missing or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror})") from None
    except (RecursionError, ValueError) as error:
        raise DatasetError(f"{path}: not JSON ({error})") from None


def whole_number(value: object) -> int:
    """An id or a size as files have it: 7, 7.0 or "7".

    Raises:
        ValueError: It is none of them, or has more than 18 digits.
    """
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    if isinstance(value, bool) or not _WHOLE.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is no whole number of up to 18 digits")
    return int(text)


def read_mat(file: Path | IO[bytes], where: str = "") -> dict[str, Any]:
    """Variables of a MATLAB file, up to version 7.2.

    Args:
        file: The file.
        where: For people: what it is; the path by default.

    Raises:
        DatasetError: It is damaged, or of another version; or SciPy is not installed.
    """
    where = where or str(file)
    try:
        from scipy.io import loadmat
    except ImportError:
        raise DatasetError(f"{where}: MATLAB files need SciPy: pip install 'edgepose[validate]'") from None
    try:
        content: dict[str, Any] = loadmat(file, squeeze_me=True, struct_as_record=False)
    except Exception as error:  # SciPy raises whatever the damage leads to
        raise DatasetError(f"{where}: not a MATLAB file that can be read ({error}): copy it again") from None
    return content


def read_picture(path: Path, *, exif: bool) -> Image | None:
    """:func:`decode_picture` of a file; None where it cannot be read."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    return decode_picture(content, exif=exif)


def decode_picture(content: bytes, *, exif: bool) -> Image | None:
    """Decode a picture's file to (h, w, 3) uint8 BGR, or None where that fails or a JPEG is cut off.

    Args:
        content: The file's bytes.
        exif: Turn the picture as its EXIF orientation says. Data set protocols do not.
    """
    if content[:2] == b"\xff\xd8" and not _ends(content):
        return None
    flags = cv2.IMREAD_COLOR if exif else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    with quiet_opencv():
        try:
            image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
        except cv2.error:  # an empty file, or a picture too large to decode
            return None
    return None if image is None else np.asarray(image, np.uint8)


def _ends(jpeg: bytes) -> bool:
    """Whether there is an end marker after the headers: OpenCV fills what is missing with grey and says nothing.

    Headers are stepped over, since a thumbnail in them has an end of its own. What follows the end does not matter:
    cameras append megabytes there.
    """
    place = 2
    while jpeg[place : place + 1] == b"\xff" and jpeg[place + 1 : place + 2] != b"\xda":
        filled = jpeg[place + 1 : place + 2] == b"\xff"
        place += 1 if filled else 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
    return jpeg.find(b"\xff\xd9", place) >= 0


def check_present(paths: Sequence[Path], where: str) -> None:
    """Find out before a long run whether every picture is there.

    Raises:
        DatasetError: Some are not: names the first ten, and how many in all.
    """
    refuse_missing([path for path in paths if not path.is_file()], len(paths), where)


def refuse_missing(missing: Sequence[Path], total: int, where: str) -> None:
    """See :func:`check_present`, where it is known which pictures of how many are missing."""
    if missing:
        names = ", ".join(path.name for path in missing[:_NAMED])
        more = ", ..." if len(missing) > _NAMED else ""
        raise DatasetError(
            f"{where}: {len(missing)} of {total} images are missing from {missing[0].parent}: {names}{more}: "
            "copy them there, or give annotations of those that you have"
        )


def existing_file(folder: Path, name: str, makers: str) -> Path:
    """A file that has to be in a folder.

    Raises:
        DatasetError: It is not; says what is there, and who prepares it.
    """
    if not (folder / name).is_file():
        raise DatasetError(f"{folder}: no {name} here ({npz_files(folder)}); {makers} scripts prepare it")
    return folder / name


def npz_files(folder: Path) -> str:
    """For messages: which ``.npz`` files a folder holds."""
    if not folder.is_dir():
        return "there is no such folder"
    return "there are: " + (", ".join(sorted(file.name for file in folder.glob("*.npz"))) or "no .npz files")


def check_split(path: Path, split: str, splits: Iterable[str], stride: int) -> None:
    """Refuse a split that is not there, and a stride that takes no frame.

    Raises:
        DatasetError: See above.
    """
    if split not in splits:
        raise DatasetError(f"{path}: no split {split!r} (there are: {', '.join(splits)})")
    if stride < 1:
        raise DatasetError(f"{path}: stride {stride} takes no frame; it is 1 or more")
