"""``edgepose prune``."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepose.cli._console import print_table, progress, remark, write_figures
from edgepose.cli._cutting import VARIANTS, Cut, check_plan, cut_model, resumed, share_of
from edgepose.cli._options import PATH, split_list
from edgepose.errors import DatasetError

if TYPE_CHECKING:
    from edgepose.converters.checkpoint import Checkpoint
    from edgepose.converters.training.loop import Epoch, Settings, Task

__all__ = ["command"]

_SAMPLES = 64


@dataclass(frozen=True)
class _Data:
    """What to recover on: the task for a pruned model, a few inputs, and what is known of it for the record."""

    task: Callable[[Checkpoint], Task]
    samples: Any
    record: Mapping[str, Any]


@click.command("prune")
@click.argument("checkpoint", type=PATH)
@click.option("--model", required=True, help="Registered model that the checkpoint is of (edgepose models).")
@click.option("--ratio", type=click.FloatRange(0, 1, max_open=True), help="Share of the channels that goes.")
@click.option("--target-latency", help="How fast INT8 has to be, as a part of what it takes now: 0.6x.")
@click.option(
    "--engine",
    type=click.Choice(["onnxruntime", "openvino"]),
    default="openvino",
    show_default=True,
    help="Engine whose INT8 latency counts.",
)
@click.option(
    "--kv-pool",
    type=click.Choice(["1", "2", "4"]),
    default="1",
    help="Attend to means of so many keys and values a side: TransPose's attention is quadratic.",
)
@click.option(
    "--drop-layers", type=click.IntRange(0, 64), default=0, help="Encoder layers that go: those that change least."
)
@click.option("--keep", default="", help="Layers that stay whole, by commas: layer1.0,reduce.")
@click.option(
    "--importance",
    type=click.Choice(["l2", "bn", "taylor"]),
    default="taylor",
    show_default=True,
    help="What tells which channels go; taylor looks at the frames.",
)
@click.option(
    "--frames",
    "--calib",
    type=PATH,
    help="Your own pictures, or a video, without labels; for lifting models 3D poses (.npz).",
)
@click.option("--count", type=click.IntRange(16), default=2000, show_default=True, help="People to learn from at most.")
@click.option(
    "--data", type=PATH, help="Labelled pictures (a folder with train.zip and val.zip, say) to learn from too."
)
@click.option("--held-out", type=PATH, help="Labelled pictures to score with.  [default: val.zip beside train.zip]")
@click.option(
    "--epochs", type=click.IntRange(0, 10_000), default=20, show_default=True, help="0: leave it as it is cut."
)
@click.option("--batch", type=click.IntRange(2, 65_536), default=32, show_default=True, help="Examples in a step.")
@click.option(
    "--lr", type=click.FloatRange(0, 1, min_open=True), default=1e-3, show_default=True, help="Highest learning rate."
)
@click.option("--qat", is_flag=True, help="Train with INT8's roundings.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of everything random.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where to train.")
@click.option(
    "--threads",
    type=click.IntRange(1, 256),
    help="CPU threads, of training and of what is timed.  [default: the engines' choice]",
)
@click.option("--workers", type=click.IntRange(1, 64), default=2, show_default=True, help="Threads that make views.")
@click.option("-o", "--output", type=PATH, required=True, help="Checkpoint to write.")
@click.option("--resume", is_flag=True, help="Go on after the last whole epoch.")
@click.option(
    "--keep-work",
    is_flag=True,
    help="Leave OUTPUT.work: the crops, the model as it was cut, the state of the training.",
)
@click.option("--json", "json_path", type=PATH, help="Write the figures here too.")
@click.option("--force", is_flag=True, help="Replace files that are there.")
def command(
    checkpoint: Path,
    model: str,
    ratio: float | None,
    target_latency: str | None,
    engine: str,
    kv_pool: str,
    drop_layers: int,
    keep: str,
    importance: str,
    frames: Path | None,
    count: int,
    data: Path | None,
    held_out: Path | None,
    epochs: int,
    batch: int,
    lr: float,
    qat: bool,
    seed: int,
    device: str,
    threads: int | None,
    workers: int,
    output: Path,
    resume: bool,
    keep_work: bool,
    json_path: Path | None,
    force: bool,
) -> None:
    """Make CHECKPOINT smaller and faster, and let it learn again from what it was, on your own frames.

    \b
    edgepose prune tp_r.pth --model transpose-r-a4 --ratio 0.4 --frames footage.mp4 -o pruned.pth
    """
    from edgepose.cli.convert import require_converters
    from edgepose.models.registry import get_model
    from edgepose.sinks import check_output

    row = get_model(model)
    inputs = [path for path in (checkpoint, frames, data, held_out) if path]
    for path in filter(None, (output, json_path)):
        check_output(path, force=force or resume, inputs=inputs)
    cut = Cut(
        ratio,
        share_of(target_latency),
        engine,
        int(kv_pool),
        drop_layers,
        tuple(split_list(keep)) if keep else (),
        importance,
        threads,
    )
    _check(cut, frames, data, held_out)
    require_converters([VARIANTS[engine]])
    from edgepose.converters.checkpoint import load_checkpoint
    from edgepose.converters.training.loop import Settings, choose_device

    choose_device(device, threads)
    settings = Settings(
        epochs=max(epochs, 1),
        batch=batch,
        lr=lr,
        average=_AVERAGE,
        seed=seed,
        bfloat16=row.task == "pose2d" and not qat,
    )
    parent = load_checkpoint(checkpoint, row)
    work = output.with_name(f"{output.name}.work")
    with progress() as update:
        if resume:
            resumed(work, row, parent)  # for its errors, before anything is read
        else:
            check_plan(parent, cut)
        found = _data(parent, frames, data, held_out, count, seed, workers, work / "frames.npz", update, resume=resume)
        if not resume:
            cut_model(parent, cut, found.samples, work, update)
        pruned = resumed(work, row, parent)
        task = found.task(pruned)
        recovered, history, scores = _recovered(
            parent, pruned, task, work, settings, epochs, qat=qat, resume=resume, device=device, update=update
        )
    from edgepose.converters.pruning import save_pruned
    from edgepose.converters.recovery import recovery_record

    record = recovery_record(scores, found.record, settings, history, task, quantized=qat)
    save_pruned(recovered, output, record)
    if not keep_work:
        shutil.rmtree(work, ignore_errors=True)
    _print(parent, recovered, scores, output)
    if json_path:
        write_figures(json_path, _figures(recovered, record))


_AVERAGE = 0.99
"""Recovery is short: weights averaged over a thousand steps would lag behind."""


def _check(cut: Cut, frames: Path | None, data: Path | None, held_out: Path | None) -> None:
    if cut.ratio is not None and cut.target is not None:
        raise click.UsageError("give either --ratio or --target-latency")
    if cut.target is not None and (cut.drop_layers or cut.kv_pool > 1):
        raise click.UsageError("--target-latency chooses --kv-pool and --drop-layers itself: leave them out")
    if not (cut.ratio or cut.target or cut.drop_layers or cut.kv_pool > 1):
        raise click.UsageError("nothing to prune: give --ratio, --target-latency, --kv-pool or --drop-layers")
    if frames is None and data is None:
        raise DatasetError(
            "no frames to recover on: give --frames with a folder of pictures or a video as your camera sees people, "
            "or labelled pictures with --data"
        )
    if held_out and data is None:
        raise click.UsageError("--held-out goes with --data")
    for path in filter(None, (frames, data, held_out)):
        if not path.exists():
            raise DatasetError(f"{path}: no such file or folder")


def _data(
    parent: Checkpoint,
    frames: Path | None,
    data: Path | None,
    held_out: Path | None,
    count: int,
    seed: int,
    workers: int,
    kept: Path,
    update: Any,
    *,
    resume: bool,
) -> _Data:
    """What there is to learn from, read before anything is cut; crops are ``kept``, and taken from there to resume."""
    source = frames or data
    assert source
    if parent.row.task == "lift3d":
        return _poses(parent, source, data is not None, seed, update)
    from edgepose.calibration.datasets.registry import open_pictures
    from edgepose.cli.finetune import labelled_pictures
    from edgepose.converters.training.distillation import Distillation
    from edgepose.converters.training.frames import collect_frames, fp32_estimator, load_frames, save_frames

    spec = parent.row.spec
    labelled = labelled_pictures(parent.row, data, held_out, seed, workers) if data else None
    pictures = open_pictures(source / "train.zip" if (source / "train.zip").is_file() else source)
    found = load_frames(kept, pictures, count, seed) if resume else None
    if found is None:
        estimator = fp32_estimator(parent)
        found = collect_frames(pictures, spec, estimator.best_region, count, seed, update)
        estimator.close()
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_frames(found, kept)
    for note in found.notes:
        remark(f"note: {note}")

    def task(pruned: Checkpoint) -> Distillation:
        return Distillation(parent.model, pruned.model, found, spec, seed, labelled=labelled, workers=workers)

    return _Data(task, found.crops(_SAMPLES), found.record)


def _poses(parent: Checkpoint, source: Path, labelled: bool, seed: int, update: Any) -> _Data:
    from edgepose.converters.samples import keypoint_samples
    from edgepose.converters.training.lift_distillation import LiftDistillation
    from edgepose.files import sha256_file

    task = LiftDistillation(parent.model, source, parent.row.spec, seed, labelled=labelled)
    samples = keypoint_samples(source, None, parent.row.spec, _SAMPLES, seed, update).calibrate
    record = {"source": source.name, "sha256": sha256_file(source), "trained_on": len(task.train)}
    return _Data(lambda pruned: task, samples, record)


def _recovered(
    parent: Checkpoint,
    pruned: Checkpoint,
    task: Task,
    work: Path,
    settings: Settings,
    epochs: int,
    *,
    qat: bool,
    resume: bool,
    device: str,
    update: Any,
) -> tuple[Checkpoint, list[Epoch], dict[str, dict[str, float]]]:
    from edgepose.converters.recovery import recover, scores_of

    update("score before and after pruning", 0, 0)
    scores = {"before": scores_of(parent, task), "pruned": scores_of(pruned, task)}
    remark(f"before: {_words(scores['before'])}")
    remark(f"pruned: {_words(scores['pruned'])}")
    if not epochs:
        return pruned, [], scores
    out = work / "recovered.pth"
    recovered, history = recover(
        pruned,
        task,
        out,
        settings,
        quantized=qat,
        resume=resume and out.is_file(),
        device=device,
        progress=update,
        report=lambda epoch: remark(_line(epoch)),
    )
    return recovered, history, {**scores, "recovered": scores_of(recovered, task)}


def _line(epoch: Epoch) -> str:
    return f"epoch {epoch.number}: loss {epoch.loss:.4g}, {_words(epoch.scores)}, {epoch.seconds:.0f} s"


def _words(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in scores.items())


def _figures(recovered: Checkpoint, record: Mapping[str, Any]) -> dict[str, Any]:
    from edgepose.machine import machine

    return {
        "model": recovered.row.name,
        "pruned": recovered.source["pruned"],
        **record,
        "latency": recovered.source["parent"]["latency"],
        "machine": machine(),
    }


def _print(
    parent: Checkpoint,
    recovered: Checkpoint,
    scores: Mapping[str, Mapping[str, float]],
    output: Path,
) -> None:
    """One row for each stage."""
    from edgepose.runtimes.words import row_name

    names = list(scores["before"])
    sizes = {
        stage: sum(p.numel() for p in (parent if stage == "before" else recovered).model.parameters()) / 1e6
        for stage in scores
    }
    rows = [
        (stage, f"{sizes[stage]:.2f}", *(f"{found[name]:.2f}" for name in names)) for stage, found in scores.items()
    ]
    told = recovered.source["parent"]["latency"]
    was, now = told["base_ms"], told["measured_ms"]
    predicted = f", {told['predicted']:.2f}x predicted" if "predicted" in told else ""
    unit = "millimetres" if recovered.row.task == "lift3d" else "points, shift in crop pixels"
    caption = (
        f"agreement is with the model before, on frames held out; scores in {unit}; "
        f"{row_name(told)}: {was:.2f} ms before, {now:.2f} ms now ({now / was:.2f}x{predicted})"
    )
    print_table(f"{recovered.row.name} -> {output}", ("<stage", "M parameters", *names), rows, caption)
