"""Files that are whole or not there: hashes, and writing beside the target followed by a rename."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = [
    "PartialFile",
    "cache_folder",
    "canonical_json",
    "new_folder",
    "replace_file",
    "sha256_file",
    "sync",
    "sync_folder",
]


def cache_folder(*parts: str) -> Path:
    """A folder in this user's cache, which may not be there yet: ``~/.cache/edgepose/...``, by the XDG rules."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").joinpath("edgepose", *parts)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    """hashlib.file_digest for Python 3.10."""
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def canonical_json(value: Any) -> str:
    """Indented JSON with sorted keys and a final newline; NaN and infinity, which JSON has not, become null."""
    return json.dumps(_finite(value), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class PartialFile:
    """A file that is written beside its place: ``keep`` gives it its name, ``discard`` removes it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")

    def keep(self) -> None:
        """Replace ``path`` with what was written."""
        os.replace(self.partial, self.path)

    def discard(self) -> None:
        """Remove what was written, if anything is left of it."""
        self.partial.unlink(missing_ok=True)


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Give a path to write to; it becomes ``path`` when the block ends, and vanishes when it fails."""
    file = PartialFile(path)
    try:
        yield file.partial
        file.keep()
    finally:
        file.discard()


@contextmanager
def new_folder(path: Path, *, replace: bool) -> Iterator[Path]:
    """Give an empty folder beside ``path``; it becomes ``path`` when the block ends, and vanishes when it fails.

    Args:
        path: Where the folder goes. Its parents are made.
        replace: Whether a folder that is there by then gives way; an empty one always does.

    Raises:
        FileExistsError: A folder is there when the block ends, and ``replace`` is not given.
    """
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    old = work.with_suffix(".old")
    try:
        work.chmod(0o777 & ~_umask())
        yield work
        sync_folder(work)
        try:
            if replace and path.exists():
                path.rename(old)
            work.rename(path)
        except BaseException:
            if old.exists() and not path.exists():
                old.rename(path)
            raise
        sync(path.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Flush every file of a folder, and the folder, to the disk."""
    for path in [*folder.iterdir(), folder]:
        sync(path)


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
