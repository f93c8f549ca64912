"""Which variant of a bundle to use on this machine: what ``edgepose.load`` takes, and what speaks for measuring."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgepose.cli._examine import Engine, Report
from edgepose.machine import has_dot_products

if TYPE_CHECKING:
    from edgepose.bundle import Bundle, Variant

__all__ = ["Advice", "Taken", "advise"]


@dataclass(frozen=True)
class Taken:
    """What is taken on one device, why, and the command."""

    device: str
    variant: str
    why: str
    command: str


@dataclass(frozen=True)
class Advice:
    """For one bundle: where each variant would run, which is taken by device, and what to know."""

    bundle: str
    model: str
    variants: Mapping[str, str]
    taken: tuple[Taken, ...]
    notes: tuple[str, ...]


def advise(path: Path, report: Report) -> Advice:
    """Look at a bundle with a machine in mind.

    Raises:
        BundleError: It is none, or holds no variants.
    """
    from edgepose.bundle import Bundle
    from edgepose.runtimes.preference import rank_variants, why_first

    bundle = Bundle.open(path)
    choices = {device: rank_variants(bundle, None, device) for device in ("auto", *_others(report))}
    return Advice(
        bundle=str(path),
        model=bundle.spec.name,
        variants={row.name: _where(row, report) for row in bundle.variants},
        taken=tuple(
            Taken(device, ranked[0].variant.name, why_first(ranked, here), _command(path, bundle.spec.task, device))
            for device, (ranked, here) in choices.items()
        ),
        notes=tuple(_notes(bundle, choices["auto"][0][0].variant, report)),
    )


def _others(report: Report) -> list[str]:
    """Devices beside the CPU that an engine offers here."""
    offered = dict.fromkeys(device for engine in report.engines for device in engine.devices)
    return [device for device in offered if device != "cpu"]


def _runners(variant: Variant, report: Report) -> list[Engine]:
    from edgepose.runtimes.registry import engines

    rows = engines()
    return [engine for engine in report.engines if Path(variant.file).suffix in rows[engine.name].suffixes]


def _ready(variant: Variant, report: Report) -> list[Engine]:
    return [engine for engine in _runners(variant, report) if engine.state in ("ready", "not asked")]


def _where(variant: Variant, report: Report) -> str:
    """Engines and devices that would run it here; or what keeps them from it."""
    ready, runners = _ready(variant, report), _runners(variant, report)
    if ready:
        return ", ".join(" ".join([engine.name, "/".join(engine.devices)]).strip() for engine in ready)
    return "; ".join(f"no: {one.name} is {one.state}" for one in runners) or "no: no engine for it"


def _command(path: Path, task: str, device: str) -> str:
    on = [] if device == "auto" else ["--device", device]
    if task == "lift3d":
        parts = ["BUNDLE2D", "--lift", str(path), *(["--lift-device", device] if on else [])]
    else:
        parts = [str(path), *on]
    return f"edgepose run {shlex.join(parts)} --source 0"


def _notes(bundle: Bundle, taken: Variant, report: Report) -> list[str]:
    notes = [note for row in bundle.variants if _ready(row, report) for note in _recipe_note(row, report)]
    broken = [engine.name for engine in _runners(taken, report) if engine.state == "broken"]
    if broken:
        notes.append(
            f"{taken.name} would be taken, and {broken[0]} is broken: repair it, or name another with --variant"
        )
    if report.cpu and "asimd" in report.cpu.isa and not has_dot_products(report.cpu.isa):
        notes += [
            f"{row.name} will not load here: OpenVINO has no INT8 for ARM without dot products (docs/arm.md)"
            for row in bundle.variants
            if row.name.startswith("openvino-int8")
        ]
    if taken.precision.startswith("int8") and report.cpu and not has_dot_products(report.cpu.isa):
        notes.append("this processor has no 8-bit dot products: INT8 may be slower than FP32 here")
    if len(bundle.variants) > 1:
        notes.append(f"what is fastest here is measured, not known: edgepose bench {bundle.path}")
    return notes


def _recipe_note(variant: Variant, report: Report) -> list[str]:
    """Where INT8 was made for other instruction sets than these."""
    from edgepose.converters.recipes import default_recipe

    quantizer = variant.recipe.get("quantizer")
    made = str(quantizer.get("name", "")) if isinstance(quantizer, Mapping) else ""
    engine = made.partition("-")[0]
    if not made or report.cpu is None or engine not in ("onnxruntime", "openvino"):
        return []
    best = default_recipe(engine, "pose2d", report.cpu.isa).name
    if made.startswith(best):
        return []
    saturates = ", whose 8-bit sums saturate" if best == "openvino-avx2" and made.startswith("openvino-vnni") else ""
    return [f"{variant.name} was quantized by {made}; for this processor{saturates} convert with --recipe {best}"]
