"""A validation as a compact table for pull requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgepose.calibration.evidence import Validation, VariantEvidence
from edgepose.calibration.report.wording import (
    DASH,
    caption,
    clean,
    figure,
    labelled,
    number,
    summary,
    unit_of,
    verdicts,
    worst_joints,
)

__all__ = ["escaped", "line", "report_markdown"]


def report_markdown(validation: Validation, provenance: Mapping[str, Any], max_drop: float | None) -> str:
    """Summary line, table with one row per variant, those that failed among them, remarks and caption.

    Args:
        validation: What was measured.
        provenance: What it was measured with; ``versions`` and ``cpu`` in it, at any depth, go into the caption.
        max_drop: The drop that was allowed, in the metric's unit.
    """
    head = _head(validation)
    rows = [_row(validation, row, max_drop) for row in validation.rows]
    width = len(head)
    failed = [
        [escaped(name), f"**FAILED**: {escaped(reason)}", *[DASH] * (width - 2)]
        for name, reason in validation.failed.items()
    ]
    failed += [[escaped(n), f"not here: {escaped(why)}", *[DASH] * (width - 2)] for n, why in validation.absent.items()]
    rule = [":--", ":--", *["--:"] * 5, ":--", "--:", "--:"]
    table = "\n".join(line(cells) for cells in [head, rule, *rows, *failed])
    return "\n\n".join([f"**{escaped(summary(validation, max_drop))}**", table, *_notes(validation, provenance)]) + "\n"


def _head(validation: Validation) -> list[str]:
    accuracy = labelled(validation)
    metric = escaped(accuracy.metric) if accuracy else "metric"
    unit = unit_of(validation)
    joints = "worst joints (drop)" if accuracy else "worst joints (px)"
    shift = ["mean OKS", "shift px", "p95 px"]
    named = f"{metric}, {escaped(unit)}" if accuracy else metric
    return ["variant", "engine", named, f"drop, {escaped(unit)}", *shift, joints, "latency ms", "MB"]


def _row(validation: Validation, row: VariantEvidence, max_drop: float | None) -> list[str]:
    a = row.agreement
    is_base = row.variant == validation.baseline
    state = next(v.state for v in verdicts(validation, max_drop) if v.variant == clean(row.variant))
    drop = number(validation.drop_of(row))
    return [
        escaped(row.variant),
        escaped(row.engine),
        figure(row.accuracy.value) if row.accuracy else DASH,
        "baseline" if is_base else f"**{drop} FAILED**" if state == "fail" else drop,
        *([DASH] * 4 if is_base else [number(a.mean_oks, 4), number(a.mean_shift_px), number(a.p95_shift_px)]),
        *([] if is_base else [escaped(worst_joints(validation, row))]),
        number(row.latency_ms, 1),
        number(row.megabytes, 1),
    ]


def _notes(validation: Validation, provenance: Mapping[str, Any]) -> list[str]:
    remarks = [escaped(text) for row in validation.rows if row.accuracy for text in row.accuracy.remarks]
    lines = [f"- {text}" for text in dict.fromkeys(remarks)]
    notes = ["\n".join(lines)] if lines else []
    return [*notes, f"<sub>{escaped(caption(validation, provenance))}</sub>"]


def escaped(text: str) -> str:
    """Text that neither ends a cell nor is read as markup."""
    safe = clean(text).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for sign in "|`*_[]":
        safe = safe.replace(sign, "\\" + sign)
    return safe


def line(cells: Sequence[str]) -> str:
    """One row of a table."""
    return f"| {' | '.join(cells)} |"
