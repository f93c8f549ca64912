"""The bundle: one folder with a model in many variants, each file hashed in the manifest.

BUNDLE/
  manifest.json       schema version, specification, provenance, one row per variant, hash of every file
  onnx-fp32.onnx ...  the variants, named <format>-<precision>
  golden.npz          a few inputs with the FP32 answers, replayed when a variant is loaded
  calibration.json    what the quantizer saw
  evidence.json       agreement of every variant with FP32, as measured when the bundle was made
  report.html         the same for people
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.errors import BundleError
from edgepose.files import canonical_json, new_folder, sha256_file
from edgepose.types import ModelSpec

__all__ = [
    "FORMATS",
    "GOLDEN",
    "MANIFEST",
    "PRECISIONS",
    "Bundle",
    "BundleWriter",
    "Golden",
    "Variant",
    "check_target",
    "create",
    "parse_variant",
]

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
GOLDEN = "golden.npz"

FORMATS = ("onnx", "openvino", "tflite", "tensorrt", "torch")
PRECISIONS = ("fp32", "fp16", "int8", "int8-16x8", "int8-dynamic")


def parse_variant(name: str) -> tuple[str, str]:
    """Split a variant name ``<format>-<precision>``, for instance ``onnx-int8``.

    Raises:
        BundleError: The name does not follow the grammar.
    """
    form, _, precision = name.partition("-")
    if form not in FORMATS or precision not in PRECISIONS:
        raise BundleError(
            f"variant {name!r}: expected <format>-<precision> with formats {', '.join(FORMATS)} "
            f"and precisions {', '.join(PRECISIONS)}"
        )
    return form, precision


@dataclass(frozen=True)
class Variant:
    """One artifact of a bundle.

    Attributes:
        name: ``<format>-<precision>``.
        files: File names inside the bundle; the first is the one to load, others (weights) lie beside it.
        recipe: How it was made: exporter or quantizer and its settings.
        golden_error: Relative RMS difference of its answers from FP32's on ``golden.npz``, as
            measured when it was made; replayed on load.
    """

    name: str
    files: tuple[str, ...]
    recipe: Mapping[str, Any]
    golden_error: float

    def __post_init__(self) -> None:
        parse_variant(self.name)
        object.__setattr__(self, "files", tuple(self.files))
        for file in self.files:
            if Path(file).name != file:
                raise BundleError(f"variant {self.name}: {file!r} is not a plain file name")
        if not (self.files and isinstance(self.recipe, Mapping) and 0 <= float(self.golden_error) < math.inf):
            raise ValueError(f"variant {self.name}: files, recipe or golden_error")

    @property
    def file(self) -> str:
        """The file to load."""
        return self.files[0]

    @property
    def precision(self) -> str:
        """The precision part of the name."""
        return parse_variant(self.name)[1]


@dataclass(frozen=True)
class Golden:
    """A few inputs (N, ...) and the FP32 answers (N, ...) float32, as the specification's tensors have them."""

    inputs: NDArray[Any]
    answers: NDArray[np.float32]

    def error_of(self, answers: NDArray[np.float32]) -> float:
        """Relative RMS difference: ||answer - golden|| / ||golden||; infinite for NaN or another shape."""
        if answers.shape != self.answers.shape:
            return float("inf")
        reference = float(np.linalg.norm(self.answers)) or 1.0
        error = float(np.linalg.norm(answers - self.answers)) / reference
        return error if np.isfinite(error) else float("inf")


