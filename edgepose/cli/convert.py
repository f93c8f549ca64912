"""``edgepose convert``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource
from rich.markup import escape

from edgepose.calibration.evidence import LiftAgreement
from edgepose.cli._console import out, print_table, progress, remark
from edgepose.cli._options import PATH, keypoints_from_option, normalisation_option, split_list
from edgepose.errors import EngineUnavailable

if TYPE_CHECKING:
    from edgepose.calibration.evidence import Agreement
    from edgepose.converters.budget import Budget
    from edgepose.converters.convert import Conversion
    from edgepose.targets import Target

__all__ = ["command", "convert_checkpoint", "require_converters"]


@click.command("convert")
@click.argument("checkpoint", type=PATH, required=False)
@click.option("--model", required=True, help="Registered model that the checkpoint is of (edgepose models).")
@click.option("--random", is_flag=True, help="Random weights instead of a checkpoint, for experiments.")
@click.option(
    "--to",
    "formats",
    default="onnx",
    show_default=True,
    help="Formats, by commas: onnx, openvino, tflite, tensorrt, torch.",
)
@click.option(
    "--precision",
    help="By commas: fp32 (not for tensorrt); int8 and fp16 (not for torch); int8-16x8 for tflite; or auto: the "
    "fastest here within --max-drop.  [default: fp32, or else fp16, and int8 of the formats that have it]",
)
@click.option(
    "--target",
    "targets",
    help="Instead of both: which machines it is for, by commas, like jetson-orin,raspberrypi5 (edgepose targets).",
)
@click.option(
    "--calib",
    type=PATH,
    help="COCO keypoint JSON, folder of images, or video; for lifting models 3D poses (.npz) as well. INT8 needs it.",
)
@keypoints_from_option
@click.option("--calib-size", type=click.IntRange(8), default=128, show_default=True, help="Samples to calibrate with.")
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Seed of the choice of samples."
)
@normalisation_option
@click.option("--input-size", help="Crop height x width, for instance 256x192.  [default: the model's]")
@click.option(
    "--recipe",
    "recipes",
    multiple=True,
    help="How to quantize, by name, for instance onnxruntime-arm; once for each engine.  [default: the target's; "
    "without a target, for this machine]",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0, max=100),
    help="What a variant may lose against FP32: points; of a lifting model millimetres.",
)
@click.option(
    "--metric",
    type=click.Choice(["agreement", "pck", "ap", "mpjpe"]),
    default="agreement",
    show_default=True,
    help="What --max-drop is measured in.",
)
@click.option("--budget-data", type=PATH, help="Labelled data for --metric pck, ap or mpjpe.")
@click.option("-o", "--output", type=PATH, required=True, help="Bundle to write.")
@click.option("--force", is_flag=True, help="Replace a bundle that is there.")
@click.pass_context
def command(
    context: click.Context,
    checkpoint: Path | None,
    model: str,
    random: bool,
    formats: str,
    precision: str | None,
    targets: str | None,
    calib: Path | None,
    keypoints_from: Path | None,
    calib_size: int,
    seed: int,
    normalisation: str | None,
    input_size: str | None,
    recipes: tuple[str, ...],
    max_drop: float | None,
    metric: str,
    budget_data: Path | None,
    output: Path,
    force: bool,
) -> None:
    """Turn CHECKPOINT into a bundle: FP32 and INT8 models, each checked against the original.

    \b
    edgepose convert tp_r.pth --model transpose-r-a4 --calib footage.mp4 -o bundle
    edgepose convert tp_r.pth --model transpose-r-a4 --calib footage.mp4 --target raspberrypi5,intel-npu -o bundle
    """
    if (checkpoint is None) == (not random):
        raise click.UsageError("give either a CHECKPOINT or --random")
    if targets and {context.get_parameter_source(name) for name in ("formats", "precision")} != {_BY_DEFAULT}:
        raise click.UsageError("--target chooses formats and precisions: leave out --to and --precision")
    convert_checkpoint(
        checkpoint,
        model,
        output,
        calib,
        calib_size,
        keypoints_from=keypoints_from,
        variants=[] if targets else _variants(split_list(formats), precision),
        targets=split_list(targets) if targets else (),
        keep_fastest=precision == "auto",
        budget=(max_drop, metric, budget_data),
        input_hw=_input_hw(input_size) if input_size else None,
        normalisation=normalisation,
        recipes=recipes,
        seed=seed,
        force=force,
    )


_BY_DEFAULT = ParameterSource.DEFAULT


def convert_checkpoint(
    checkpoint: Path | None,
    model: str,
    output: Path,
    calib: Path | None,
    calib_size: int,
    *,
    keypoints_from: Path | None = None,
    variants: Sequence[str] = ("onnx-fp32", "onnx-int8"),
    targets: Sequence[str] = (),
    input_hw: tuple[int, int] | None = None,
    normalisation: str | None = None,
    recipes: Sequence[str] = (),
    keep_fastest: bool = False,
    budget: tuple[float | None, str, Path | None] = (None, "agreement", None),
    seed: int = 0,
    force: bool = False,
) -> None:
    """Convert with a progress line per stage, and print the closing table; no checkpoint means random weights.

    Targets choose the variants, and the recipes of engines for which none is named.
    """
    from edgepose.bundle import check_target
    from edgepose.models.registry import get_model
    from edgepose.targets import get_target

    row = get_model(model)
    if input_hw:
        row = row.resized(input_hw)
    if normalisation:
        row = row.normalised(normalisation)
    check_target(output, force=force)
    rows = [get_target(name) for name in targets]
    require_converters([*variants, *(name for target in rows for name in target.variants)])
    from edgepose.converters.checkpoint import build_random, load_checkpoint
    from edgepose.converters.convert import convert
    from edgepose.converters.recipes import get_recipe
    from edgepose.converters.targets import plan
    from edgepose.converters.variants import VARIANTS

    chosen = {name.partition("-")[0]: get_recipe(name) for name in recipes}
    planned = plan(rows, row.task, list(VARIANTS), chosen)
    with progress() as update:
        update(f"load {checkpoint.name if checkpoint else 'random weights'}", 0, 0)
        conversion = convert(
            load_checkpoint(checkpoint, row) if checkpoint else build_random(row, seed),
            output,
            planned.variants or variants,
            calibration=calib,
            keypoints_from=keypoints_from,
            calibration_size=calib_size,
            recipes=planned.recipes,
            budget=_budget(*budget, _AUTO_DROP[row.task] if keep_fastest else None),
            keep_fastest=keep_fastest,
            seed=seed,
            force=force,
            progress=update,
        )
    _print(conversion, row.name if checkpoint else f"{row.name} with random weights")
    _print_targets(rows, output, row.task)


def _variants(formats: list[str], precision: str | None) -> list[str]:
    """Names; ``auto`` stands for every precision of a format, and None for its fullest and INT8 where it has that."""
    if precision not in (None, "auto"):
        return [f"{form}-{kind}" for form in formats for kind in split_list(str(precision))]
    require_converters()
    from edgepose.converters.variants import VARIANTS

    names = [name for form in formats for name in VARIANTS if name.partition("-")[0] == form]
    unknown = set(formats) - {name.partition("-")[0] for name in names}
    if unknown:
        raise click.UsageError(f"--to {', '.join(sorted(unknown))}: there is no such format")
    if precision == "auto":
        return names
    usual = [[f"{form}-{kind}" for kind in ("fp32", "fp16", "int8")] for form in formats]
    return [name for form in usual for name in _fullest_and_int8([name for name in form if name in names])]


def _fullest_and_int8(names: list[str]) -> list[str]:
    return [name for name in names if name == names[0] or name.endswith("int8")]


_BUDGET_PICTURES = 500
_AUTO_DROP = {"pose2d": 1.0, "lift3d": 10.0}  # points, and millimetres of mean distance: a fifth of its own error


def _budget(max_drop: float | None, metric: str, data: Path | None, otherwise: float | None) -> Budget | None:
    """What may be lost; ``otherwise``, for ``--precision auto``, where nothing is said."""
    from edgepose.calibration.datasets.mocap import MocapPoses
    from edgepose.calibration.datasets.registry import open_pictures
    from edgepose.converters.budget import Budget

    if (data is None) != (metric == "agreement"):
        raise click.UsageError("--metric pck, ap or mpjpe and --budget-data go together")
    if max_drop is None:
        if data is not None:
            raise click.UsageError("--budget-data goes with --max-drop")
        return None if otherwise is None else Budget(otherwise)
    if data is None:
        return Budget(max_drop)
    if metric == "mpjpe":
        return Budget(max_drop, MocapPoses(data))
    opened = open_pictures(data)
    kinds = {"ap": ("coco",), "pck": ("lsp", "mpii")}[metric]
    if opened.kind not in kinds:
        raise click.UsageError(f"{data}: is {opened.kind} data, --metric {metric} needs {' or '.join(kinds)}")
    return Budget(max_drop, opened, _BUDGET_PICTURES)


_PACKAGES = {
    "onnx": ("onnx", "onnxscript"),
    "openvino": ("openvino",),
    "tensorrt": ("onnx", "onnxscript"),
    "tflite": ("litert_torch", "ai_edge_quantizer"),
    "onnx-int8": ("nncf",),
    "openvino-int8": ("nncf",),
    "tensorrt-int8": ("nncf",),
}
"""What making a format or variant imports, beside torch and the ONNX that is always there to compare with."""


def require_converters(variants: Sequence[str] = ()) -> None:
    """Name the command that installs what conversion needs, where it is missing.

    Raises:
        EngineUnavailable: A package is missing.
    """
    parts = ["onnx", *(part for name in variants for part in (name.partition("-")[0], name))]
    needed = dict.fromkeys(["torch", *(package for part in parts for package in _PACKAGES.get(part, ()))])
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise EngineUnavailable(
            f"converting needs {', '.join(missing)}, not installed here: pip install 'edgepose[convert]' "
            "(on a computer, not on the board: bundles run without it)"
        )


def _print(conversion: Conversion, name: str) -> None:
    """The closing table."""
    for note in conversion.notes:
        remark(f"note: {note}")
    rows = [
        (row.variant, f"{row.megabytes:.2f}", *_figures(row.agreement), f"{row.seconds:.1f}") for row in conversion.rows
    ]
    print_table(
        f"{name} -> {conversion.bundle}",
        ("<variant", "MB", "max abs", "SNR dB", *_columns(conversion), "made in s"),
        rows,
        _caption(conversion),
    )


def _columns(conversion: Conversion) -> tuple[str, ...]:
    lifts = isinstance(conversion.rows[0].agreement, LiftAgreement)
    return ("shift mm", "p95 mm", "worst pose mm") if lifts else ("shift px", "p95 px", "mean OKS")


def _print_targets(targets: Sequence[Target], bundle: Path, task: str) -> None:
    """What to type on each of them."""
    for target in targets:
        out.print(f"\n[bold]on {target.name}[/bold] ({escape(target.summary)})", soft_wrap=True)
        lines = [f"install  {target.install}", f"run      {target.command(str(bundle), task)}"]
        for line in [*lines, *([f"note     {target.note}"] if target.note else [])]:
            out.print(f"  {escape(line)}", soft_wrap=True)


def _figures(a: Agreement | LiftAgreement) -> tuple[str, ...]:
    known = f"{a.max_abs_error:.2g}", f"{a.snr_db:.1f}"
    if isinstance(a, LiftAgreement):
        return (*known, f"{a.mean_mm:.2f}", f"{a.p95_mm:.2f}", f"{a.worst_mm:.2f}")
    return (*known, f"{a.mean_shift_px:.2f}", f"{a.p95_shift_px:.2f}", f"{a.mean_oks:.4f}")


def _caption(conversion: Conversion) -> str:
    agreement = conversion.rows[0].agreement
    if isinstance(agreement, LiftAgreement):
        what, unit = "poses", "shift of the joints in millimetres; max abs in metres"
    else:
        what = f"crops ({agreement.joints} joints that FP32 finds, {agreement.share:.0%})"
        unit = "shift in crop pixels"
    calibrated = f"calibrated on {conversion.calibrated_on} samples, " if conversion.calibrated_on else ""
    return (
        f"{calibrated}compared with ONNX FP32 on {conversion.verified_on} other {what}; {unit}; "
        f"ONNX FP32 is {conversion.torch_max_abs_error:.1g} off torch"
    )


def _input_hw(text: str) -> tuple[int, int]:
    height, separator, width = text.lower().partition("x")
    if not (separator and height.isdecimal() and width.isdecimal()):
        raise click.BadParameter(f"{text!r}: give height x width, for instance 256x192", param_hint="--input-size")
    return int(height), int(width)
