"""``edgepose run``."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepose.cli._console import out, print_table, progress, remark, write_figures
from edgepose.cli._hosts import Hosts, host_options
from edgepose.cli._options import PATH, engine_options
from edgepose.cli._outputs import Outputs
from edgepose.cli._plan import planned
from edgepose.cli._variants import remark_strays
from edgepose.opening import Opening

if TYPE_CHECKING:
    from edgepose.lifter import Lifter
    from edgepose.metrics import Metrics
    from edgepose.people import Detector
    from edgepose.pipeline import Estimator
    from edgepose.sources import SourceOptions

__all__ = ["command", "run_source"]

_DETECT_EVERY = 10
_LAYOUTS = "yolox, yolox-nms, rtmdet, yolov5, yolov8, end2end, torchvision, detr, rtdetr, rfdetr"


@click.command("run")
@click.argument("bundle", type=PATH)
@click.option(
    "--source",
    required=True,
    help="Video, image, folder, camera (0, /dev/video0, csi://0, picamera2://0), rtsp:// or http:// stream, "
    "gst:PIPELINE, or - for raw frames on stdin.",
)
@click.option("--size", help="Width x height that a camera is asked for, or that raw frames have: 1280x720.")
@click.option("--fps", type=click.FloatRange(0, 1000, min_open=True), help="Frames per second: asked of a camera.")
@click.option("--fourcc", help="Pixel format that a camera is asked for, for instance MJPG.")
@click.option("--loop", is_flag=True, help="Start files again at their end.")
@click.option("--pace", is_flag=True, help="Play files at their own speed, as a camera would: the newest frame only.")
@click.option("--no-reconnect", is_flag=True, help="End when a live source is lost, instead of opening it again.")
@click.option("--out", "video", type=PATH, help="Annotated video to write (.mp4, .avi, .mkv).")
@click.option("--json", "json_lines", type=PATH, help="Poses to write, one JSON object per frame.")
@click.option("--coco", type=PATH, help="Poses to write as COCO keypoint results.")
@click.option("--mqtt", help="Publish poses: mqtt://user@host/topic, mqtts://...; password in EDGEPOSE_MQTT_PASSWORD.")
@click.option("--serve", is_flag=False, flag_value="127.0.0.1:8080", help="Live page, by default at 127.0.0.1:8080.")
@click.option("--serve-token", help="Who knows it may see the page from elsewhere; also EDGEPOSE_SERVE_TOKEN.")
@click.option("--window", is_flag=True, help="Show a window; q ends.")
@click.option("--metrics", help="Figures: prometheus://:9100 while it runs, or a JSON file at the end.")
@click.option("--boxes", type=PATH, help="People's boxes (JSON); without them one person is searched and followed.")
@click.option("--detector", type=PATH, help="ONNX model that finds people: several are followed, with ids.")
@click.option("--detector-layout", help=f"What the detector answers: {_LAYOUTS}.  [default: found out]")
@click.option("--detector-device", default="auto", show_default=True, help="Where the detector runs.")
@click.option("--detect-every", type=click.IntRange(1), help="Frames between two looks.  [default: 10, or as planned]")
@click.option("--most", type=click.IntRange(1, 100), default=10, show_default=True, help="People to follow at most.")
@click.option(
    "--target-fps",
    type=click.FloatRange(0, 1000, min_open=True),
    help="Measure here what people cost, and follow no more than this frame rate allows.",
)
@click.option("--smooth", is_flag=True, help="Steady the joints of those who are followed (One-Euro filter).")
@click.option("--variant", help="Which variant of the bundle; fastest times them all, once.  [default: INT8 on a CPU]")
@click.option("--lift", type=PATH, help="Bundle of a lifting model: the poses in space too.")
@click.option("--lift-variant", help="Which variant of that bundle.  [default: INT8 on a CPU]")
@click.option("--lift-device", default="auto", show_default=True, help="Where the lifting model runs.")
@click.option("--max-frames", type=click.IntRange(1), help="Stop after so many frames.")
@click.option("--force", is_flag=True, help="Replace outputs that are there.")
@engine_options
@host_options
def command(
    bundle: Path,
    source: str,
    size: str | None,
    fps: float | None,
    fourcc: str | None,
    loop: bool,
    pace: bool,
    no_reconnect: bool,
    video: Path | None,
    json_lines: Path | None,
    coco: Path | None,
    mqtt: str | None,
    serve: str | None,
    serve_token: str | None,
    window: bool,
    metrics: str | None,
    boxes: Path | None,
    detector: Path | None,
    detector_layout: str | None,
    detector_device: str,
    detect_every: int | None,
    most: int,
    target_fps: float | None,
    smooth: bool,
    variant: str | None,
    lift: Path | None,
    lift_variant: str | None,
    lift_device: str,
    max_frames: int | None,
    force: bool,
    opening: Opening,
    hosts: Hosts,
) -> int:
    """Estimate poses on a source with BUNDLE (or one model file).

    \b
    edgepose run bundle --source clip.mp4 --out annotated.mp4 --json poses.jsonl
    edgepose run bundle --lift lifter --source clip.mp4 --out annotated.mp4      poses in space beside the picture
    edgepose run bundle --detector yolox.onnx --source rtsp://camera/1 --serve   several people, watched in a browser
    """
    from edgepose.cli._there import run_there
    from edgepose.runtimes.detectors import load_detector
    from edgepose.runtimes.load import load, load_lifter
    from edgepose.skeletons import skeleton_map
    from edgepose.sources import SourceOptions

    outputs = Outputs(video, json_lines, coco, mqtt, serve, serve_token, window, metrics)
    outputs.check([bundle, Path(source), *filter(None, (boxes, lift, detector))], force=force)
    _check_people(boxes, detector, detector_layout, smooth)
    if hosts:
        return run_there(hosts, outputs, source, {"bundle": variant, "lift": lift_variant}, force=force)
    options = SourceOptions(_size(size), fps, fourcc, loop, pace, not no_reconnect)
    estimator = load(bundle, variant=variant, **vars(opening))
    lifter = None
    if lift:
        lifter = load_lifter(lift, None, lift_device, lift_variant, self_test=opening.self_test, strict=opening.strict)
        skeleton_map(estimator.spec.skeleton, lifter.spec.skeleton)
    finder = (
        load_detector(detector, detector_layout, device=detector_device, threads=opening.threads) if detector else None
    )
    for model in filter(None, (estimator, lifter)):
        remark(f"{model.spec.name} {model.variant} on {model.engine.name} {model.engine.device}")
        remark_strays(model.variant, model)
    if finder:
        remark(f"{detector} as {finder.layout.name} on {finder.engine.name} {finder.engine.device}")
    if target_fps:
        chosen = planned(estimator, finder, lifter, target_fps, most if finder else 1, detect_every)
        most, detect_every = chosen.most, chosen.detect_every
    run_source(
        estimator,
        source,
        outputs,
        options=options,
        boxes=boxes,
        max_frames=max_frames,
        lifter=lifter,
        detector=finder,
        detect_every=detect_every or _DETECT_EVERY,
        most=most,
        smooth=smooth,
    )
    return 0


def run_source(
    estimator: Estimator,
    source: str,
    outputs: Outputs,
    *,
    options: SourceOptions | None = None,
    boxes: Path | None = None,
    max_frames: int | None = None,
    lifter: Lifter | None = None,
    detector: Detector | None = None,
    detect_every: int = _DETECT_EVERY,
    most: int = 10,
    smooth: bool = False,
) -> Metrics:
    """Open the source and the sinks, run, and print what came of it."""
    from edgepose.boxes import BoxFile
    from edgepose.metrics import Metrics
    from edgepose.pipeline import Pipeline
    from edgepose.smoothing import OneEuro
    from edgepose.sources import SourceOptions, open_source
    from edgepose.streaming import First, run

    box_file = BoxFile(boxes) if boxes else None
    threshold = estimator.spec.score_threshold
    with open_source(source, options or SourceOptions()) as opened:
        metrics = Metrics(lambda: {"dropped": opened.dropped, "reconnects": opened.reconnects})
        pipeline = Pipeline(
            estimator,
            detector=detector,
            detect_every=detect_every,
            most=most,
            boxes=box_file.of if box_file else None,
            moving=opened.moving,
            smooth=OneEuro(threshold=threshold) if smooth else None,
            lifter=lifter,
            metrics=metrics,
            detect_aside=opened.live,
        )
        models = [estimator, *([lifter] if lifter else [])]
        caption = "  >  ".join(f"{m.spec.name}  {m.variant}  {m.engine.name} {m.engine.device}" for m in models)
        count = min(opened.count, max_frames or opened.count)
        try:
            with outputs.open(opened.fps, caption, threshold, metrics) as sinks, progress() as update:
                frames = opened if max_frames is None else First(opened, max_frames)
                run(frames, pipeline, sinks, metrics, lambda now: update("frames", now.frames, count))
        finally:
            pipeline.close()
            if metrics.frames:
                _print_totals(metrics, outputs)
            if opened.skipped:
                remark(f"{len(opened.skipped)} images could not be read: {', '.join(opened.skipped[:3])}")
            if box_file and not box_file.used:
                weak = f"{box_file.dropped} had a score below 0.5"
                remark(f"no box of {boxes} belongs to a frame of {opened.name} ({weak})")
        if metrics.frames + len(opened.skipped) < count:
            remark(f"{opened.name}: {metrics.frames} frames came, {count} were announced: the file may be truncated")
    return metrics


def _check_people(boxes: Path | None, detector: Path | None, layout: str | None, smooth: bool) -> None:
    if boxes and detector:
        raise click.UsageError("--boxes and --detector both say where people are: give one of them")
    if layout and not detector:
        raise click.UsageError("--detector-layout goes with --detector")
    if boxes and smooth:
        raise click.UsageError("--smooth needs people who are followed, and --boxes says nothing of who is who")


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    with suppress(ValueError):
        width, height = map(int, text.lower().split("x"))
        return width, height
    raise click.BadParameter(f"{text!r}: give width x height, for instance 1280x720", param_hint="--size")


def _print_totals(metrics: Metrics, outputs: Outputs) -> None:
    figures: dict[str, Any] = metrics.snapshot()
    rows = [
        (name, *(f"{ms:.1f}" for ms in (p.p50, p.p95, p.p99)), p.count) for name, p in metrics.percentiles().items()
    ]
    lost = "".join(f", {count} {name}" for name, count in metrics.counters().items() if count)
    print_table(
        f"{metrics.frames} frames, {metrics.people} poses in {metrics.seconds:.1f} s: "
        f"{metrics.frames / metrics.seconds:.1f} FPS{lost}",
        ("<stage", "p50 ms", "p95 ms", "p99 ms", "times"),
        rows,
        "reading, poses and writing overlap; camera to result: from a frame's arrival to its poses",
    )
    if outputs.metrics_file:
        write_figures(outputs.metrics_file, figures)
    for path in outputs.files:
        if path.exists():
            out.print(f"wrote {path}", soft_wrap=True)
