"""``edgepose sensitivity``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from edgepose.cli._console import print_table, progress, write_figures
from edgepose.cli._options import PATH, keypoints_from_option
from edgepose.cli.convert import require_converters
from edgepose.machine import machine

__all__ = ["command"]


@click.command("sensitivity")
@click.argument("bundle", type=PATH)
@click.option("--calib", type=PATH, required=True, help="Any data set, images or video; for lifting models poses.")
@keypoints_from_option
@click.option("--variant", default="onnx-int8", show_default=True, help="INT8 variant whose recipe to use.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Seed of the crops.")
@click.option("--json", "json_path", type=PATH, help="Write the figures here too.")
@click.option("--force", is_flag=True, help="Replace the JSON file.")
def command(
    bundle: Path,
    calib: Path,
    keypoints_from: Path | None,
    variant: str,
    seed: int,
    json_path: Path | None,
    force: bool,
) -> None:
    """Quantize each block of BUNDLE's model alone, and rank the blocks by what they cost.

    \b
    edgepose sensitivity bundle --calib footage.mp4
    """
    from edgepose.sinks import check_output

    if json_path:
        check_output(json_path, force=force, inputs=[bundle, calib])
    require_converters([variant])
    from edgepose.bundle import Bundle
    from edgepose.converters.sensitivity import sensitivity

    with progress() as update:
        ranking = sensitivity(bundle, variant, calib, keypoints_from=keypoints_from, seed=seed, progress=update)
    unit = "mm" if Bundle.open(bundle).spec.task == "lift3d" else "points"
    rows = [(row.block, len(row.layers), f"{row.drop:.3f}") for row in ranking]
    print_table(
        f"{variant} of {bundle}, each block INT8 alone",
        ("<block", "layers", f"{unit} lost"),
        rows,
        "mm: mean distance of the joints from FP32's" if unit == "mm" else "points: 100 (1 - mean OKS) against FP32",
    )
    if json_path:
        write_figures(json_path, {"variant": variant, "ranking": [asdict(r) for r in ranking], "machine": machine()})
