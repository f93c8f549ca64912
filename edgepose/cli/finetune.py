"""``edgepose finetune``."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepose.cli._console import print_table, progress, remark, write_figures
from edgepose.cli._options import PATH, normalisation_option
from edgepose.errors import DatasetError, EngineUnavailable

if TYPE_CHECKING:
    from edgepose.converters.checkpoint import Checkpoint
    from edgepose.converters.training.loop import Epoch, Settings, Task
    from edgepose.converters.training.pictures import PictureTask
    from edgepose.models.registry import ModelRow

__all__ = ["command", "labelled_pictures"]

_NEW, _GIVEN = 1e-3, 1e-4
_SPLIT = ("train.zip", "val.zip")


@click.command("finetune")
@click.argument("checkpoint", type=PATH)
@click.option("--model", required=True, help="Registered model that the checkpoint is of (edgepose models).")
@click.option(
    "--data",
    type=PATH,
    required=True,
    help="Labelled pictures (COCO, LSP, MPII; or a folder with train.zip and val.zip), or an .npz of 3D poses.",
)
@click.option("--held-out", type=PATH, help="Labelled pictures to score with.  [default: val.zip beside train.zip]")
@click.option("--epochs", type=click.IntRange(1, 10_000), default=30, show_default=True, help="Passes over the data.")
@click.option("--batch", type=click.IntRange(2, 65_536), default=64, show_default=True, help="Examples in a step.")
@click.option(
    "--lr",
    type=click.FloatRange(0, 1, min_open=True),
    help=f"Highest learning rate.  [default: {_GIVEN:g}, from new weights {_NEW:g}]",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of everything random.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where to train.")
@normalisation_option
@click.option("--threads", type=click.IntRange(1, 256), help="CPU threads.  [default: PyTorch's choice]")
@click.option("--workers", type=click.IntRange(1, 64), default=2, show_default=True, help="Threads that read pictures.")
@click.option("-o", "--output", type=PATH, required=True, help="Weights to write, after each epoch.")
@click.option("--resume", is_flag=True, help="Go on after the last whole epoch.")
@click.option("--json", "json_path", type=PATH, help="Write the figures here too.")
@click.option("--force", is_flag=True, help="Replace files that are there.")
def command(
    checkpoint: Path,
    model: str,
    data: Path,
    held_out: Path | None,
    epochs: int,
    batch: int,
    lr: float | None,
    seed: int,
    device: str,
    normalisation: str | None,
    threads: int | None,
    workers: int,
    output: Path,
    resume: bool,
    json_path: Path | None,
    force: bool,
) -> None:
    """Train CHECKPOINT further on labelled data, or with "none" new weights; score each epoch on data held out.

    \b
    edgepose finetune none --model ampose-s --data poses.npz -o lifter.pth
    """
    from edgepose.models.registry import get_model
    from edgepose.sinks import check_output

    new = str(checkpoint) == "none"
    inputs = [path for path in (data, held_out, None if new else checkpoint) if path]
    row = get_model(model)
    if normalisation:
        row = row.normalised(normalisation)
    check_output(output, force=force or resume, inputs=inputs)
    if json_path:
        check_output(json_path, force=force, inputs=inputs)
    _require_torch()
    from edgepose.converters.training.loop import Settings, choose_device

    choose_device(device, threads)
    settings = Settings(
        epochs=epochs, batch=batch, lr=lr or (_NEW if new else _GIVEN), seed=seed, bfloat16=row.task == "pose2d"
    )
    start = _weights(None if new else checkpoint, row, seed)
    history = _train(start, _task(row, data, held_out, seed, workers), output, settings, resume, device)
    _print(row, history, output)
    if json_path:
        write_figures(json_path, _figures(row, settings, data, history))


def _require_torch() -> None:
    if find_spec("torch") is None:
        raise EngineUnavailable("training needs torch, not installed here: pip install 'edgepose[convert]'")


def _weights(checkpoint: Path | None, row: ModelRow, seed: int) -> Checkpoint:
    from edgepose.converters.checkpoint import build_random, load_checkpoint

    return load_checkpoint(checkpoint, row) if checkpoint else build_random(row, seed)


def _task(row: ModelRow, data: Path, held_out: Path | None, seed: int, workers: int) -> Task:
    """What there is to learn from ``data``."""
    if row.task == "lift3d":
        from edgepose.converters.training.lifting import LiftingTask

        if held_out:
            raise click.UsageError("--held-out goes with pictures: of 3D poses, whole sequences are held out")
        return LiftingTask(data, row.spec, seed)
    return labelled_pictures(row, data, held_out, seed, workers)


def labelled_pictures(row: ModelRow, data: Path, held_out: Path | None, seed: int, workers: int) -> PictureTask:
    """Labelled pictures to learn from and others to score with; ``held_out`` may lie beside them as ``val.zip``.

    Raises:
        DatasetError: There are none, or nothing to score with.
    """
    from edgepose.calibration.datasets.registry import open_pictures
    from edgepose.converters.training.pictures import PictureTask

    if held_out is None:
        data, held_out = (data / name for name in _SPLIT)
        if not (data.is_file() and held_out.is_file()):
            raise DatasetError(f"{data.parent}: no {' and '.join(_SPLIT)} in it: give --held-out to score with")
    return PictureTask(open_pictures(data), open_pictures(held_out), row.spec, seed, workers)


def _train(start: Checkpoint, task: Task, out: Path, settings: Settings, resume: bool, device: str) -> list[Epoch]:
    from edgepose.converters.checkpoint import pruned_content
    from edgepose.converters.training.loop import train

    with progress() as update:
        return train(
            start.model,
            task,
            out,
            settings,
            resume=resume,
            device=device,
            content=partial(pruned_content, start.row, parent=start.source.get("parent")),
            progress=update,
            report=lambda e: remark(_line(e)),
        )


def _line(epoch: Epoch) -> str:
    scores = ", ".join(f"{name} {value:.1f}" for name, value in epoch.scores.items())
    return f"epoch {epoch.number}: loss {epoch.loss:.4g}, {scores}, {epoch.seconds:.0f} s"


def _figures(row: ModelRow, settings: Settings, data: Path, history: list[Epoch]) -> dict[str, object]:
    from edgepose.machine import machine

    made = {"model": row.name, "data": data.name, "settings": asdict(settings)}
    return {**made, "epochs": [asdict(epoch) for epoch in history], "machine": machine()}


def _print(row: ModelRow, history: list[Epoch], output: Path) -> None:
    """First, best and last epoch."""
    names = list(history[-1].scores)
    sign = -1 if row.task == "lift3d" else 1
    best = max(history, key=lambda epoch: sign * epoch.scores[names[0]])
    shown = {epoch.number: epoch for epoch in sorted((history[0], best, history[-1]), key=lambda e: e.number)}
    rows = [
        (number, f"{e.loss:.4g}", *(f"{e.scores[name]:.1f}" for name in names), f"{e.seconds:.0f}")
        for number, e in shown.items()
    ]
    unit = "millimetres" if row.task == "lift3d" else "points"
    caption = f"first, best and last of {len(history)} epochs; scores of the averaged weights on held-out data, {unit}"
    print_table(f"{row.name} -> {output}", ("epoch", "loss", *names, "s"), rows, caption)
