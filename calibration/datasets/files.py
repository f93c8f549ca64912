"""Reading the files that data sets are made of, with one line for each way they can be wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgepose.errors import DatasetError

__all__ = ["check_present", "read_json", "read_mat", "refuse_missing"]

_NAMED = 10


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


def read_mat(path: Path) -> dict[str, Any]:
    """Variables of a MATLAB file, up to version 7.2.

    Raises:
        DatasetError: It is damaged, or of another version; or SciPy is not installed.
    """
    try:
        from scipy.io import loadmat
    except ImportError:
        raise DatasetError(f"{path}: MATLAB files need SciPy: pip install 'edgepose[validate]'") from None
    try:
        content: dict[str, Any] = loadmat(str(path), squeeze_me=True, struct_as_record=False)
    except Exception as error:  # SciPy raises whatever the damage leads to
        raise DatasetError(f"{path}: not a MATLAB file that can be read ({error}): copy it again") from None
    return content


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
