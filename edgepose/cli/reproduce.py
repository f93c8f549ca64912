"""``edgepose reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepose.cli._console import print_table, progress, remark
from edgepose.cli._options import PATH, keypoints_from_option
from edgepose.cli.convert import require_converters

if TYPE_CHECKING:
    from edgepose.converters.reproduce import Reproduction

__all__ = ["command"]

_SHOWN = (
    "mean_oks",
    "p5_oks",
    "mean_shift_px",
    "p95_shift_px",
    "mean_mm",
    "p95_mm",
    "snr_db",
    "max_abs_error",
    "megabytes",
)


@click.command("reproduce")
@click.argument("bundle", type=PATH)
@click.option("--checkpoint", type=PATH, help="What it was made from; none for random weights.")
@click.option("--calib", type=PATH, help="What it was calibrated with: pictures, or poses.")
@keypoints_from_option
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    help="Another seed, to see how much the choice of crops matters.  [default: the bundle's]",
)
def command(
    bundle: Path, checkpoint: Path | None, calib: Path | None, keypoints_from: Path | None, seed: int | None
) -> int:
    """Make BUNDLE again by its manifest and compare: the same bytes, the same evidence? Exit code 1 if not.

    \b
    edgepose reproduce bundle --checkpoint tp_r.pth --calib footage.mp4
    """
    require_converters()
    from edgepose.converters.reproduce import reproduce

    with progress() as update:
        result = reproduce(bundle, checkpoint, calib, keypoints_from=keypoints_from, seed=seed, progress=update)
    _print(bundle, result)
    return 0 if result.same else 1


def _print(bundle: Path, result: Reproduction) -> None:
    rows = [
        (
            file.name,
            "identical" if file.identical else "differs",
            file.sha256[:12],
            file.sha256_now[:12],
            file.difference,
        )
        for file in result.files
    ]
    print_table(f"{bundle} made again", ("<file", "<bytes", "<SHA-256 then", "<now", "<what differs"), rows)
    shown = [f for f in result.figures if f.name.rpartition(".")[2] in _SHOWN]
    if result.figures:
        table = [(figure.variant, figure.name, _text(figure.was), _text(figure.now)) for figure in shown]
        if shown:
            print_table("evidence that differs", ("<variant", "<figure", "then", "now"), table)
        remark(f"{len(result.figures)} figures of the evidence differ")
    else:
        remark("the evidence is equal, figure by figure")
    for cause in result.causes:
        remark(f"put in: {cause}")
    if result.same:
        remark("the same, then as now")
    elif not result.causes:
        remark("put in: nothing else than then: another processor or operating system may round otherwise")


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
