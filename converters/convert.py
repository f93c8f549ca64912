"""A checkpoint becomes a bundle: export, quantize, verify, and write it all or nothing."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
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
from edgepose.calibration.evidence import Agreement, Validation, VariantEvidence
from edgepose.calibration.report.html import report_html
from edgepose.calibration.report.write import evidence
from edgepose.calibration.samples import MIN_SAMPLES, CropSet, collect
from edgepose.converters.checkpoint import Checkpoint
from edgepose.converters.contract import Deployed
from edgepose.converters.onnx import OPSET, export_onnx, load_onnx, save_onnx
from edgepose.converters.quantize import DEFAULT_RECIPE, Recipe, quantize_onnx
from edgepose.errors import ConversionError
from edgepose.machine import RUNTIME_PACKAGES, machine, versions
from edgepose.pipeline import Estimator
from edgepose.runtimes.load import load
from edgepose.types import ModelSpec

__all__ = ["CALIBRATED", "Conversion", "ConversionRow", "Progress", "convert"]

Progress = Callable[[str, int, int], None]
"""Told the stage, how much of it is done, and out of how much (0: unknown)."""

CALIBRATED = ("int8",)
"""Precisions that need calibration pictures."""

_TOOLS = ("torch", "onnx", "onnxscript", "nncf")
_GOLDEN = 4
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
class _Crops:
    """Crops for the quantizer, and others for the verdict."""

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
    recipe: Recipe = DEFAULT_RECIPE,
    force: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Conversion:
    """Make a bundle.

    Args:
        checkpoint: The model with its weights.
        output: The bundle's folder. It appears when everything has succeeded, and not before.
        variants: Names such as ``onnx-fp32``, ``onnx-int8``.
        calibration: Annotations, images or a video; needed for INT8. Up to 32 crops beyond
            ``calibration_size`` are held back to verify with, at least a fifth where there are not enough.
        calibration_size: How many crops the quantizer sees.
        seed: Seed of the choice of crops.
        recipe: How to quantize.
        force: Replace a bundle that is there.
        progress: Told about each stage.

    Raises:
        ConversionError: A variant is not supported, needs calibration, or is off.
        BundleError, DatasetError: The output or the calibration pictures cannot be used.
    """
    _check_variants(variants, calibration)
    data = open_pictures(calibration) if calibration is not None else None
    spec = checkpoint.row.spec
    with (
        bundles.create(output, force=force) as writer,
        tempfile.TemporaryDirectory(prefix="edgepose-") as scratch,
    ):
        clock = _Clock()
        fp32_file = (writer.folder if "onnx-fp32" in variants else Path(scratch)) / "onnx-fp32.onnx"
        with clock.time("onnx-fp32"):
            progress("export to ONNX", 0, 0)
            export_onnx(checkpoint.model, spec, fp32_file, _origin(checkpoint, "onnx-fp32", recipe))
        fp32 = load(fp32_file)
        crops = _collect(data, spec, fp32, calibration_size, seed, progress)
        progress("compare ONNX with torch", 0, 0)
        golden, torch_error = _golden(checkpoint, fp32, crops.verify)
        if "onnx-int8" in variants:
            with clock.time("onnx-int8"):
                progress("quantize to INT8", 0, 0)
                quantized = quantize_onnx(
                    load_onnx(fp32_file),
                    crops.calibrate,
                    recipe,
                    lambda samples: progress(f"quantize to INT8: {samples} samples measured", 0, 0),
                )
                origin = _origin(checkpoint, "onnx-int8", recipe)
                save_onnx(quantized, spec, writer.folder / "onnx-int8.onnx", origin)
        estimators = {"onnx-fp32": fp32}
        estimators |= {name: load(writer.folder / f"{name}.onnx") for name in variants if name not in estimators}
        comparison = compare_on_crops(
            estimators,
            crops.verify,
            crops.verify_names,
            "onnx-fp32",
            lambda done, total: progress("verify on crops held back", done, total),
        )
        agreements = comparison.result()
        rows, made = [], []
        for name in variants:
            file = writer.folder / f"{name}.onnx"
            error = golden.error_of(estimators[name].heatmaps(golden.image))
            made.append(Variant(name, (file.name,), _recipe_of(name, recipe), round(error, 6)))
            rows.append(ConversionRow(name, file.stat().st_size / 1e6, agreements[name], clock.seconds[name]))
        progress("write the bundle", 0, 0)
        writer.write_golden(golden)
        writer.write_json("calibration.json", _calibration_record(crops))
        provenance = _provenance(checkpoint, seed, torch_error, calibration_size, data is not None)
        _write_evidence(writer, _validation(spec, crops, estimators, comparison, rows), provenance)
        writer.finish(spec, made, provenance)
    return Conversion(
        bundle=output,
        rows=tuple(rows),
        calibrated_on=len(crops.calibrate) if "onnx-int8" in variants else 0,
        verified_on=len(crops.verify),
        torch_max_abs_error=torch_error,
        notes=checkpoint.notes + _notes(crops),
    )


def _check_variants(variants: Sequence[str], calibration: Path | None) -> None:
    supported = ("onnx-fp32", "onnx-int8")
    for name in variants:
        parse_variant(name)
        if name not in supported:
            raise ConversionError(f"{name}: this version converts to {', '.join(supported)}")
        if parse_variant(name)[1] in CALIBRATED and calibration is None:
            raise ConversionError(f"{name}: needs pictures to calibrate with: --calib FOLDER, VIDEO or COCO.json")
    if not variants:
        raise ConversionError(f"nothing to convert to: choose from {', '.join(supported)}")


def _collect(
    data: PictureData | None, spec: ModelSpec, fp32: Estimator, size: int, seed: int, progress: Progress
) -> _Crops:
    """Crops to calibrate and verify with; seeded noise to verify with where no pictures are given."""
    if data is None:
        width, height = spec.input_wh
        noise = np.random.default_rng(seed).integers(0, 256, (MIN_SAMPLES, height, width, 3), dtype=np.uint8)
        return _Crops(noise[:0], noise, None)
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
    return _Crops(found.crops[held_back:], found.crops[:held_back], found)


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


def _validation(
    spec: ModelSpec,
    crops: _Crops,
    estimators: Mapping[str, Estimator],
    comparison: Comparison,
    rows: Sequence[ConversionRow],
) -> Validation:
    """What the conversion itself found out, in the words of every later validation."""
    origin = crops.origin
    return Validation(
        kind="crops held back from calibration" if origin else "noise",
        data=origin.source if origin else "seeded noise",
        data_sha256=origin.source_sha256 if origin else {},
        boxes="as for calibration",
        skeleton=spec.skeleton,
        baseline="onnx-fp32",
        flip=False,
        images=len(crops.verify),
        crops=len(crops.verify),
        skipped=tuple(origin.skipped) if origin else (),
        rows=tuple(
            VariantEvidence(
                variant=row.variant,
                engine=f"{estimators[row.variant].engine.name} {estimators[row.variant].engine.device}",
                accuracy=None,
                agreement=row.agreement,
                seconds=row.seconds,
                worst=comparison.exhibits(row.variant),
                megabytes=row.megabytes,
            )
            for row in rows
        ),
    )


def _write_evidence(writer: BundleWriter, validation: Validation, provenance: Mapping[str, Any]) -> None:
    """``evidence.json`` and ``report.html``: agreement with FP32; ``edgepose validate`` adds accuracy elsewhere."""
    facts = {"machine": machine(), "converted": provenance}
    writer.write_json("evidence.json", evidence(validation, facts, None))
    writer.write_text("report.html", report_html(validation, facts, None))


def _recipe_of(name: str, recipe: Recipe) -> dict[str, Any]:
    export = {"exporter": "torch.onnx dynamo", "opset": OPSET}
    return export | ({"quantizer": recipe.to_dict()} if name == "onnx-int8" else {})


def _calibration_record(crops: _Crops) -> dict[str, Any]:
    if crops.origin is None:
        return {"source": None, "count": 0, "verified_on": len(crops.verify), "note": "no pictures: seeded noise"}
    return crops.origin.to_dict() | {"calibrated_on": len(crops.calibrate), "verified_on": len(crops.verify)}


def _provenance(
    checkpoint: Checkpoint, seed: int, torch_error: float, calibration_size: int, calibrated: bool
) -> dict[str, Any]:
    width, height = checkpoint.row.spec.input_wh
    return {
        "model": checkpoint.row.name,
        "checkpoint": dict(checkpoint.source),
        "notes": list(checkpoint.notes),
        "seed": seed,
        "request": {"input_hw": [height, width], "calibration_size": calibration_size, "calibrated": calibrated},
        "torch_max_abs_error": torch_error,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions((*RUNTIME_PACKAGES, *_TOOLS)),
    }


def _origin(checkpoint: Checkpoint, variant: str, recipe: Recipe) -> dict[str, Any]:
    """What a lone file tells of where it comes from; nothing that differs from run to run."""
    return {
        "checkpoint": dict(checkpoint.source),
        "recipe": _recipe_of(variant, recipe),
        "versions": versions(("edgepose", *_TOOLS)),
    }


def _notes(crops: _Crops) -> tuple[str, ...]:
    origin = crops.origin
    if origin is None:
        return ("no --calib: verified on seeded noise, not on pictures",)
    notes = []
    if origin.skipped:
        notes.append(f"{len(origin.skipped)} calibration files could not be read: {', '.join(origin.skipped[:3])}")
    if origin.without_person:
        notes.append(
            f"{origin.without_person} of {len(origin.crops)} crops show nobody whom the model recognises: "
            "give footage with more people in it, or annotations"
        )
    return tuple(notes)


class _Clock:
    """Seconds per name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Measure a block."""
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
