"""What a board needs of a bundle, a model or any file: names, sizes and hashes, and a key that is the content's."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgepose.bundle import GOLDEN, MANIFEST, Bundle
from edgepose.errors import BundleError
from edgepose.files import sha256_file

__all__ = ["SentFile", "Shipment", "pack"]


@dataclass(frozen=True)
class SentFile:
    """A file to send: where it is here, its size in bytes, its SHA-256 in hex."""

    path: Path
    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> SentFile:
        """Look at a file."""
        return cls(path, path.stat().st_size, sha256_file(path))


@dataclass(frozen=True)
class Shipment:
    """Files that belong together.

    Attributes:
        key: SHA-256 in hex, of a bundle its manifest's: the name of their folder on the board.
        target: The file that is meant; empty for the whole folder.
        files: All of them.
    """

    key: str
    target: str
    files: tuple[SentFile, ...]


def pack(path: Path, variants: Sequence[str] | None = None) -> Shipment:
    """What to send of a bundle (manifest, golden inputs, variants), of a model file, or of any other file.

    Args:
        path: A bundle, or a file. A model file that is part of a bundle takes its manifest and golden inputs along.
        variants: Of a bundle only these.

    Raises:
        BundleError: Not there, damaged, edited, or no variant of that name.
    """
    if path.is_dir() or not path.exists():
        return _pack_bundle(path, variants)
    if variants not in (None, [path.stem]):
        raise BundleError(f"{path}: is one file, variants cannot be chosen from it")
    if (path.parent / MANIFEST).is_file() and path.name != MANIFEST:
        rows = [row.name for row in Bundle.open(path.parent).variants if row.file == path.name]
        if rows:
            whole = _pack_bundle(path.parent, rows)
            return Shipment(whole.key, path.name, whole.files)
    return _pack_file(path)


def _pack_bundle(path: Path, variants: Sequence[str] | None) -> Shipment:
    bundle = Bundle.open(path)
    rows = bundle.variants if variants is None else [bundle.variant(name) for name in variants]
    names = dict.fromkeys([GOLDEN, *(file for row in rows for file in row.files)])
    manifest = SentFile.of(path / MANIFEST)
    files = [
        SentFile(bundle.checked_file(name), int(bundle.files[name]["bytes"]), str(bundle.files[name]["sha256"]))
        for name in names
    ]
    return Shipment(manifest.sha256, "", (manifest, *files))


def _pack_file(path: Path) -> Shipment:
    """A file, with the weights that lie beside an OpenVINO model."""
    weights = path.with_suffix(".bin")
    paths = [path, weights] if path.suffix == ".xml" and weights.is_file() else [path]
    files = tuple(SentFile.of(file) for file in paths)
    key = hashlib.sha256(
        "\n".join(f"{file.sha256} {file.path.name}" for file in files).encode(errors="surrogateescape")
    )
    return Shipment(key.hexdigest(), path.name, files)
