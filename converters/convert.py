"""A checkpoint becomes a bundle: rewrite, export, quantize, verify, and write it all or nothing."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from edgepose import bundle as bundles
from edgepose.bundle import BundleWriter, Golden, Variant, parse_variant
from edgepose.calibration.evidence import Agreement, LiftAgreement
from edgepose.converters import records
from edgepose.converters.budget import Budget, Judge, meet_budget, rank_blocks
from edgepose.converters.checkpoint import Checkpoint
from edgepose.converters.contract import deployed
from edgepose.converters.recipes import Recipe, default_recipe
from edgepose.converters.rewrite import rewrite
from edgepose.converters.samples import GOLDEN, Samples
from edgepose.converters.tasks import BASELINE, task_of
from edgepose.converters.variants import Job, VariantRow, get_variant
from edgepose.errors import ConversionError, GateError
from edgepose.model import LoadedModel
from edgepose.models.registry import ModelRow
from edgepose.runtimes.latency import measure_latency
from edgepose.runtimes.load import load_model_file, model_bytes

__all__ = ["Conversion", "ConversionRow", "Progress", "always_float", "convert"]

Progress = Callable[[str, int, int], None]
"""Told the stage, how much of it is done, and out of how much (0: unknown)."""

_RANKED_ON = 16  # samples to calibrate a single block with: enough to rank by
_ROUNDS = 40
_FP32_TOLERANCE = 1e-3  # relative RMS: float32 rounding moves single pixels of an untrained model by more


@dataclass(frozen=True)
class ConversionRow:
    """One variant of a new bundle: its size, agreement with FP32, and the seconds that making it took."""

    variant: str
    megabytes: float
    agreement: Agreement | LiftAgreement
    seconds: float


@dataclass(frozen=True)
class Conversion:
    """What was made: rows in the order asked for, how many samples are behind them, and remarks for people."""

    bundle: Path
    rows: tuple[ConversionRow, ...]
    calibrated_on: int
    verified_on: int
    torch_max_abs_error: float
    notes: tuple[str, ...]


def convert(
    checkpoint: Checkpoint,
    output: Path,
    variants: Sequence[str],
    *,
    calibration: Path | None = None,
    keypoints_from: Path | None = None,
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
        calibration: Any data set, images or a video, and for a lifting model poses (.npz) as well; needed for INT8. Up
            to 32 samples beyond ``calibration_size`` are held back to verify with, at least a fifth where there are
            not enough.
        keypoints_from: The 2D bundle that finds the joints on the pictures; lifting models need it beside pictures.
        calibration_size: How many samples the quantizer sees.
        seed: Seed of the choice of samples.
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
    rows = _checked(variants, calibration, recipes or {})
    spec, task = checkpoint.row.spec, task_of(checkpoint.row.spec, calibration, keypoints_from)
    with bundles.create(output, force=force) as writer, tempfile.TemporaryDirectory(prefix="edgepose-") as scratch:
        clock = _Clock()
        sources = _Sources(checkpoint, Path(scratch), clock, progress)
        fp32 = load_model_file(sources.path(BASELINE))
        samples = task.collect(fp32, calibration_size, seed, progress)
        progress("compare ONNX with torch", 0, 0)
        golden, torch_error = _golden(checkpoint, fp32, samples)
        judge = task.judge(fp32, samples, budget) if budget else None
        made = _Making(checkpoint, writer, sources, samples, golden, recipes or {}, judge, clock, progress)
        for row in rows:
            made.make(row, required=not keep_fastest)
        if keep_fastest:
            made.keep_fastest()
        compared = task.compare({BASELINE: fp32, **made.models}, samples, progress)
        results = made.results(compared.agreements)
        progress("write the bundle", 0, 0)
        writer.write_golden(golden, spec)
        writer.write_json("calibration.json", dict(samples.record))
        provenance = records.provenance(checkpoint, seed, torch_error, calibration_size, samples)
        provenance |= records.pruning(checkpoint, {row.variant: row.agreement for row in results})
        records.write_evidence(writer, compared.validation(results), provenance)
        writer.finish(spec, made.variants, provenance)
    return Conversion(
        bundle=output,
        rows=tuple(results),
        calibrated_on=len(samples.calibrate) if any(row.calibrated for row in rows) else 0,
        verified_on=len(samples.verify),
        torch_max_abs_error=torch_error,
        notes=checkpoint.notes + samples.notes + tuple(made.notes),
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
            assert row.export is not None
            with self.clock.time(name):
                self.progress(f"rewrite and export to {parse_variant(name)[0]}", 0, 0)
                origin = records.origin(self.checkpoint, row, Recipe("none"))
                row.export(rewrite(self.checkpoint.model), spec, path, origin)
        return path


@dataclass
class _Making:
    """The variants, one after the other."""

    checkpoint: Checkpoint
    writer: BundleWriter
    sources: _Sources
    samples: Samples
    golden: Golden
    recipes: Mapping[str, Recipe]
    judge: Judge | None
    clock: _Clock
    progress: Progress
    notes: list[str] = field(default_factory=list)
    variants: list[Variant] = field(default_factory=list)
    models: dict[str, LoadedModel] = field(default_factory=dict)

    def make(self, row: VariantRow, *, required: bool = True) -> None:
        """Make one, and see whether it keeps the budget; if it is not required it may fail, and a note says so."""
        source = self.sources.path(row.source)  # on a clock of its own
        recipe = self.recipes.get(row.engine) or default_recipe(row.engine, self.checkpoint.row.task)
        if row.calibrated:
            recipe = recipe.with_float(always_float(row.layers(row.read(source)), self.checkpoint.row))
        self.progress(f"make {row.name}", 0, 0)
        try:
            with self.clock.time(row.name):
                model = self._load(row, recipe, self._path(row))
                drop = self.judge.drop_of(model) if self.judge else 0.0
                if self.judge and not drop <= self.judge.max_drop:
                    recipe = self._search(row, recipe, self.judge, drop)
                    model = self._load(row, recipe, self._path(row))
        except GateError as error:
            if required:
                raise
            self.notes.append(f"{row.name} is left out: {error}")
            self._remove(row)
            return
        off = self.golden.error_of(model.infer(self.golden.inputs))
        self.models[row.name] = model
        self.variants.append(Variant(row.name, row.files, row.recipe(recipe), round(off, 6)))

    def keep_fastest(self) -> None:
        """Of each format leave the variant whose median is lowest here; the others go, and notes say by how much.

        Raises:
            GateError: None keeps the budget.
        """
        if not self.models:
            raise GateError("no variant keeps within the budget: " + "; ".join(self.notes))
        rows = measure_latency(self.models, iterations=_ROUNDS, warmup=3)
        milliseconds = {row.variant: row.infer_ms for row in rows}
        for form in dict.fromkeys(parse_variant(name)[0] for name in milliseconds):
            if form == "tensorrt":
                self.notes.append("tensorrt models are all kept: which is fastest shows on the board alone")
                continue
            names = [name for name in milliseconds if parse_variant(name)[0] == form]
            best = min(names, key=lambda name: milliseconds[name])
            self.notes.append(f"{best} is the fastest {form} model within the budget: {milliseconds[best]:.1f} ms")
            for name in names:
                if name != best:
                    self.notes.append(f"{name} is left out: {milliseconds[name]:.1f} ms")
                    self._remove(get_variant(name))

    def _path(self, row: VariantRow) -> Path:
        return self.writer.folder / row.files[0]

    def _load(self, row: VariantRow, recipe: Recipe, path: Path, samples: int | None = None) -> LoadedModel:
        """Write a file by a recipe, and load it; only what is made for good is told on the way."""

        def tell(passed: int) -> None:
            if path.parent == self.writer.folder:
                self.progress(f"make {row.name}: {passed} samples measured", 0, 0)

        row.make(
            Job(
                source=self.sources.path(row.source),
                path=path,
                spec=self.checkpoint.row.spec,
                origin=records.origin(self.checkpoint, row, recipe),
                recipe=recipe,
                samples=self.samples.calibrate[:samples],
                progress=tell,
            )
        )
        return load_model_file(path)

    def _search(self, row: VariantRow, recipe: Recipe, judge: Judge, drop: float) -> Recipe:
        """A recipe that keeps the budget, with as few blocks in float as the search finds."""
        loss = f"{row.name} loses {drop:.2f} {judge.unit}"
        if not row.calibrated:
            raise GateError(f"{loss}, {judge.max_drop:g} are allowed: there is no way round")
        source = self.sources.path(row.source)
        candidate = source.with_name(f"candidate{row.suffixes[0]}")
        layers = row.layers(row.read(source))
        ranking = rank_blocks(
            lambda alone: self._load(row, alone, candidate, _RANKED_ON),
            recipe,
            layers,
            judge.drop_of,
            lambda done, total: self.progress(f"{loss}, rank its blocks", done, total),
        )
        self.progress(f"{row.name}: put the worst blocks back to float until the budget is kept", 0, 0)
        found = meet_budget(
            lambda some: self._load(row, some, candidate),
            recipe,
            ranking,
            judge,
            lambda attempt: self.notes.append(f"{row.name}: {attempt}"),
        )
        blocks = len(found.recipe.float_layers) - len(recipe.float_layers)
        self.notes.append(
            f"{row.name}: lost {drop:.2f} {judge.unit}, {judge.max_drop:g} allowed; {blocks} layers are float now"
        )
        return found.recipe

    def _remove(self, row: VariantRow) -> None:
        for file in row.files:
            (self.writer.folder / file).unlink(missing_ok=True)
        self.variants = [variant for variant in self.variants if variant.name != row.name]
        model = self.models.pop(row.name, None)
        if model:
            model.close()

    def results(self, agreements: Mapping[str, Agreement | LiftAgreement]) -> list[ConversionRow]:
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
            raise ConversionError(
                f"{row.name}: needs samples to calibrate with: --calib FOLDER, VIDEO or COCO.json, for a lifting model "
                "POSES.npz"
            )
    if not rows:
        raise ConversionError("nothing to convert to: name a format and a precision")
    return rows


def always_float(layers: Sequence[str], model: ModelRow) -> list[str]:
    """Layers of the modules that a model never has in INT8."""
    return [layer for layer in layers if layer.partition("/")[0] in model.float_modules]


def _golden(checkpoint: Checkpoint, fp32: LoadedModel, samples: Samples) -> tuple[Golden, float]:
    """Torch's answers for a few samples, and how far the exported FP32 model is from them (largest difference)."""
    inputs = samples.verify[:GOLDEN]
    with torch.inference_mode():
        answers = deployed(checkpoint.model, checkpoint.row.spec)(torch.from_numpy(inputs)).numpy()
    golden, exported = Golden(inputs, answers), fp32.infer(inputs)
    error = golden.error_of(exported)
    if not error <= _FP32_TOLERANCE:
        raise ConversionError(
            f"{checkpoint.row.name}: the exported ONNX model is {error:.2%} off the torch model: "
            "use the versions of constraints.txt, and please report this"
        )
    return golden, float(np.abs(exported - answers).max())


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
