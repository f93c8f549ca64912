"""A checkpoint becomes a bundle: rewrite, export, quantize, verify, and write it all or nothing."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgepose import bundle as bundles
from edgepose.bundle import BundleWriter, Golden, Variant, parse_variant
from edgepose.calibration.agreement import Comparison, compare_on_crops
from edgepose.calibration.datasets.base import PictureData
from edgepose.calibration.datasets.registry import open_pictures
from edgepose.calibration.evidence import Agreement
from edgepose.calibration.samples import MIN_SAMPLES, CropSet, collect
from edgepose.converters import records
from edgepose.converters.budget import Budget, Judge, meet_budget, rank_blocks
from edgepose.converters.checkpoint import Checkpoint
from edgepose.converters.contract import Deployed
from edgepose.converters.onnx import export_onnx
from edgepose.converters.recipes import Recipe, default_recipe
from edgepose.converters.rewrite import rewrite
from edgepose.converters.variants import Job, VariantRow, get_variant
from edgepose.errors import ConversionError, GateError
from edgepose.pipeline import Estimator
from edgepose.runtimes.latency import measure_latency
from edgepose.runtimes.load import load_file, model_bytes
from edgepose.types import ModelSpec

__all__ = ["Conversion", "ConversionRow", "Crops", "Progress", "convert"]

Progress = Callable[[str, int, int], None]
"""Told the stage, how much of it is done, and out of how much (0: unknown)."""

_BASELINE = "onnx-fp32"
_GOLDEN = 4
_RANKED_ON = 16  # crops to calibrate a single block with: enough to rank by
_ROUNDS = 40
_VERIFY = 32
_FP32_TOLERANCE = 1e-3  # relative RMS: float32 rounding moves single pixels of an untrained model by more


@dataclass(frozen=True)
class ConversionRow:
    """One variant of a new bundle: its size, agreement with FP32, and the seconds that making it took."""

    variant: str
    megabytes: float
    agreement: Agreement
    seconds: float


@dataclass(frozen=True)
class Conversion:
    """What was made: rows in the order asked for, the crops behind them, and remarks for people."""

    bundle: Path
    rows: tuple[ConversionRow, ...]
    calibrated_on: int
    verified_on: int
    torch_max_abs_error: float
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Crops:
    """Crops (N, H, W, 3) uint8 RGB for the quantizer, and others for the verdict."""

    calibrate: NDArray[np.uint8]
    verify: NDArray[np.uint8]
    origin: CropSet | None

    @property
    def verify_names(self) -> list[str]:
        """For people."""
        rows = self.origin.rows if self.origin else [{"file": f"noise {i}"} for i in range(len(self.verify))]
        return [str(row["file"]) for row in rows[: len(self.verify)]]


def convert(
    checkpoint: Checkpoint,
    output: Path,
    variants: Sequence[str],
    *,
    calibration: Path | None = None,
    calibration_size: int = 128,
    seed: int = 0,
    recipes: Mapping[str, Recipe] | None = None,
    budget: Budget | None = None,
    keep_fastest: bool = False,
    force: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Conversion:
    """Make a bundle.

    Args:
        checkpoint: The model with its weights.
        output: The bundle's folder. It appears when everything has succeeded, and not before.
        variants: Names such as ``onnx-fp32``, ``openvino-int8``.
        calibration: Any data set, images or a video; needed for INT8. Up to 32 crops beyond
            ``calibration_size`` are held back to verify with, at least a fifth where there are not enough.
        calibration_size: How many crops the quantizer sees.
        seed: Seed of the choice of crops.
        recipes: How to quantize, by engine; by default the recipe for this machine's instruction sets.
        budget: What may be lost; where INT8 loses more, the layers that hurt most are put back to float.
        keep_fastest: Of each format keep the variant alone that is fastest here, within the budget.
        force: Replace a bundle that is there.
        progress: Told about each stage.

    Raises:
        ConversionError: The model or a variant is not supported, needs calibration, or is off.
        GateError: A variant cannot be kept within the budget.
        BundleError, DatasetError: The output or the calibration pictures cannot be used.
    """
    if checkpoint.row.task != "pose2d":
        raise ConversionError(
            f"{checkpoint.row.name}: lifting models cannot be converted yet: they train and run in torch"
        )
    rows = _checked(variants, calibration, recipes or {})
    data = open_pictures(calibration) if calibration is not None else None
    with bundles.create(output, force=force) as writer, tempfile.TemporaryDirectory(prefix="edgepose-") as scratch:
        clock = _Clock()
        sources = _Sources(checkpoint, Path(scratch), clock, progress)
        fp32 = load_file(sources.path(_BASELINE))
        crops = _collect(data, checkpoint.row.spec, fp32, calibration_size, seed, progress)
        progress("compare ONNX with torch", 0, 0)
        golden, torch_error = _golden(checkpoint, fp32, crops.verify)
        judge = Judge(fp32, crops.verify, budget) if budget else None
        made = _Making(checkpoint, writer, sources, crops, golden, recipes or {}, judge, clock, progress)
        for row in rows:
            made.make(row, required=not keep_fastest)
        if keep_fastest:
            made.keep_fastest()
        estimators = {_BASELINE: fp32, **made.estimators}
        comparison = _compare(estimators, crops, progress)
        results = made.results(comparison.result())
        progress("write the bundle", 0, 0)
        writer.write_golden(golden)
        writer.write_json("calibration.json", records.calibration(crops))
        provenance = records.provenance(checkpoint, seed, torch_error, calibration_size, data is not None)
        validation = records.validation(checkpoint.row.spec, crops, estimators, comparison, results)
        records.write_evidence(writer, validation, provenance)
        writer.finish(checkpoint.row.spec, made.variants, provenance)
    return Conversion(
        bundle=output,
        rows=tuple(results),
        calibrated_on=len(crops.calibrate) if any(row.calibrated for row in rows) else 0,
        verified_on=len(crops.verify),
        torch_max_abs_error=torch_error,
        notes=checkpoint.notes + records.notes(crops) + tuple(made.notes),
    )


@dataclass
class _Sources:
    """The float models that variants are made from, each exported when it is first asked for."""

    checkpoint: Checkpoint
    folder: Path
    clock: _Clock
    progress: Progress

    def path(self, name: str) -> Path:
        """The file of an FP32 variant that is exported from torch: see ``VariantRow.source``."""
        row, spec = get_variant(name), self.checkpoint.row.spec
        path = self.folder / f"source{row.suffixes[0]}"
        if not path.exists():
            form = "ONNX" if name == _BASELINE else row.engine
            with self.clock.time(name):
                self.progress(f"rewrite and export to {form}", 0, 0)
                origin = records.origin(self.checkpoint, row, Recipe("none"))
                export = export_onnx if name == _BASELINE else _export_tflite
                export(rewrite(self.checkpoint.model), spec, path, origin)
        return path


def _export_tflite(model: torch.nn.Module, spec: ModelSpec, path: Path, origin: Mapping[str, Any]) -> None:
    from edgepose.converters.tflite import export_tflite

    export_tflite(model, spec, path, origin)


@dataclass
class _Making:
    """The variants, one after the other."""

    checkpoint: Checkpoint
    writer: BundleWriter
    sources: _Sources
    crops: Crops
    golden: Golden
    recipes: Mapping[str, Recipe]
    judge: Judge | None
    clock: _Clock
    progress: Progress
    notes: list[str] = field(default_factory=list)
    variants: list[Variant] = field(default_factory=list)
    estimators: dict[str, Estimator] = field(default_factory=dict)

    def make(self, row: VariantRow, *, required: bool = True) -> None:
        """Make one, and see whether it keeps the budget; if it is not required it may fail, and a note says so."""
        recipe = self.recipes.get(row.engine) or default_recipe(row.engine)
        self.sources.path(row.source)  # on a clock of its own
        self.progress(f"make {row.name}", 0, 0)
        try:
            with self.clock.time(row.name):
                estimator = self._load(row, recipe, self._path(row))
                drop = self.judge.drop_of(estimator) if self.judge else 0.0
                if self.judge and not drop <= self.judge.max_drop:
                    recipe = self._search(row, recipe, self.judge, drop)
                    estimator = self._load(row, recipe, self._path(row))
        except GateError as error:
            if required:
                raise
            self.notes.append(f"{row.name} is left out: {error}")
            self._remove(row)
            return
        off = self.golden.error_of(estimator.heatmaps(self.golden.image))
        self.estimators[row.name] = estimator
        self.variants.append(Variant(row.name, row.files, row.recipe(recipe), round(off, 6)))

    def keep_fastest(self) -> None:
        """Of each format leave the variant whose median is lowest here; the others go, and notes say by how much.

        Raises:
            GateError: None keeps the budget.
        """
        if not self.estimators:
            raise GateError("no variant keeps within the budget: " + "; ".join(self.notes))
        rows = measure_latency(self.estimators, iterations=_ROUNDS, warmup=3)
        milliseconds = {row.variant: row.infer_ms for row in rows}
        for form in dict.fromkeys(parse_variant(name)[0] for name in milliseconds):
            names = [name for name in milliseconds if parse_variant(name)[0] == form]
            best = min(names, key=lambda name: milliseconds[name])
            self.notes.append(f"{best} is the fastest {form} model within the budget: {milliseconds[best]:.1f} ms")
            for name in names:
                if name != best:
                    self.notes.append(f"{name} is left out: {milliseconds[name]:.1f} ms")
                    self._remove(get_variant(name))

    def _path(self, row: VariantRow) -> Path:
        return self.writer.folder / row.files[0]

    def _load(self, row: VariantRow, recipe: Recipe, path: Path, crops: int | None = None) -> Estimator:
        """Write a file by a recipe, and load it; only what is made for good is told on the way."""

        def tell(samples: int) -> None:
            if path.parent == self.writer.folder:
                self.progress(f"make {row.name}: {samples} samples measured", 0, 0)

        row.make(
            Job(
                source=self.sources.path(row.source),
                path=path,
                spec=self.checkpoint.row.spec,
                origin=records.origin(self.checkpoint, row, recipe),
                recipe=recipe,
                crops=self.crops.calibrate[:crops],
                progress=tell,
            )
        )
        return load_file(path)

    def _search(self, row: VariantRow, recipe: Recipe, judge: Judge, drop: float) -> Recipe:
        """A recipe that keeps the budget, with as few blocks in float as the search finds."""
        if not row.calibrated:
            raise GateError(
                f"{row.name} loses {drop:.2f} points, {judge.max_drop:g} are allowed: there is no way round"
            )
        source = self.sources.path(row.source)
        candidate = source.with_name(f"candidate{row.suffixes[0]}")
        layers = row.layers(row.read(source))
        ranking = rank_blocks(
            lambda alone: self._load(row, alone, candidate, _RANKED_ON),
            recipe,
            layers,
            judge.drop_of,
            lambda done, total: self.progress(f"{row.name} loses {drop:.2f} points, rank its blocks", done, total),
        )
        self.progress(f"{row.name}: put the worst blocks back to float until the budget is kept", 0, 0)
        found = meet_budget(
            lambda some: self._load(row, some, candidate),
            recipe,
            ranking,
            judge.drop_of,
            judge.latency_of,
            judge.max_drop,
            lambda attempt: self.notes.append(f"{row.name}: {attempt}"),
        )
        blocks = len(found.recipe.float_layers) - len(recipe.float_layers)
        self.notes.append(
            f"{row.name}: lost {drop:.2f} points, {judge.max_drop:g} allowed; {blocks} layers are float now"
        )
        return found.recipe

    def _remove(self, row: VariantRow) -> None:
        for file in row.files:
            (self.writer.folder / file).unlink(missing_ok=True)
        self.variants = [variant for variant in self.variants if variant.name != row.name]
        estimator = self.estimators.pop(row.name, None)
        if estimator:
            estimator.close()

    def results(self, agreements: Mapping[str, Agreement]) -> list[ConversionRow]:
        """One row for each."""
        return [
            ConversionRow(
                variant=variant.name,
                megabytes=model_bytes(self.writer.folder / variant.file) / 1e6,
                agreement=agreements[variant.name],
                seconds=self.clock.seconds[variant.name],
            )
            for variant in self.variants
        ]


def _checked(variants: Sequence[str], calibration: Path | None, recipes: Mapping[str, Recipe]) -> list[VariantRow]:
    rows = [get_variant(name) for name in variants]
    unused = [recipe.name for engine, recipe in recipes.items() if engine not in {row.engine for row in rows}]
    if unused:
        raise ConversionError(f"recipe {', '.join(unused)}: none of {', '.join(variants)} is for that engine")
    for row in rows:
        if row.calibrated and calibration is None:
            raise ConversionError(f"{row.name}: needs pictures to calibrate with: --calib FOLDER, VIDEO or COCO.json")
    if not rows:
        raise ConversionError("nothing to convert to: name a format and a precision")
    return rows


def _compare(estimators: Mapping[str, Estimator], crops: Crops, progress: Progress) -> Comparison:
    return compare_on_crops(
        estimators,
        crops.verify,
        crops.verify_names,
        _BASELINE,
        lambda done, total: progress("verify on crops held back", done, total),
    )


def _collect(
    data: PictureData | None, spec: ModelSpec, fp32: Estimator, size: int, seed: int, progress: Progress
) -> Crops:
    """Crops to calibrate and verify with; seeded noise to verify with where no pictures are given."""
    if data is None:
        width, height = spec.input_wh
        noise = np.random.default_rng(seed).integers(0, 256, (MIN_SAMPLES, height, width, 3), dtype=np.uint8)
        return Crops(noise[:0], noise, None)
    found = collect(
        data,
        spec,
        size + _VERIFY,
        seed,
        fp32.best_region,
        progress,
        minimum=MIN_SAMPLES + 1,
    )
    spare = len(found.crops) - MIN_SAMPLES
    held_back = min(_VERIFY, max(len(found.crops) - size, len(found.crops) // 5, _GOLDEN), max(spare, 1))
    return Crops(found.crops[held_back:], found.crops[:held_back], found)


def _golden(checkpoint: Checkpoint, fp32: Estimator, crops: NDArray[np.uint8]) -> tuple[Golden, float]:
    """Torch's answers for a few crops, and how far the exported FP32 model is from them (largest difference)."""
    image = crops[:_GOLDEN]
    with torch.inference_mode():
        golden = Golden(image, Deployed(checkpoint.model)(torch.from_numpy(image)).numpy())
    exported = fp32.heatmaps(image)
    error = golden.error_of(exported)
    if not error <= _FP32_TOLERANCE:
        raise ConversionError(
            f"{checkpoint.row.name}: the exported ONNX model is {error:.2%} off the torch model: "
            "use the versions of constraints.txt, and please report this"
        )
    return golden, float(np.abs(exported - golden.heatmaps).max())


class _Clock:
    """Seconds per name, added up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Measure a block."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
