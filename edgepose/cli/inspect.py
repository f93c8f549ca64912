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
    from edgepose.types import ORIGIN_KEY

    if path.is_file():
        estimator = load(path, device="cpu", self_test=False)
        spec = estimator.spec
        origin = _origin(estimator.engine.metadata.get(ORIGIN_KEY, "{}"))
        data: dict[str, Any] = {"file": str(path), "spec": json.loads(spec.to_json()), "origin": origin}
        if as_json:
            click.echo(json.dumps(data, indent=2))
        else:
            _print_spec(spec, str(path))
            _print_origin(origin)
        return
    bundle = Bundle.open(path)
    for name in bundle.files:
        bundle.checked_file(name)
    for row in bundle.variants:
        load(bundle.path / row.file, device="cpu", self_test=False)
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


def _origin(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (RecursionError, ValueError):
        data = None
    return data if isinstance(data, dict) else {"damaged": text[:80]}


def _print_origin(origin: dict[str, Any]) -> None:
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
            f"{calibration.get('source') or 'none'}  {calibration.get('calibrated_on', 0)} crops, seed {p['seed']}",
        ),
        ("created", p["created"]),
        ("versions", versions),
        *(("note", note) for note in p.get("notes", [])),
    ]
    print_table("provenance", ("<", "<"), facts)
    out.print()


def _shape(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("N" if side is None else str(side) for side in shape) + ")"
