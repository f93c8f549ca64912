"""``edgepose validate``."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from edgepose.calibration.datasets.registry import DATASETS
from edgepose.cli._accuracy import print_validation
from edgepose.cli._console import remark, write_figures
from edgepose.cli._hosts import Hosts, host_options
from edgepose.cli._measure import measure, measure_chain, with_latency
from edgepose.cli._options import PATH, engine_options, split_list
from edgepose.cli._predictions import PREDICTIONS, score_predictions
from edgepose.cli._variants import load_variants
from edgepose.errors import EdgePoseError, EngineUnavailable, SinkError
from edgepose.machine import machine
from edgepose.opening import Opening

if TYPE_CHECKING:
    from edgepose.calibration.evidence import LiftValidation, Validation

__all__ = ["command"]

_KINDS = "; ".join(f"{kind}: {row.help}" for kind, row in DATASETS.items())


@click.command("validate")
@click.argument("bundle", type=PATH)
@click.option(
    "--data",
    "kind",
    type=click.Choice(list(DATASETS)),
    help=f"Kind of data ({_KINDS}).  [default: what --root looks like]",
)
@click.option("--root", type=PATH, required=True, help="Folder, archive, annotation file, images or video.")
@click.option("--detections", type=PATH, help="COCO detection file; ground-truth boxes without it.")
@click.option("--variants", help="Only these, separated by commas.  [default: all]")
@click.option("--baseline", help="Variant to compare with.  [default: the first FP32 one]")
@click.option(
    "--chain",
    type=click.Path(path_type=Path),
    help="A lifting bundle: measure BUNDLE's poses lifted by it, every pair of variants against FP32 > FP32.",
)
@click.option("--chain-variants", help="Only these of the lifting bundle, separated by commas.  [default: all]")
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0, max=1e9),
    help="Exit 1 when a variant loses more than this: points; of lifting models and chains millimetres.",
)
@click.option(
    "--flip/--no-flip",
    default=None,
    help="Average with the mirrored input.  [default: as edgepose run does: off in 2D, on for lifting models]",
)
@click.option("--limit", type=click.IntRange(1), help="At most so many pictures.  [default: all; 128 without labels]")
@click.option("--workers", type=click.IntRange(1, 64), default=2, show_default=True, help="Threads that read pictures.")
@click.option("--report", type=PATH, help="Folder for report.html, report.md and evidence.json.")
@click.option("--json", "json_path", type=PATH, help="Write the figures here too.")
@click.option("--force", is_flag=True, help="Replace the report and the JSON file.")
@engine_options
@host_options
def command(
    bundle: Path,
    kind: str | None,
    root: Path,
    detections: Path | None,
    variants: str | None,
    baseline: str | None,
    chain: Path | None,
    chain_variants: str | None,
    max_drop: float | None,
    flip: bool | None,
    limit: int | None,
    workers: int,
    report: Path | None,
    json_path: Path | None,
    force: bool,
    opening: Opening,
    hosts: Hosts,
) -> int:
    """Measure the accuracy of BUNDLE's variants on the same crops, and the drop from FP32.

    Labelled data give AP, PCK or PCKh, and MPJPE of lifting models; every kind gives the agreement with FP32. BUNDLE
    may also be poses that any tool made: COCO keypoint results (.json), or 3D poses (.npz: one array (F, 17, 3) in
    metres per clip).

    \b
    edgepose validate bundle --data coco --root coco/ --max-drop 1.0 --report out/
    edgepose validate bundle --data lsp --root lspet/val.zip
    edgepose validate bundle --data unlabeled --root footage.mp4      no labels needed
    edgepose validate lifter --data mocap --root poses.npz
    edgepose validate bundle --chain lifter --root footage.mp4        2D and lifting together
    """
    from edgepose.calibration.report.write import evidence, verdicts_of, write_report
    from edgepose.cli._there import validate_there

    _check_outputs(json_path, report, force, [path for path in (bundle, chain, detections) if path], root)
    if max_drop is not None and not math.isfinite(max_drop):
        raise click.BadParameter(f"{max_drop} is no limit", param_hint="--max-drop")
    if bundle.suffix.lower() in PREDICTIONS:
        _refuse_other_options(bundle)
        figures = score_predictions(bundle, kind, root)
        if json_path:
            write_figures(json_path, figures)
        return 0
    chosen = None if variants is None else _with_baseline(bundle, split_list(variants), baseline)
    lifting_names = split_list(chain_variants) if chain_variants else None
    if hosts:
        needed = {"bundle": chosen, "chain": lifting_names}
        data = {"root": root, "detections": detections}
        return validate_there(
            bundle, hosts, needed, data, json_path=json_path, report=report, gate=max_drop is not None
        )
    loaded, unusable = load_variants(
        bundle,
        chosen,
        opening,
        measure_anyway=True,
    )
    from edgepose.pipeline import Estimator

    result: Validation | LiftValidation
    if chain:
        if not all(isinstance(model, Estimator) for model in loaded.values()):
            raise EdgePoseError(f"{bundle}: --chain begins with a 2D bundle, and this is a lifting one: swap the two")
        lifting, unfit = load_variants(chain, lifting_names, replace(opening, engine=None, options={}))
        result = measure_chain(
            loaded,
            lifting,
            kind,
            root,
            detections=detections,
            baseline=baseline,
            flip=flip,
            limit=limit,
            workers=workers,
        )
        unusable = unusable | {f"* > {name}": error for name, error in unfit.items()}
    else:
        if max_drop is not None and len(loaded) + len(unusable) < 2:
            raise EdgePoseError(
                f"{bundle}: --max-drop needs a variant besides the baseline, and there is only {next(iter(loaded))}"
            )
        result = measure(
            loaded,
            kind,
            root,
            detections=detections,
            baseline=baseline,
            flip=flip,
            limit=limit,
            workers=workers,
        )
    absent = {name: str(error) for name, error in unusable.items() if isinstance(error, EngineUnavailable)}
    broken = {name: str(error) for name, error in unusable.items() if name not in absent}
    result = replace(result, failed={**broken, **result.failed}, absent=absent)
    if report and not chain:
        result = with_latency(result, loaded, bundle)
    provenance = _provenance(bundle, chain)
    print_validation(result, max_drop)
    if json_path:
        write_figures(json_path, evidence(result, provenance, max_drop))
    if report:
        for path in write_report(report, result, provenance, max_drop, force=force):
            remark(f"wrote {path}")
    failed = any(verdict.state == "fail" for verdict in verdicts_of(result, max_drop))
    return 1 if max_drop is not None and failed else 0


def _check_outputs(json_path: Path | None, report: Path | None, force: bool, inputs: list[Path], root: Path) -> None:
    """Refuse outputs that would replace an input, each other, or what is there; beside the data is a fine place."""
    from edgepose.calibration.report.write import FILES, check_report
    from edgepose.sinks import check_output

    replaced = [path for path in (json_path, report) if path and path.exists()]
    inputs = inputs + ([root] if root.is_file() or replaced else [])
    if json_path:
        check_output(json_path, force=force, inputs=inputs)
    if report:
        check_report(report, force=force, inputs=inputs)
    if json_path and report and json_path.absolute() in [(report / name).absolute() for name in FILES]:
        raise SinkError(f"{json_path}: is a file of the report: it holds the same figures, so leave --json out")


def _refuse_other_options(path: Path) -> None:
    """Poses that are there already are scored, not compared: what would be ignored is an error."""
    context = click.get_current_context()
    used = {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    surplus = sorted(used - {"bundle", "kind", "root", "json_path", "force"})
    if surplus:
        names = ", ".join("--" + name.replace("_", "-") for name in surplus)
        raise click.UsageError(f"{path}: poses of another tool are scored alone, without {names}")


def _with_baseline(bundle: Path, variants: list[str], baseline: str | None) -> list[str]:
    """The variants asked for, and what they are compared with."""
    from edgepose.runtimes.load import model_files

    names = list(model_files(bundle)) if bundle.is_dir() else variants
    base = baseline or next((name for name in names if name.endswith("-fp32")), None)
    return variants if base is None or base in variants or base not in names else [base, *variants]


def _provenance(bundle: Path, chain: Path | None) -> dict[str, Any]:
    """What was measured, with what, by which command."""
    lifter = {"lifter": _made(chain)} if chain else {}
    return {"command": ["edgepose", *sys.argv[1:]], "machine": machine(), "model": _made(bundle), **lifter}


def _made(bundle: Path) -> dict[str, Any]:
    """Hashes and provenance of a bundle or model file."""
    from edgepose.bundle import MANIFEST, Bundle
    from edgepose.files import sha256_file

    if bundle.is_file():
        return {"file": bundle.name, "sha256": sha256_file(bundle)}
    opened = Bundle.open(bundle)
    return {
        "bundle": bundle.name,
        "manifest_sha256": sha256_file(bundle / MANIFEST),
        "converted": dict(opened.provenance),
        "files": {name: row["sha256"] for name, row in opened.files.items()},
    }
