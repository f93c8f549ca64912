"""``edgepose demo``."""

from __future__ import annotations

from pathlib import Path

import click

from edgepose.cli._accuracy import print_validation
from edgepose.cli._console import out
from edgepose.cli._measure import measure, measure_chain
from edgepose.cli._options import PATH
from edgepose.cli._outputs import Outputs
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
    """Convert the starter models to INT8, run them on the sample clip, time them, compare them with FP32. Offline."""
    from edgepose.assets import LIFTER_MODEL, LIFTER_WEIGHTS, SAMPLE_CLIP, STARTER_MODEL, STARTER_WEIGHTS
    from edgepose.bundle import check_target
    from edgepose.runtimes.load import load, load_lifter
    from edgepose.sinks import check_output

    require_converters()
    bundle, lifter = output / "bundle", output / "lifter"
    video, poses = output / "annotated.mp4", output / "poses.jsonl"
    for target in (bundle, lifter):
        check_target(target, force=force)
    for path in (video, poses):
        check_output(path, force=force)

    _step(1, "convert the starter model, calibrated on frames of the clip")
    convert_checkpoint(STARTER_WEIGHTS, STARTER_MODEL, bundle, SAMPLE_CLIP, _CALIBRATION_SIZE, force=force)
    _step(2, "convert the lifting model (2D to 3D), calibrated on the joints that the INT8 model finds")
    convert_checkpoint(
        LIFTER_WEIGHTS, LIFTER_MODEL, lifter, SAMPLE_CLIP, _CALIBRATION_SIZE, keypoints_from=bundle, force=force
    )
    _step(3, "run both INT8 models on the clip")
    models = load(bundle, variant="onnx-int8"), load_lifter(lifter, variant="onnx-int8")
    run_source(models[0], str(SAMPLE_CLIP), Outputs(video, poses), lifter=models[1])
    _step(4, "measure latency here")
    bench(bundle)
    _step(5, "compare INT8 with FP32 on the clip, without labels: in 2D, and at the end of the chain")
    estimators, _ = load_variants(bundle)
    lifters, _ = load_variants(lifter)
    print_validation(measure(estimators, "unlabeled", SAMPLE_CLIP))
    print_validation(measure_chain(estimators, lifters, "unlabeled", SAMPLE_CLIP))

    out.print("\n[bold]Look at[/bold]")
    made = (
        (video, "the clip with skeletons, and the poses in space"),
        (poses, "the poses"),
        (bundle, "the 2D models, ready to copy"),
        (lifter, "the lifting models"),
    )
    for path, what in (*made, (bundle / "report.html", "FP32 beside INT8, with the crops that differ most")):
        out.print(f"  {path}  {what}", soft_wrap=True)
    out.print("\nNext: edgepose run", str(bundle), "--lift", str(lifter), "--source 0 --out me.mp4", soft_wrap=True)


def _step(number: int, what: str) -> None:
    out.print(f"\n[bold]{number}. {what}[/bold]", soft_wrap=True)
