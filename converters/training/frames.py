"""Unlabelled pictures to recover on: people whom the parent model finds, with some of what is around them."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.calibration.datasets.base import Image, PictureData
from edgepose.calibration.samples import FindRegion, collect
from edgepose.converters.checkpoint import Checkpoint
from edgepose.converters.onnx import export_onnx
from edgepose.converters.rewrite import rewrite
from edgepose.errors import DatasetError
from edgepose.files import replace_file, sha256_file
from edgepose.model import LoadedModel
from edgepose.pipeline import Estimator
from edgepose.runtimes.load import load_model_file
from edgepose.types import ModelSpec

__all__ = ["HELPFUL", "Frames", "collect_frames", "fp32_estimator", "fp32_model", "load_frames", "save_frames"]

HELPFUL = 500
"""Recovery on fewer crops of people is warned of."""

_MARGIN = 4
"""A crop's sides over what is kept on each side of it (turned and shrunk views show it): divides them without rest."""
_FEWEST = 16
_HELD, _MOST_HELD = 8, 256
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Frames:
    """People to learn from, and others to score with.

    Attributes:
        patches: (N, 1.5 H, 1.5 W, 3) uint8 RGB: crops with a quarter of their sides around them.
        held: (M, H, W, 3) uint8 RGB, crops of others, without it.
        sha256: Of all pixels.
        record: Source, count, rule and seed, for the evidence.
        notes: What people should know.
    """

    patches: NDArray[np.uint8]
    held: NDArray[np.uint8]
    sha256: str
    record: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def crops(self, count: int) -> NDArray[np.uint8]:
        """The first few of ``patches`` without what is around them."""
        return _inner(self.patches[:count])


def collect_frames(
    data: PictureData,
    spec: ModelSpec,
    find: FindRegion,
    count: int,
    seed: int,
    progress: Progress = lambda stage, done, total: None,
) -> Frames:
    """Choose ``count`` people at most, who differ from each other; an eighth of them (256 at most) is held out.

    Args:
        data: Any data set with pictures; its labels are not used, its boxes are.
        spec: The model's.
        find: Finds the person where no box is given: the parent's ``best_region``.
        count: How many at most.
        seed: Of the choice.
        progress: Told about each stage.

    Raises:
        DatasetError: Fewer than 16 usable people.
    """
    wide = _wide(spec)
    grown = (wide.input_wh[0] - 1) / (spec.input_wh[0] - 1)

    def find_wide(image: Image) -> tuple[NDArray[np.float64], float, bool]:
        region, score, person = find(image)
        return region * [1, 1, grown, grown], score, person

    found = collect(data, wide, count, seed, find_wide, progress, minimum=_FEWEST)
    held = min(_MOST_HELD, len(found.crops) // _HELD)
    digest = hashlib.sha256("".join(str(row["sha256"]) for row in found.rows).encode()).hexdigest()
    record = {key: value for key, value in found.to_dict().items() if key != "crops"}
    return Frames(
        patches=found.crops[held:],
        held=_inner(found.crops[:held]),
        sha256=digest,
        record={**record, "sha256": digest, "trained_on": len(found.crops) - held, "held_out": held},
        notes=_notes(len(found.crops), found.without_person, found.skipped, data.path.name),
    )


def save_frames(frames: Frames, path: Path) -> None:
    """Keep frames, for :func:`load_frames`: whole or not at all."""
    told = json.dumps({"sha256": frames.sha256, "record": dict(frames.record), "notes": list(frames.notes)})
    with replace_file(path) as partial, partial.open("wb") as file:
        np.savez(file, patches=frames.patches, held=frames.held, told=np.array(told))


def load_frames(path: Path, data: PictureData, count: int, seed: int) -> Frames | None:
    """Frames that were kept, so that people need not be found again; None where they are others than asked for.

    Raises:
        DatasetError: The file is damaged.
    """
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            told = json.loads(str(kept["told"]))
            record = told["record"]
            asked = (data.path.name, {path.name: sha256_file(path) for path in data.sources()}, count, seed)
            if tuple(record[key] for key in ("source", "source_sha256", "asked", "seed")) != asked:
                return None
            return Frames(kept["patches"], kept["held"], told["sha256"], record, tuple(told["notes"]))
    except Exception:  # a damaged file makes the reader raise anything
        raise DatasetError(f"{path}: damaged: remove it, and people are found again") from None


def fp32_model(checkpoint: Checkpoint) -> LoadedModel:
    """A model behind its contract in the default engine, which is quicker than torch; ``close`` it.

    Raises:
        EngineError: It cannot be run.
    """
    with tempfile.TemporaryDirectory(prefix="edgepose-") as scratch:
        path = Path(scratch) / "model.onnx"
        export_onnx(rewrite(checkpoint.model), checkpoint.row.spec, path, {})
        return load_model_file(path)


def fp32_estimator(checkpoint: Checkpoint) -> Estimator:
    """The same of a 2D model, which finds people."""
    model = fp32_model(checkpoint)
    assert isinstance(model, Estimator)
    return model


def _wide(spec: ModelSpec) -> ModelSpec:
    """A specification by which ``collect`` cuts the crops with their margin, at the same scale."""
    w, h = (side + 2 * (side // _MARGIN) for side in spec.input_wh)
    grown = (w - 1) / (spec.input_wh[0] - 1)
    return replace(spec, input=replace(spec.input, shape=(None, h, w, 3)), crop_padding=spec.crop_padding * grown)


def _inner(patches: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Patches without their margin."""
    h, w = patches.shape[1:3]
    y, x = h // (_MARGIN + 2), w // (_MARGIN + 2)
    return np.ascontiguousarray(patches[:, y : h - y, x : w - x])


def _notes(count: int, without_person: int, skipped: list[str], name: str) -> tuple[str, ...]:
    remarks = []
    if count < HELPFUL:
        remarks.append(
            f"{name}: {count} crops of people are few to recover on: give footage with {HELPFUL} different ones or "
            "more, or expect less"
        )
    if without_person:
        remarks.append(f"{name}: {without_person} of {count} crops show nobody whom the parent recognises")
    if skipped:
        remarks.append(f"{name}: {len(skipped)} files could not be read: {', '.join(skipped[:3])}")
    return tuple(remarks)
