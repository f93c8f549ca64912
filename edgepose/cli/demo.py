"""``edgepose demo``."""

from __future__ import annotations

from pathlib import Path

import click

from edgepose.cli._accuracy import print_validation
from edgepose.cli._console import out
from edgepose.cli._measure import measure
from edgepose.cli._options import PATH
from edgepose.cli._variants import load_variants
from edgepose.cli.bench import bench
from edgepose.cli.convert import convert_checkpoint, require_converters
from edgepose.cli.run import run_source

__all__ = ["command"]

_CALIBRATION_SIZE = 48


@click.command("demo")
@click.option("-o", "--output", type=PATH, default=Path("edgepose-demo"), show_default=True, help="Folder to write to.")
@click.option("--force", is_flag=True, help="Replace what an earlier demo wrote.")
def command(output: Path, force: bool) -> None:
    """Convert the starter model to INT8, run it on the sample clip, time it, and compare it with FP32. Offline."""
    from edgepose.assets import SAMPLE_CLIP, STARTER_MODEL, STARTER_WEIGHTS
    from edgepose.bundle import check_target
    from edgepose.runtimes.load import load
    from edgepose.sinks import check_output

    require_converters()
    bundle, video, poses = output / "bundle", output / "annotated.mp4", output / "poses.jsonl"
    check_target(bundle, force=force)
    for path in (video, poses):
        check_output(path, force=force)

    _step(1, "convert the starter model, calibrated on frames of the clip")
    convert_checkpoint(STARTER_WEIGHTS, STARTER_MODEL, bundle, SAMPLE_CLIP, _CALIBRATION_SIZE, force=force)
    _step(2, "run the INT8 model on the clip")
    run_source(load(bundle, variant="onnx-int8"), str(SAMPLE_CLIP), video, poses)
    _step(3, "measure latency here")
    bench(bundle, iterations=100, warmup=10)
    _step(4, "compare INT8 with FP32 on the clip, without labels")
    estimators, _ = load_variants(bundle)
    print_validation(measure(estimators, "unlabeled", SAMPLE_CLIP))

    out.print("\n[bold]Look at[/bold]")
    made = (video, "the clip with skeletons"), (poses, "the poses"), (bundle, "the models, ready to copy")
    for path, what in (*made, (bundle / "report.html", "FP32 beside INT8, with the crops that differ most")):
        out.print(f"  {path}  {what}", soft_wrap=True)
    out.print("\nNext: edgepose run", str(bundle), "--source 0 --out me.mp4", soft_wrap=True)


def _step(number: int, what: str) -> None:
    out.print(f"\n[bold]{number}. {what}[/bold]", soft_wrap=True)