@dataclass(frozen=True)
class Bundle:
    """A bundle that was opened: the manifest's content and where it is."""

    path: Path
    spec: ModelSpec
    variants: tuple[Variant, ...]
    provenance: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]] = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Read a bundle's manifest.

        Raises:
            BundleError: No bundle is there, or its manifest is damaged or of another version.
        """
        manifest = path / MANIFEST
        if not path.exists():
            raise BundleError(f"{path}: no such bundle or model file")
        if not manifest.is_file():
            raise BundleError(f"{path}: not a bundle (no {MANIFEST}): make one with edgepose convert")
        try:
            data = json.loads(manifest.read_text(encoding="utf-8"))
            schema = data["schema_version"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise BundleError(f"{manifest}: damaged ({error}): convert again") from None
        if schema != SCHEMA_VERSION:
            raise BundleError(
                f"{manifest}: schema version {schema}, this edgepose reads {SCHEMA_VERSION}: "
                "use the edgepose that made it, or convert again"
            )
        try:
            return cls(
                path=path,
                spec=ModelSpec.from_json(json.dumps(data["spec"]), str(manifest)),
                variants=tuple(Variant(**row) for row in data["variants"]),
                provenance=_checked_provenance(data["provenance"]),
                files={
                    str(name): {"bytes": int(row["bytes"]), "sha256": str(row["sha256"])}
                    for name, row in data["files"].items()
                },
            )
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise BundleError(f"{manifest}: damaged ({error}): convert again") from None

    def variant(self, name: str) -> Variant:
        """Look a variant up by name.

        Raises:
            BundleError: The bundle has none of that name.
        """
        for row in self.variants:
            if row.name == name:
                return row
        raise BundleError(f"{self.path}: no variant {name!r}; there are: {', '.join(v.name for v in self.variants)}")

    def checked_file(self, name: str) -> Path:
        """Path of a file whose size and SHA-256 are those of the manifest.

        Raises:
            BundleError: The file is missing, truncated or edited.
        """
        path = self.path / name
        row = self.files.get(name)
        if row is None or not path.is_file():
            raise BundleError(f"{path}: missing from the bundle: copy the whole folder, or convert again")
        if path.stat().st_size != row["bytes"]:
            raise BundleError(
                f"{path}: {path.stat().st_size:,} bytes, the manifest says {row['bytes']:,}: "
                "truncated or edited; copy it again, or convert again"
            )
        if sha256_file(path) != row["sha256"]:
            raise BundleError(f"{path}: SHA-256 differs from the manifest: edited since conversion; convert again")
        return path

    def checked_variant(self, row: Variant) -> Path:
        """Path of the file to load of a variant, after checking all of its files; see :meth:`checked_file`."""
        first, *_ = [self.checked_file(file) for file in row.files]
        return first

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON object of the bundle, its hash checked.

        Raises:
            BundleError: The file is missing, damaged or edited.
        """
        path = self.checked_file(name)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (RecursionError, ValueError) as error:
            raise BundleError(f"{path}: damaged ({error}): convert again") from None
        if not isinstance(data, dict):
            raise BundleError(f"{path}: damaged (not an object): convert again")
        return data

    def golden(self) -> Golden:
        """The golden inputs and answers.

        Raises:
            BundleError: The file is missing, damaged or edited.
        """
        path = self.checked_file(GOLDEN)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
                golden = Golden(data[self.spec.input.name], data[self.spec.output.name])
            if not len(golden.inputs):
                raise ValueError("no inputs")
        except (OSError, EOFError, TypeError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise BundleError(f"{path}: damaged ({error}): convert again") from None
        return golden


def _checked_provenance(data: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's provenance, with the keys that are shown in place and of the right type."""
    types = {"model": str, "checkpoint": dict, "notes": list, "seed": int, "created": str, "versions": dict}
    for key, kind in types.items():
        if not isinstance(data[key], kind):
            raise TypeError(f"provenance {key}")
    return dict(data)


class BundleWriter:
    """Collects the files of a new bundle in a folder that is not visible under its name yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write_json(self, name: str, value: Any) -> None:
        """Add a JSON file."""
        self.write_text(name, canonical_json(value))

    def write_text(self, name: str, text: str) -> None:
        """Add a text file; a file name that is no UTF-8 becomes an escape."""
        (self.folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")

    def write_golden(self, golden: Golden, spec: ModelSpec) -> None:
        """Add ``golden.npz``."""
        arrays = {spec.input.name: golden.inputs, spec.output.name: golden.answers}
        np.savez_compressed(self.folder / GOLDEN, **arrays)  # type: ignore[arg-type]  # its stub knows no **

    def finish(self, spec: ModelSpec, variants: list[Variant], provenance: Mapping[str, Any]) -> None:
        """Hash every file and write the manifest."""
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
            for path in sorted(self.folder.iterdir())
        }
        self.write_json(
            MANIFEST,
            {
                "schema_version": SCHEMA_VERSION,
                "spec": json.loads(spec.to_json()),
                "variants": [asdict(variant) for variant in variants],
                "provenance": provenance,
                "files": files,
            },
        )


def check_target(path: Path, *, force: bool) -> None:
    """Refuse a target that would overwrite something, before any work is done.

    Raises:
        BundleError: The path exists and ``force`` is not given, or it holds something that is no bundle.
    """
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_dir() or path.is_symlink():
        raise BundleError(f"{path}: is not a folder: choose another output")
    empty = not any(path.iterdir())
    if not (empty or (path / MANIFEST).is_file()):
        raise BundleError(f"{path}: holds files that are no bundle and is left alone: choose another output")
    if not (empty or force):
        raise BundleError(f"{path}: a bundle is there already: choose another output, or --force to replace it")


@contextmanager
def create(path: Path, *, force: bool = False) -> Iterator[BundleWriter]:
    """Write a bundle: whole when the block ends, not there when it fails or is interrupted.

    Raises:
        BundleError: See :func:`check_target`; or the folder cannot be written.
    """
    check_target(path, force=force)
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(new_folder(path, replace=force))
        except OSError as error:
            raise BundleError(
                f"{error.filename or path}: cannot write ({error.strerror}): choose another output"
            ) from None
        yield BundleWriter(folder)
