"""What a bundle tells about itself: origin of a file, provenance, calibration set, evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from edgepose.bundle import BundleWriter
from edgepose.calibration.agreement import Comparison
from edgepose.calibration.evidence import Validation, VariantEvidence
from edgepose.calibration.report.html import report_html
from edgepose.calibration.report.write import evidence
from edgepose.converters.checkpoint import Checkpoint
from edgepose.converters.recipes import Recipe
from edgepose.converters.variants import VariantRow
from edgepose.machine import RUNTIME_PACKAGES, machine, versions
from edgepose.pipeline import Estimator
from edgepose.types import ModelSpec

if TYPE_CHECKING:
    from edgepose.converters.convert import ConversionRow, Crops

__all__ = ["calibration", "notes", "origin", "provenance", "validation", "write_evidence"]

_TOOLS = ("torch", "onnx", "onnxscript", "nncf", "openvino")
_TFLITE_TOOLS = ("litert-torch", "litert-converter", "ai-edge-quantizer", "ai-edge-litert")


def validation(
    spec: ModelSpec,
    crops: Crops,
    estimators: Mapping[str, Estimator],
    comparison: Comparison,
    rows: Sequence[ConversionRow],
) -> Validation:
    """What the conversion itself found out, in the words of every later validation."""
    chosen = crops.origin
    return Validation(
        kind="crops held back from calibration" if chosen else "noise",
        data=chosen.source if chosen else "seeded noise",
        data_sha256=chosen.source_sha256 if chosen else {},
        boxes="as for calibration",
        skeleton=spec.skeleton,
        baseline="onnx-fp32",
        flip=False,
        images=len(crops.verify),
        crops=len(crops.verify),
        skipped=tuple(chosen.skipped) if chosen else (),
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


def write_evidence(writer: BundleWriter, found: Validation, made: Mapping[str, Any]) -> None:
    """``evidence.json`` and ``report.html``: agreement with FP32; ``edgepose validate`` adds accuracy elsewhere."""
    facts = {"machine": machine(), "converted": made}
    writer.write_json("evidence.json", evidence(found, facts, None))
    writer.write_text("report.html", report_html(found, facts, None))


def calibration(crops: Crops) -> dict[str, Any]:
    """``calibration.json``: what the quantizer and the verdict saw."""
    if crops.origin is None:
        return {"source": None, "count": 0, "verified_on": len(crops.verify), "note": "no pictures: seeded noise"}
    return crops.origin.to_dict() | {"calibrated_on": len(crops.calibrate), "verified_on": len(crops.verify)}


def provenance(
    checkpoint: Checkpoint, seed: int, torch_error: float, calibration_size: int, calibrated: bool
) -> dict[str, Any]:
    """For the manifest: everything that :func:`edgepose.converters.reproduce.reproduce` needs, and who made it when."""
    width, height = checkpoint.row.spec.input_wh
    return {
        "model": checkpoint.row.name,
        "checkpoint": dict(checkpoint.source),
        "notes": list(checkpoint.notes),
        "seed": seed,
        "request": {"input_hw": [height, width], "calibration_size": calibration_size, "calibrated": calibrated},
        "torch_max_abs_error": torch_error,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(dict.fromkeys((*RUNTIME_PACKAGES, *_TOOLS, *_TFLITE_TOOLS))),
    }


def origin(checkpoint: Checkpoint, row: VariantRow, recipe: Recipe) -> dict[str, Any]:
    """What a lone file tells of where it comes from; nothing that differs from run to run."""
    return {
        "checkpoint": dict(checkpoint.source),
        "recipe": row.recipe(recipe),
        "versions": versions(("edgepose", *(("torch", *_TFLITE_TOOLS) if row.engine == "tflite" else _TOOLS))),
    }


def notes(crops: Crops) -> tuple[str, ...]:
    """What people should know about the crops."""
    chosen = crops.origin
    if chosen is None:
        return ("no --calib: verified on seeded noise, not on pictures",)
    remarks = []
    if chosen.skipped:
        remarks.append(f"{len(chosen.skipped)} calibration files could not be read: {', '.join(chosen.skipped[:3])}")
    if chosen.without_person:
        remarks.append(
            f"{chosen.without_person} of {len(chosen.crops)} crops show nobody whom the model recognises: "
            "give footage with more people in it, or annotations"
        )
    return tuple(remarks)
