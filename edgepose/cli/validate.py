"""``edgepose validate``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepose.cli._console import print_table, progress, remark, write_figures
from edgepose.cli._options import PATH, engine_options, split_list
from edgepose.cli._variants import load_variants
from edgepose.errors import EdgePoseError
from edgepose.machine import machine

if TYPE_CHECKING:
    from edgepose.calibration.validate import Validation
    from edgepose.pipeline import Estimator

__all__ = ["command", "print_validation", "validate"]

_UNLABELED = 128


@click.command("validate")
@click.argument("bundle", type=PATH)
@click.option(
    "--data", type=click.Choice(["coco", "unlabeled"]), default="coco", show_default=True, help="Kind of data."
)
@click.option("--root", type=PATH, required=True, help="COCO folder or JSON; or any images or video (unlabeled).")
@click.option("--detections", type=PATH, help="COCO detection file; ground-truth boxes without it.")
@click.option("--variants", help="Only these, separated by commas.  [default: all]")
@click.option("--baseline", help="Variant to compare with.  [default: the first FP32 one]")
@click.option("--flip", is_flag=True, help="Flip test: average with the mirrored crop.")
@click.option(
    "--limit", type=click.IntRange(1), help="At most so many images (coco) or crops (unlabeled, default 128)."
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=1,
    show_default=True,
    help="Seed of the choice of unlabeled crops.",
)
@click.option("--json", "json_path", type=PATH, help="Write the figures here too.")
@click.option("--force", is_flag=True, help="Replace the JSON file.")
@engine_options
def command(
    bundle: Path,
    data: str,
    root: Path,
    detections: Path | None,
    variants: str | None,
    baseline: str | None,
    flip: bool,
    limit: int | None,
    seed: int,
    json_path: Path | None,
    force: bool,
    engine: str | None,
    device: str,
    threads: int | None,
    no_self_test: bool,
) -> None:
    """Measure the accuracy of BUNDLE's variants on the same crops: COCO AP and AR, and agreement with FP32.

    \b
    edgepose validate bundle --data coco --root coco/            AP, AR and agreement
    edgepose validate bundle --data unlabeled --root footage/    agreement alone, no labels needed
    """
    from edgepose.sinks import check_output

    if json_path:
        check_output(json_path, force=force)
    if detections and data != "coco":
        raise click.UsageError("--detections goes with --data coco")
    estimators, failed = load_variants(
        bundle, split_list(variants) if variants else None, engine, device, threads, not no_self_test
    )
    result = validate(
        estimators, data, root, detections=detections, baseline=baseline, flip=flip, limit=limit, seed=seed
    )
    print_validation(result, failed)
    if json_path:
        write_figures(json_path, asdict(result) | {"failed": failed, "machine": machine()})


def validate(
    estimators: dict[str, Estimator],
    data: str,
    root: Path,
    *,
    detections: Path | None = None,
    baseline: str | None = None,
    flip: bool = False,
    limit: int | None = None,
    seed: int = 1,
) -> Validation:
    """Measure with a progress line; ``data`` is ``coco`` or ``unlabeled``."""
    from edgepose.calibration.coco import CocoKeypoints
    from edgepose.calibration.samples import collect
    from edgepose.calibration.validate import validate_coco, validate_crops

    base = _baseline(estimators, baseline)
    with progress() as update:
        if data == "coco":
            return validate_coco(
                estimators,
                CocoKeypoints.from_root(root),
                baseline=base,
                detections=detections,
                flip=flip,
                limit=limit,
                progress=lambda done, total: update("images", done, total),
            )
        found = collect(
            root,
            estimators[base].spec,
            limit or _UNLABELED,
            seed,
            estimators[base].best_region,
            lambda done, total: update("choose crops", done, total),
            minimum=1,
        )
        return validate_crops(
            estimators,
            found.crops,
            str(root),
            baseline=base,
            flip=flip,
            skipped=found.skipped,
            progress=lambda done, total: update("crops", done, total),
        )


def _baseline(names: Iterable[str], asked: str | None) -> str:
    names = list(names)
    if asked is None:
        fp32 = [name for name in names if name.endswith("-fp32")]
        if not fp32:
            known = ", ".join(names)
            raise EdgePoseError(f"no FP32 variant runs here to compare with: name another with --baseline ({known})")
        return fp32[0]
    if asked not in names:
        raise EdgePoseError(f"--baseline {asked}: not among the variants that run here: {', '.join(names)}")
    return asked


def print_validation(result: Validation, failed: dict[str, str]) -> None:
    """The accuracy table, then the joints that moved most."""
    labelled = result.rows[0].stats is not None
    base = next(row for row in result.rows if row.variant == result.baseline)
    rows = []
    for row in result.rows:
        a = row.agreement
        scores: list[object] = []
        if row.stats is not None and base.stats is not None:
            scores = [f"{100 * row.stats[key]:.2f}" for key in ("AP", "AP50", "AP75", "AR")]
            scores.append(f"{100 * (base.stats['AP'] - row.stats['AP']):+.2f}")
        moved = [f"{a.mean_oks:.4f}", f"{a.p5_oks:.4f}", f"{a.mean_shift_px:.2f}", f"{a.p95_shift_px:.2f}"]
        rows.append((row.variant, *scores, *moved, f"{row.seconds:.1f}"))
    rows += [(name, "did not run") for name in failed]
    columns = ["<variant", *(["AP", "AP50", "AP75", "AR", "AP drop"] if labelled else [])]
    columns += ["mean OKS", "p5 OKS", "shift px", "p95 px", "seconds"]
    rows = [(*row, *[None] * (len(columns) - len(row))) for row in rows]
    flip = "on" if result.flip else "off"
    print_table(
        f"accuracy on {result.data}",
        columns,
        rows,
        f"{result.crops} crops of {result.images} images, boxes: {result.boxes}, flip test {flip}; OKS and shift "
        f"(crop pixels) against {result.baseline}, over the {base.agreement.joints} joints it finds",
    )
    for name, reason in failed.items():
        remark(f"{name} did not run: {reason}")
    for row in result.rows:
        if row.variant != result.baseline:
            worst = sorted(row.agreement.joint_shift_px.items(), key=lambda item: -item[1])[:3]
            names = [f"{name} {shift:.2f} px" for name, shift in worst]
            remark(f"{row.variant} moves most: {', '.join(names)}")
    if result.skipped:
        remark(f"{len(result.skipped)} images could not be read: {', '.join(result.skipped[:3])}")
