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

__all__ = ["command"]


@click.command("inspect")
@click.argument("path", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(path: Path, as_json: bool) -> None:
    """Show the specification that a model FILE carries, or a BUNDLE's variants and provenance."""
    from edgepose.bundle import Bundle
    from edgepose.runtimes.load import load

    if path.is_file():
        estimator = load(path, self_test=False)
        spec = estimator.spec
        data: dict[str, Any] = {"file": str(path), "spec": json.loads(spec.to_json())}
        if as_json:
            click.echo(json.dumps(data, indent=2))
        else:
            _print_spec(spec, str(path))
        return
    bundle = Bundle.open(path)
    for row in bundle.variants:
        bundle.checked_file(row.file)
    if as_json:
        click.echo((path / "manifest.json").read_text(encoding="utf-8"), nl=False)
    else:
        _print_spec(bundle.spec, str(path))
        _print_variants(bundle)


def _print_spec(spec: ModelSpec, where: str) -> None:
    rows = [
        ("model", f"{spec.name} ({spec.task})"),
        ("input", f"{spec.input.name}  {spec.input.dtype} {_shape(spec.input.shape)}  RGB crops, 0-255"),
        ("output", f"{spec.output.name}  {spec.output.dtype} {_shape(spec.output.shape)}"),
        ("skeleton", f"{spec.skeleton}: {', '.join(spec.joints.joints)}"),
        ("crop padding", f"{spec.crop_padding:g}"),
        ("score threshold", f"{spec.score_threshold:g}"),
    ]
    print_table(where, ("<", "<"), rows)


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
    calibration = json.loads((bundle.path / "calibration.json").read_text(encoding="utf-8"))
    versions = "  ".join(f"{name} {number}" for name, number in p["versions"].items())
    facts = [
        ("checkpoint", source),
        (
            "calibration",
            f"{calibration['source'] or 'none'}  {calibration.get('calibrated_on', 0)} crops, seed {p['seed']}",
        ),
        ("created", p["created"]),
        ("versions", versions),
        *(("note", note) for note in p.get("notes", [])),
    ]
    print_table("provenance", ("<", "<"), facts)
    out.print()


def _shape(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("N" if side is None else str(side) for side in shape) + ")"
