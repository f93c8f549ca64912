"""A pruned model gets its accuracy back from its parent, and carries the record of how."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from edgepose.converters.checkpoint import Checkpoint
from edgepose.converters.training.loop import Epoch, Settings, Task, best_epoch, train
from edgepose.converters.training.quantized import QuantizationAware, plain_state

__all__ = ["recover", "recovery_record", "scores_of"]

Scores = Mapping[str, float]


def scores_of(checkpoint: Checkpoint, task: Task) -> dict[str, float]:
    """What the task says of a model as it is."""
    with torch.inference_mode():
        return task.score(checkpoint.model.eval())


def recover(
    pruned: Checkpoint,
    task: Task,
    out: Path,
    settings: Settings,
    *,
    quantized: bool = False,
    resume: bool = False,
    device: str = "cpu",
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    report: Callable[[Epoch], None] = lambda epoch: None,
) -> tuple[Checkpoint, list[Epoch]]:
    """Train a pruned model, and take the epoch that scores best.

    Args:
        pruned: The model; its weights change.
        task: A ``Distillation`` or ``LiftDistillation``.
        out: Where the best weights so far are kept, and beside them what ``resume`` needs.
        settings: How to train.
        quantized: Compute with INT8's roundings on the way (see ``quantized.py``); the weights stay float.
        resume: Go on where a training to ``out`` stopped.
        device: A torch device.
        progress, report: See ``train``.

    Returns:
        The recovered model on the CPU, and the epochs.

    Raises:
        TrainingError: See ``train``.
    """
    model = QuantizationAware(pruned.model, pruned.row.float_modules) if quantized else pruned.model
    history = train(
        model,
        task,
        out,
        settings,
        resume=resume,
        keep_best=True,
        device=device,
        progress=progress,
        report=report,
    )
    if isinstance(model, QuantizationAware):
        model.release()
    best = torch.load(out, map_location="cpu", weights_only=True)
    pruned.model.cpu().load_state_dict(plain_state(best))
    return replace(pruned, model=pruned.model.eval()), history


def recovery_record(
    scores: Mapping[str, Scores],
    data: Mapping[str, Any],
    settings: Settings,
    history: Sequence[Epoch],
    task: Task,
    *,
    quantized: bool = False,
) -> dict[str, Any]:
    """What a recovered checkpoint tells of how it was trained, in plain values, for ``save_pruned``.

    Args:
        scores: ``before``, ``pruned`` and ``recovered``: name -> value.
        data: The recovery data: source, count, hash.
        settings, history, task: Of the training; no history where there was none.
        quantized: Whether it computed with INT8's roundings.
    """
    trained = {
        "data": data,
        "settings": asdict(settings),
        "quantization_aware": quantized,
        "epochs": [asdict(epoch) for epoch in history],
        "best_epoch": best_epoch(task, history).number if history else None,
    }
    record: dict[str, Any] = _plain({"scores": scores, "recovery": trained if history else None})
    return record


def _plain(value: Any) -> Any:
    """Dicts, lists, texts and numbers, as a safe loader reads them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(value)  # NumPy's numbers are floats too, but no plain ones
    return value if value is None or isinstance(value, (str, bool, int)) else str(value)
