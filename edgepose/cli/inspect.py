"""``edgepose inspect``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepose.cli._console import out, print_table
from edgepose.cli._options import PATH

if TYPE_CHECKING:
    from edgepose.bundle import Bundle
    from edgepose.types import ModelSpec

__all__ = ["command", "print_origin", "print_spec", "read_origin"]


@click.command("inspect")
@click.argument("path", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--attach", type=PATH, help="Put this specification (JSON) into a .tflite file that has none.")
@click.option("--output", type=PATH, help="With --attach: write here, and leave the file as it is.")
@click.option("--force", is_flag=True, help="With --attach: replace what is there.")
def command(path: Path, as_json: bool, attach: Path | None, output: Path | None, force: bool) -> None:
    """Show the specification that a model FILE carries, or a BUNDLE's variants and provenance.

    Of a .tflite file the operators are listed too, and those that would leave an INT8-only delegate (Edge TPU, NPU).

    \b
    edgepose inspect other.tflite --attach spec.json
    """
    from edgepose.cli._tflite import attach_spec, describe, print_description

    if attach:
        path = attach_spec(path, attach, output, force=force)
    elif output or force:
        raise click.UsageError("--output and --force go with --attach")
    if path.suffix.lower() == ".tflite" and path.is_file():
        described = describe(path)
        if as_json:
            click.echo(json.dumps(described, indent=2))
        else:
            print_description(path, described)
    else:
        _inspect(path, as_json)


def _inspect(path: Path, as_json: bool) -> None:
    """Show a model file by its engine, or a bundle."""
    from edgepose.bundle import Bundle
    from edgepose.runtimes.load import load_model
    from edgepose.types import ORIGIN_KEY

    if path.is_file():
        model = load_model(path, device="cpu", self_test=False)
        spec = model.spec
        origin = read_origin(model.engine.metadata.get(ORIGIN_KEY, "{}"))
        data: dict[str, Any] = {"file": str(path), "spec": json.loads(spec.to_json()), "origin": origin}
        if as_json:
            click.echo(json.dumps(data, indent=2))
        else:
            print_spec(spec, str(path))
            print_origin(origin)
        return
    bundle = Bundle.open(path)
    for name in bundle.files:
        bundle.checked_file(name)
    for row in bundle.variants:
        load_model(bundle.path / row.file, device="cpu", self_test=False)
    if as_json:
        click.echo((path / "manifest.json").read_text(encoding="utf-8"), nl=False)
    else:
        print_spec(bundle.spec, str(path))
        _print_variants(bundle)


def print_spec(spec: ModelSpec, where: str) -> None:
    """Print what a model takes and gives."""
    lifts = spec.task == "lift3d"
    what = f"keypoints, {spec.normalisation}-normalised" if lifts else "RGB crops, 0-255"
    unit = "  metres from the pelvis" if lifts else ""
    rows = [
        ("model", f"{spec.name} ({spec.task})"),
        ("input", f"{spec.input.name}  {spec.input.dtype} {_shape(spec.input.shape)}  {what}"),
        ("output", f"{spec.output.name}  {spec.output.dtype} {_shape(spec.output.shape)}{unit}"),
        ("skeleton", f"{spec.skeleton}: {', '.join(spec.joints.joints)}"),
    ]
    if not lifts:
        rows += [("crop padding", f"{spec.crop_padding:g}"), ("score threshold", f"{spec.score_threshold:g}")]
    print_table(where, ("<", "<"), rows)


def read_origin(text: str) -> dict[str, Any]:
    """Where a model file comes from, as it says; what cannot be read is under ``damaged``."""
    try:
        data = json.loads(text)
    except (RecursionError, ValueError):
        data = None
    return data if isinstance(data, dict) else {"damaged": text[:80]}


def print_origin(origin: dict[str, Any]) -> None:
    """Print where a model file comes from."""
    facts = [(key, json.dumps(value)) for key, value in sorted(origin.items())]
    print_table("where it comes from", ("<", "<"), facts)


def _print_variants(bundle: Bundle) -> None:
    rows = [
        (
            v.name,
            f"{bundle.files[v.file]['bytes'] / 1e6:.2f}",
            f"{v.golden_error:.2%}",
            bundle.files[v.file]["sha256"][:12],
            v.recipe.get("quantizer", {}).get("name", "-"),
        )
        for v in bundle.variants
    ]
    columns = ("<variant", "MB", "off FP32", "<sha256", "<recipe")
    print_table("variants (hashes checked)", columns, rows, "off FP32: relative RMS of the golden heatmaps")
    p = bundle.provenance
    checkpoint = p["checkpoint"]
    source = (
        "random weights" if checkpoint.get("random") else f"{checkpoint['file']}  sha256 {checkpoint['sha256'][:12]}"
    )
    calibration = bundle.read_json("calibration.json")
    versions = "  ".join(f"{name} {number}" for name, number in p["versions"].items())
    facts = [
        ("checkpoint", source),
        (
            "calibration",
            f"{calibration.get('source') or 'none'}  {calibration.get('calibrated_on', 0)} samples, seed {p['seed']}",
        ),
        ("created", p["created"]),
        ("versions", versions),
        *(("note", note) for note in p.get("notes", [])),
    ]
    print_table("provenance", ("<", "<"), facts)
    out.print()


def _shape(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("N" if side is None else str(side) for side in shape) + ")"
