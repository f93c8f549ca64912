"""What a validation found, on the terminal: accuracy, agreement, joints and sizes, one sentence for each variant."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from edgepose.cli._console import out, print_table, remark

if TYPE_CHECKING:
    from edgepose.calibration.evidence import Accuracy, LiftEvidence, LiftValidation, Validation, VariantEvidence

__all__ = ["print_validation"]

_NAMED = 10
_HIDDEN = ("AR50", "AR75", "AR_M", "AR_L")
"""Statistics that the report has and the terminal has no room for."""


def print_validation(result: Validation | LiftValidation, max_drop: float | None = None) -> None:
    """Print everything."""
    from edgepose.calibration.evidence import LiftValidation
    from edgepose.calibration.report.write import verdicts_of

    notes = _print_lifting(result) if isinstance(result, LiftValidation) else _print_pictures(result)
    out.print()
    for verdict in verdicts_of(result, max_drop):
        out.print(f"{verdict.variant}: {verdict.text}", soft_wrap=True, markup=False)
    for note in notes:
        remark(f"note: {note}")


def _print_pictures(result: Validation) -> list[str]:
    """The tables; and what else a reader must know."""
    base = result.base
    assert base is not None  # validation ends where its baseline does
    _print_accuracy(result, base)
    if len(result.rows) > 1:
        _print_differences(result)
    if base.accuracy is not None and base.accuracy.per_joint:
        _print_slices(result, base.accuracy)
    notes = list(base.accuracy.remarks if base.accuracy else ())
    if result.skipped:
        names = ", ".join(result.skipped[:_NAMED]) + (", ..." if len(result.skipped) > _NAMED else "")
        notes.append(f"{len(result.skipped)} pictures could not be read and count nowhere: {names}")
    return notes


def _print_lifting(result: LiftValidation) -> list[str]:
    """One table; and what else a reader must know."""
    base = result.base
    assert base is not None  # validation ends where its baseline does
    stats = list(base.accuracy.stats) if base.accuracy else []
    shifts = ["2D shift px"] if base.shift_px is not None else []
    columns = ["<variant", *stats, *(["drop"] if stats else []), "mean mm", "p95 mm", "worst mm", *shifts, "seconds"]
    rows = [_lifting_row(row, result) for row in result.rows]
    rows += [[name, "did not run", *[None] * (len(columns) - 2)] for name in (*result.failed, *result.absent)]
    print_table(
        f"poses in space, {result.data}",
        columns,
        rows,
        f"{result.poses} poses, keypoints {result.keypoints}; answers {'averaged with' if result.flip else 'without'} "
        f"those for the mirrored pose; mean, p95 and worst pose: distance of the joints from {result.baseline}'s"
        + ("; MPJPE, P-MPJPE and drop in mm" if stats else ""),
    )
    return [*(base.accuracy.remarks if base.accuracy else ()), *result.skipped]


def _lifting_row(row: LiftEvidence, result: LiftValidation) -> list[object]:
    a, is_base = row.agreement, row.variant == result.baseline
    truth: list[object] = []
    if row.accuracy:
        truth = [f"{value:.2f}" for value in row.accuracy.stats.values()]
        truth.append(None if is_base else _signed(result.drop_of(row)))
    shift = [] if row.shift_px is None else [None if is_base else f"{row.shift_px:.2f}"]
    distances = [None] * 3 if is_base else [f"{mm:.2f}" for mm in (a.mean_mm, a.p95_mm, a.worst_mm)]
    return [row.variant, *truth, *distances, *shift, f"{row.seconds:.1f}"]


def _print_accuracy(result: Validation, base: VariantEvidence) -> None:
    columns = ["<variant", *_statistics(base), "drop", "mean OKS", "p5 OKS", "shift px", "p95 px", "seconds"]
    rows = [_accuracy_row(row, result) for row in result.rows]
    rows += [[name, "did not run", *[None] * (len(columns) - 2)] for name in (*result.failed, *result.absent)]
    what = base.accuracy.metric if base.accuracy else "100 (1 - mean OKS)"
    unit = base.accuracy.unit if base.accuracy else "points"
    print_table(
        f"accuracy on {result.data}",
        columns,
        rows,
        f"{result.crops} crops of {result.images} pictures, boxes: {result.boxes}, flip test "
        f"{'on' if result.flip else 'off'}; drop in {unit} of {what}; OKS and shift (crop pixels) against "
        f"{result.baseline}, over the {base.agreement.joints} joints it finds",
    )


def _statistics(row: VariantEvidence) -> dict[str, float]:
    if row.accuracy is None:
        return {}
    return {name: value for name, value in row.accuracy.stats.items() if name not in _HIDDEN}


def _accuracy_row(row: VariantEvidence, result: Validation) -> list[object]:
    a = row.agreement
    return [
        row.variant,
        *(f"{value:.2f}" if value >= 0 else None for value in _statistics(row).values()),
        _signed(result.drop_of(row)) if row.variant != result.baseline else None,
        *(f"{a.mean_oks:.4f}", f"{a.p5_oks:.4f}", f"{a.mean_shift_px:.2f}", f"{a.p95_shift_px:.2f}"),
        f"{row.seconds:.1f}",
    ]


def _signed(drop: float) -> str | None:
    return f"{drop:+.2f}" if math.isfinite(drop) else None


def _print_differences(result: Validation) -> None:
    """Where the poses moved, and whether a score still means the same."""
    jitter = any(row.agreement.jitter_px is not None for row in result.rows)
    columns = ["<variant", "<moves most", "score x", "corr", "lost %", "gained %", *(["jitter px"] if jitter else [])]
    rows = []
    for row in result.rows:
        a = row.agreement
        worst = sorted(a.joint_shift_px.items(), key=lambda item: -item[1])[:3]
        moves = ", ".join(f"{name} {shift:.1f}" for name, shift in worst) if row.variant != result.baseline else None
        cells = [row.variant, moves, f"{a.score_ratio:.2f}", f"{a.score_correlation:.3f}"]
        cells += [f"{100 * a.lost:.1f}", f"{100 * a.gained:.1f}"]
        rows.append([*cells, *([None if a.jitter_px is None else f"{a.jitter_px:.2f}"] if jitter else [])])
    print_table(
        f"differences from {result.baseline}",
        columns,
        rows,
        "shift in crop pixels; score: median ratio, correlation, joints that fall below or rise above the threshold"
        + ("; jitter: mean acceleration, picture pixels per frame squared" if jitter else ""),
    )


def _print_slices(result: Validation, base: Accuracy) -> None:
    """The value of every joint and size of person, with the drop from the baseline."""
    columns = ["<joint", *(row.variant for row in result.rows)]
    table = [[name, *_cells(result, "per_joint", name, base.per_joint[name])] for name in base.per_joint]
    table += [[f"{name} people", *_cells(result, "per_size", name, base.per_size[name])] for name in base.per_size]
    print_table(f"{base.joint_metric} by joint and size, drop in brackets", columns, table)


def _cells(result: Validation, field: str, name: str, base: float) -> list[str | None]:
    cells: list[str | None] = []
    for row in result.rows:
        value = getattr(row.accuracy, field).get(name)
        drop = "" if row.variant == result.baseline or value is None else f" ({base - value:+.1f})"
        cells.append(None if value is None else f"{value:.1f}{drop}")
    return cells
