"""What a bundle tells about itself: origin of a file, provenance, evidence."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from edgepose.bundle import BundleWriter
from edgepose.calibration.evidence import Agreement, LiftAgreement, LiftValidation, Validation
from edgepose.calibration.report.write import evidence, render
from edgepose.converters.checkpoint import Checkpoint
from edgepose.converters.recipes import Recipe
from edgepose.converters.samples import Samples
from edgepose.converters.variants import VARIANTS, VariantRow
from edgepose.machine import RUNTIME_PACKAGES, machine, versions

__all__ = ["origin", "provenance", "pruning", "write_evidence"]

_TOOLS = tuple(tool for row in VARIANTS.values() for tool in row.tools)


def write_evidence(writer: BundleWriter, found: Validation | LiftValidation, made: Mapping[str, Any]) -> None:
    """``evidence.json`` and ``report.html``: agreement with FP32; ``edgepose validate`` adds accuracy elsewhere."""
    facts = {"machine": machine(), "converted": made}
    writer.write_json("evidence.json", evidence(found, facts, None))
    writer.write_text("report.html", render(found, facts, None)["report.html"])


def provenance(
    checkpoint: Checkpoint, seed: int, torch_error: float, calibration_size: int, samples: Samples
) -> dict[str, Any]:
    """For the manifest: everything that :func:`edgepose.converters.reproduce.reproduce` needs, and who made it when."""
    return {
        "model": checkpoint.row.name,
        "checkpoint": dict(checkpoint.source),
        "notes": list(checkpoint.notes),
        "seed": seed,
        "request": {
            "input_hw": checkpoint.row.input_hw,
            "normalisation": checkpoint.row.normalisation,
            "calibration_size": calibration_size,
            "calibrated": samples.taken,
            "keypoints_from": samples.record.get("keypoints_from"),
        },
        "torch_max_abs_error": torch_error,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(dict.fromkeys((*RUNTIME_PACKAGES, *_TOOLS))),
    }


def pruning(checkpoint: Checkpoint, agreements: Mapping[str, Agreement | LiftAgreement]) -> dict[str, Any]:
    """For the manifest of a pruned model: what it was, lost, got back, and what INT8 makes of it; else nothing.

    ``scores`` has ``before``, ``pruned`` and ``recovered`` as the checkpoint tells them, against its parent; and
    ``converted``: each variant against this model's own FP32, in points of agreement, or for a lifting model in
    millimetres.
    """
    parent = checkpoint.source.get("parent")
    if not isinstance(parent, Mapping):
        return {}
    converted = {
        name: {"from FP32": a.mean_mm} if isinstance(a, LiftAgreement) else {"agreement with FP32": 100 * a.mean_oks}
        for name, a in agreements.items()
    }
    told = {key: parent.get(key) for key in ("file", "sha256", "plan", "latency", "recovery", "scores")}
    scores = told["scores"] if isinstance(told["scores"], Mapping) else {}
    return {"pruning": {**told, "scores": {**scores, "converted": converted}}}


def origin(checkpoint: Checkpoint, row: VariantRow, recipe: Recipe) -> dict[str, Any]:
    """What a lone file tells of where it comes from; nothing that differs from run to run."""
    source = dict(checkpoint.source)
    if "parent" in source:  # the manifest has the whole story
        source["parent"] = {key: source["parent"].get(key) for key in ("file", "sha256", "plan")}
    return {
        "checkpoint": source,
        "recipe": row.recipe(recipe),
        "versions": versions(("edgepose", *row.tools)),
    }
