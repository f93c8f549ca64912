"""Make a bundle again from what its manifest says, and compare: the same bytes, and the same evidence?"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgepose.bundle import GOLDEN, Bundle
from edgepose.converters.checkpoint import Checkpoint, build_random, load_checkpoint
from edgepose.converters.convert import Progress, convert
from edgepose.converters.onnx import describe_difference
from edgepose.converters.recipes import recipe_from_dict
from edgepose.converters.variants import get_variant
from edgepose.errors import BundleError, ConversionError
from edgepose.models.registry import get_model

__all__ = ["Figure", "Remade", "Reproduction", "reproduce"]

_CALIBRATION = "calibration.json"
_EVIDENCE = "evidence.json"
_MAY_DIFFER = ("seconds", "worst")


@dataclass(frozen=True)
class Remade:
    """One file: its hash then and now, what differs in words, and whether that is names alone."""

    name: str
    sha256: str
    sha256_now: str
    difference: str = ""
    equivalent: bool = False

    @property
    def identical(self) -> bool:
        """Byte by byte."""
        return self.sha256 == self.sha256_now

    @property
    def same(self) -> bool:
        """Byte by byte, or but for the names of the pictures."""
        return self.identical or self.equivalent


@dataclass(frozen=True)
class Figure:
    """One figure of the evidence that is not what it was."""

    variant: str
    name: str
    was: Any
    now: Any


@dataclass(frozen=True)
class Reproduction:
    """What came out.

    Attributes:
        causes: What was put in that is not what it was: checkpoint, pictures, seed, versions.
        files: Model files, golden inputs and calibration record.
        figures: The figures of the evidence that differ; none where it is equal.
    """

    causes: tuple[str, ...]
    files: tuple[Remade, ...]
    figures: tuple[Figure, ...]

    @property
    def same(self) -> bool:
        """Every file to the byte, and the evidence too."""
        return all(file.same for file in self.files) and not self.figures


def reproduce(
    path: Path,
    checkpoint: Path | None,
    calibration: Path | None,
    *,
    keypoints_from: Path | None = None,
    seed: int | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Reproduction:
    """Convert again by the manifest's recipe, in a temporary folder, and compare.

    Args:
        path: The bundle.
        checkpoint: What it was made from; None where the weights were random.
        calibration: The pictures or poses that it was calibrated with; None where there were none.
        keypoints_from: The 2D bundle that found the joints on the pictures, for a lifting model.
        seed: Another seed for the choice of samples, to see how much that matters.
        progress: Told about each stage.

    Raises:
        BundleError: The bundle is damaged, or does not say how it was made.
        CheckpointError, DatasetError, ConversionError: See ``convert``.
    """
    bundle = Bundle.open(path)
    request = _request(bundle)
    loaded = _checkpoint(bundle, request, checkpoint)
    if request["calibrated"] and calibration is None:
        raise ConversionError(f"{path}: was calibrated on samples: give the same with --calib")
    if request["keypoints_from"] and keypoints_from is None:
        raise ConversionError(
            f"{path}: was calibrated on joints that {request['keypoints_from'].get('bundle')} found: give that bundle "
            "with --keypoints-from"
        )
    with tempfile.TemporaryDirectory(prefix="edgepose-") as scratch:
        convert(
            loaded,
            Path(scratch) / "bundle",
            [variant.name for variant in bundle.variants],
            calibration=calibration if request["calibrated"] else None,
            keypoints_from=keypoints_from if request["keypoints_from"] else None,
            calibration_size=request["calibration_size"],
            seed=bundle.provenance["seed"] if seed is None else seed,
            recipes=request["recipes"],
            progress=progress,
        )
        return _compare(bundle, Bundle.open(Path(scratch) / "bundle"))


def _request(bundle: Bundle) -> dict[str, Any]:
    """What ``convert`` was asked for, out of the manifest."""
    try:
        asked = bundle.provenance["request"]
        recipes = {
            get_variant(variant.name).engine: recipe_from_dict(variant.recipe["quantizer"])
            for variant in bundle.variants
            if "quantizer" in variant.recipe
        }
        return {
            "input_hw": tuple(map(int, asked["input_hw"])) if asked["input_hw"] else None,
            "normalisation": asked.get("normalisation"),
            "keypoints_from": asked.get("keypoints_from"),
            "calibration_size": int(asked["calibration_size"]),
            "calibrated": bool(asked["calibrated"]),
            "recipes": recipes,
        }
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"{bundle.path}: its manifest does not say how it was made ({type(error).__name__}: {error}): convert again"
        ) from None


def _checkpoint(bundle: Bundle, request: Mapping[str, Any], path: Path | None) -> Checkpoint:
    row = get_model(bundle.provenance["model"])
    if row.input_hw is not None and row.input_hw != request["input_hw"]:
        row = row.resized(request["input_hw"])
    if row.normalisation is not None:
        row = row.normalised(request["normalisation"])
    source = bundle.provenance["checkpoint"]
    if path is not None:
        loaded = load_checkpoint(path, row)
        same_weights = loaded.source["sha256"] == source.get("sha256")
        return replace(loaded, source=source) if same_weights else loaded  # the name is part of the files
    if not source.get("random"):
        raise ConversionError(f"{bundle.path}: was made from {source.get('file')}: give it with --checkpoint")
    return build_random(row, int(source["seed"]))


def _compare(old: Bundle, new: Bundle) -> Reproduction:
    names = [file for variant in old.variants for file in variant.files] + [GOLDEN, _CALIBRATION]
    files = tuple(_remade(old, new, name) for name in names)
    return Reproduction(tuple(_causes(old, new)), files, tuple(_figures(old, new)))


def _remade(old: Bundle, new: Bundle, name: str) -> Remade:
    was, now = old.checked_file(name), new.checked_file(name)
    hashes = old.files[name]["sha256"], new.files[name]["sha256"]
    if hashes[0] == hashes[1]:
        return Remade(name, *hashes)
    if name == _CALIBRATION:
        equivalent = _without_names(old.read_json(name)) == _without_names(new.read_json(name))
        return Remade(name, *hashes, "names of the pictures alone" if equivalent else "the crops", equivalent)
    return Remade(name, *hashes, describe_difference(was, now) if name.endswith(".onnx") else "")


def _without_names(record: Mapping[str, Any]) -> dict[str, Any]:
    """A calibration record by what the pictures are, not by what they are called."""
    crops = [{key: value for key, value in row.items() if key != "file"} for row in record.get("crops", ())]
    return {**record, "source": None, "source_sha256": sorted(record.get("source_sha256", {}).values()), "crops": crops}


def _causes(old: Bundle, new: Bundle) -> list[str]:
    was, now = old.provenance, new.provenance
    causes = []
    if was["checkpoint"].get("sha256") != now["checkpoint"].get("sha256"):
        causes.append(f"another checkpoint: {_short(was['checkpoint'])} then, {_short(now['checkpoint'])} now")
    if was["seed"] != now["seed"]:
        causes.append(f"another seed: {was['seed']} then, {now['seed']} now")
    causes += _calibration_causes(old.read_json(_CALIBRATION), new.read_json(_CALIBRATION))
    for name in sorted({*was["versions"], *now["versions"]}):
        pair = was["versions"].get(name, "none"), now["versions"].get(name, "none")
        if pair[0] != pair[1]:
            causes.append(f"another version of {name}: {pair[0]} then, {pair[1]} now")
    return causes


def _calibration_causes(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    causes = []
    before, after = (sorted(record.get("source_sha256", {}).values()) for record in (was, now))
    if before != after:
        causes.append(f"other pictures: {was.get('source')} then, {now.get('source')} now, whose hashes differ")
    old, new = ({row["sha256"] for row in record.get("crops", ())} for record in (was, now))
    if old != new:
        causes.append(f"other calibration crops: {len(old & new)} of {len(old)} are the same, {len(new)} are used now")
    return causes


def _short(source: Mapping[str, Any]) -> str:
    return f"{source.get('file')} ({str(source.get('sha256'))[:12]})"


def _figures(old: Bundle, new: Bundle) -> list[Figure]:
    """Figures that differ; seconds, the machine, and what pictures are called always may."""
    was, now = (_flat(bundle.read_json(_EVIDENCE)) for bundle in (old, new))
    return [
        Figure(variant, name, was.get((variant, name)), now.get((variant, name)))
        for variant, name in sorted({*was, *now})
        if name not in _MAY_DIFFER and was.get((variant, name)) != now.get((variant, name))
    ]


def _flat(evidence: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """(variant, figure's name) -> value, nested names joined with dots."""
    flat: dict[tuple[str, str], Any] = {}
    for row in evidence.get("validation", {}).get("rows", []):
        for name, value in row.items():
            inner = value if isinstance(value, dict) else {name: value}
            prefix = f"{name}." if isinstance(value, dict) else ""
            flat |= {(str(row.get("variant")), prefix + key): json.loads(json.dumps(v)) for key, v in inner.items()}
    return flat
