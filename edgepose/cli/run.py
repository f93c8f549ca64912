"""``edgepose run``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepose.cli._console import out, progress, remark
from edgepose.cli._options import PATH, engine_options

if TYPE_CHECKING:
    from edgepose.boxes import BoxFile
    from edgepose.lifter import Lifter
    from edgepose.pipeline import Estimator, Sink, Totals
    from edgepose.sources import Frame, Source
    from edgepose.types import Poses

__all__ = ["command", "run_source"]


@click.command("run")
@click.argument("bundle", type=PATH)
@click.option("--source", required=True, help="Video, image, folder of images, or camera index (0).")
@click.option("--out", "video", type=PATH, help="Annotated video to write (.mp4, .avi, .mkv).")
@click.option("--json", "json_lines", type=PATH, help="Poses to write, one JSON object per frame.")
@click.option("--boxes", type=PATH, help="People's boxes (JSON); without them one person is searched and followed.")
@click.option("--variant", help="Which variant of the bundle.  [default: INT8 on a CPU]")
@click.option("--lift", type=PATH, help="Bundle of a lifting model: the poses in space too.")
@click.option("--lift-variant", help="Which variant of that bundle.  [default: INT8 on a CPU]")
@click.option("--max-frames", type=click.IntRange(1), help="Stop after so many frames.")
@click.option("--force", is_flag=True, help="Replace outputs that are there.")
@engine_options
def command(
    bundle: Path,
    source: str,
    video: Path | None,
    json_lines: Path | None,
    boxes: Path | None,
    variant: str | None,
    lift: Path | None,
    lift_variant: str | None,
    max_frames: int | None,
    force: bool,
    engine: str | None,
    device: str,
    threads: int | None,
    no_self_test: bool,
) -> None:
    """Estimate poses on a source with BUNDLE (or one model file).

    \b
    edgepose run bundle --source clip.mp4 --out annotated.mp4 --json poses.jsonl
    edgepose run bundle --lift lifter --source clip.mp4 --out annotated.mp4      poses in space beside the picture
    """
    from edgepose.runtimes.load import load, load_lifter
    from edgepose.sinks import check_output
    from edgepose.skeletons import skeleton_map

    if not (video or json_lines):
        raise click.UsageError("give --out VIDEO, --json FILE or both: otherwise the poses go nowhere")
    if video and json_lines and video.absolute() == json_lines.absolute():
        raise click.UsageError("--out and --json name the same file")
    for path in (video, json_lines):
        if path:
            check_output(path, force=force, inputs=[bundle, Path(source), *filter(None, (boxes, lift))])
    estimator = load(bundle, engine, device, variant, threads=threads, self_test=not no_self_test)
    lifter = None
    if lift:
        lifter = load_lifter(lift, None, device, lift_variant, threads=threads, self_test=not no_self_test)
        skeleton_map(estimator.spec.skeleton, lifter.spec.skeleton)
    for model in filter(None, (estimator, lifter)):
        remark(f"{model.spec.name} {model.variant} on {model.engine.name} {model.engine.device}")
    run_source(estimator, source, video, json_lines, boxes, max_frames, lifter)


def run_source(
    estimator: Estimator,
    source: str,
    video: Path | None,
    json_lines: Path | None,
    boxes: Path | None = None,
    max_frames: int | None = None,
    lifter: Lifter | None = None,
) -> Totals:
    """Open the source and the sinks, run, and print what came of it."""
    from itertools import islice

    from edgepose.boxes import BoxFile
    from edgepose.pipeline import Totals, run
    from edgepose.sinks import JsonLinesSink, VideoSink
    from edgepose.sources import open_source

    box_file = BoxFile(boxes) if boxes else None
    opened = open_source(source)
    poses_of = _lifted(_poses_of(estimator, opened, box_file), lifter, estimator.spec.score_threshold)
    sinks: list[Sink] = []
    models = [estimator, *([lifter] if lifter else [])]
    caption = "  >  ".join(f"{m.spec.name}  {m.variant}  {m.engine.name} {m.engine.device}" for m in models)
    if video:
        sinks.append(VideoSink(video, opened.fps, caption, estimator.spec.score_threshold))
    if json_lines:
        sinks.append(JsonLinesSink(json_lines))
    totals = Totals()
    count = min(opened.count, max_frames or opened.count)

    def report(now: Totals) -> None:
        nonlocal totals
        totals = now
        update("frames", now.frames, count)

    try:
        with progress() as update:
            totals = run(islice(opened, max_frames), poses_of, sinks, report)
    finally:
        if totals.frames:
            _print_totals(totals, [path for path in (video, json_lines) if path])
        if opened.skipped:
            remark(f"{len(opened.skipped)} images could not be read: {', '.join(opened.skipped[:3])}")
        if box_file and not box_file.used:
            remark(f"no box of {boxes} belongs to a frame of {source} ({box_file.dropped} had a score below 0.5)")
    if totals.frames + len(opened.skipped) < count:
        remark(f"{source}: {totals.frames} frames came, {count} were announced: the file may be truncated")
    return totals


def _poses_of(estimator: Estimator, source: Source, boxes: BoxFile | None) -> Callable[[Frame], Poses]:
    if boxes is not None:
        return lambda frame: estimator.estimate(frame.image_bgr, boxes.of(frame))
    if not source.moving:
        return lambda frame: estimator.estimate(frame.image_bgr)
    follow = estimator.follow()
    return lambda frame: follow(frame.image_bgr)


def _lifted(poses_of: Callable[[Frame], Poses], lifter: Lifter | None, threshold: float) -> Callable[[Frame], Poses]:
    """With the poses in space, where there is a lifting model."""
    if lifter is None:
        return poses_of

    def in_space(frame: Frame) -> Poses:
        height, width = frame.image_bgr.shape[:2]
        return lifter.lift(poses_of(frame), (width, height), threshold)

    return in_space


def _print_totals(totals: Totals, paths: list[Path]) -> None:
    per_frame = [1e3 * s / totals.frames for s in (totals.read_s, totals.estimate_s, totals.write_s)]
    out.print(
        f"{totals.frames} frames, {totals.people} poses; per frame: read {per_frame[0]:.1f} ms, "
        f"poses {per_frame[1]:.1f} ms, write {per_frame[2]:.1f} ms ({1e3 / sum(per_frame):.1f} FPS in all)",
        soft_wrap=True,
    )
    for path in paths:
        if path.exists():
            out.print(f"wrote {path}", soft_wrap=True)
