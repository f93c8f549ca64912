"""What a validation found, on the terminal: accuracy, agreement, joints and sizes, one sentence for each variant."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepose.cli._console import out, print_table, remark

if TYPE_CHECKING:
    from edgepose.calibration.evidence import Validation, VariantEvidence

__all__ = ["print_validation"]

_NAMED = 10
_HIDDEN = ("AR50", "AR75", "AR_M", "AR_L")
"""Statistics that the report has and the terminal has no room for."""


def print_validation(result: Validation, max_drop: float | None = None) -> None:
    """Print everything."""
    from edgepose.calibration.report.wording import verdicts

    _print_accuracy(result)
    if len(result.rows) > 1:
        _print_differences(result)
    if result.base.accuracy is not None and result.base.accuracy.per_joint:
        _print_slices(result)
    out.print()
    for verdict in verdicts(result, max_drop):
        out.print(f"{verdict.variant}: {verdict.text}", soft_wrap=True, markup=False)
    for line in result.base.accuracy.remarks if result.base.accuracy else ():
        remark(f"note: {line}")
    if result.skipped:
        names = ", ".join(result.skipped[:_NAMED]) + (", ..." if len(result.skipped) > _NAMED else "")
        remark(f"note: {len(result.skipped)} pictures could not be read and count nowhere: {names}")


def _print_accuracy(result: Validation) -> None:
    columns = ["<variant", *_statistics(result.base), "drop", "mean OKS", "p5 OKS", "shift px", "p95 px", "seconds"]
    rows = [_accuracy_row(row, result) for row in result.rows]
    rows += [[name, "did not run", *[None] * (len(columns) - 2)] for name in (*result.failed, *result.absent)]
    what = result.base.accuracy.metric if result.base.accuracy else "100 (1 - mean OKS)"
    unit = result.base.accuracy.unit if result.base.accuracy else "points"
    print_table(
        f"accuracy on {result.data}",
        columns,
        rows,
        f"{result.crops} crops of {result.images} pictures, boxes: {result.boxes}, flip test "
        f"{'on' if result.flip else 'off'}; drop in {unit} of {what}; OKS and shift (crop pixels) against "
        f"{result.baseline}, over the {result.base.agreement.joints} joints it finds",
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
        None if row.variant == result.baseline else f"{result.drop_of(row):+.2f}",
        *(f"{a.mean_oks:.4f}", f"{a.p5_oks:.4f}", f"{a.mean_shift_px:.2f}", f"{a.p95_shift_px:.2f}"),
        f"{row.seconds:.1f}",
    ]


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


def _print_slices(result: Validation) -> None:
    """The value of every joint and size of person, with the drop from the baseline."""
    base = result.base.accuracy
    assert base is not None
    columns = ["<joint", *(row.variant for row in result.rows)]
    table = [[name, *_cells(result, "per_joint", name)] for name in base.per_joint]
    table += [[f"{name} people", *_cells(result, "per_size", name)] for name in base.per_size]
    print_table(f"{base.joint_metric} by joint and size, drop in brackets", columns, table)


def _cells(result: Validation, field: str, name: str) -> list[str | None]:
    base = getattr(result.base.accuracy, field)[name]
    cells: list[str | None] = []
    for row in result.rows:
        value = getattr(row.accuracy, field).get(name)
        drop = "" if row.variant == result.baseline or value is None else f" ({base - value:+.1f})"
        cells.append(None if value is None else f"{value:.1f}{drop}")
    return cells
