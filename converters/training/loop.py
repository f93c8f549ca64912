"""The loop: AdamW, cosine schedule, averaged weights, a held-out score each epoch, resuming."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from edgepose.errors import EngineUnavailable, TrainingError
from edgepose.files import replace_file
from edgepose.machine import instruction_sets

__all__ = ["Batch", "Epoch", "Settings", "Task", "best_epoch", "choose_device", "resume_path", "train"]

Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        epochs, batch: Passes over the data, and examples in a step.
        lr: Highest learning rate; it rises over the first ``warmup`` of all steps and falls to zero as a cosine.
        weight_decay: AdamW's.
        average: How much of the averaged weights a step keeps (EMA); less in the first steps.
        clip: Largest norm of the gradient.
        seed: Of everything random.
        bfloat16: Compute the forward pass in it where the device has it (CUDA; CPUs with AVX-512 BF16), which
            halves the time; weights and loss stay in 32 bits.
    """

    epochs: int
    batch: int = 64
    lr: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 0.02
    average: float = 0.999
    clip: float = 1.0
    seed: int = 0
    bfloat16: bool = False


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave: mean training loss, held-out scores of the averaged weights, the main one first."""

    number: int
    loss: float
    scores: Mapping[str, float]
    seconds: float


class Task(Protocol):
    """What is learned from which data."""

    identity: str
    """Pins the data: training goes on only with the same."""
    higher_is_better: bool
    """Whether a higher main score is a better one."""

    def steps(self, batch: int) -> int:
        """Batches in an epoch."""
        ...

    def batches(self, epoch: int, batch: int) -> Iterator[Batch]:
        """The epoch's batches, whatever came before: the same seed and epoch give the same."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """A scalar."""
        ...

    def score(self, model: nn.Module) -> dict[str, float]:
        """Scores on held-out data, the main one first; the model is in evaluation mode."""
        ...


def train(
    model: nn.Module,
    task: Task,
    out: Path,
    settings: Settings,
    *,
    resume: bool = False,
    keep_best: bool = False,
    device: str = "cpu",
    content: Callable[[Mapping[str, Tensor]], dict[str, Any]] = dict,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    report: Callable[[Epoch], None] = lambda epoch: None,
) -> list[Epoch]:
    """Train, and write the averaged weights to ``out`` after each epoch: whole or not at all.

    Beside it lies what ``resume`` needs (:func:`resume_path`): it goes on after the last whole epoch, and ends where an
    uninterrupted training ends.

    Args:
        model: With its first weights; where to resume, they are replaced.
        task: What to learn.
        out: A state dict, which ``load_checkpoint`` reads.
        settings: How.
        resume: Go on from :func:`resume_path`.
        keep_best: ``out`` holds the epoch with the best main score so far, and not the last.
        device: A torch device.
        content: What to write for a state dict: of a pruned model its configuration as well.
        progress: Called with stage, steps done, steps in all; the stage holds the time left.
        report: Called after each epoch.

    Raises:
        TrainingError: The loss or gradient is not finite (``out`` keeps an earlier epoch's weights), or there is
            nothing to resume, or it was started with other settings or data.
    """
    torch.manual_seed(settings.seed)
    run = _Run(model.to(device), task, out, settings, torch.device(device))
    run.content, run.keep_best = content, keep_best
    if resume:
        run.restore()
    for number in range(len(run.history) + 1, settings.epochs + 1):
        run.history.append(run.epoch(number, progress))
        run.save()
        report(run.history[-1])
    return run.history


def best_epoch(task: Task, history: Sequence[Epoch]) -> Epoch:
    """The epoch with the best main score; of equal ones the first."""
    sign = 1 if task.higher_is_better else -1
    return max(history, key=lambda epoch: sign * next(iter(epoch.scores.values())))


def choose_device(device: str, threads: int | None) -> None:
    """Check that ``device`` is here, and set the number of CPU threads.

    Raises:
        EngineUnavailable: PyTorch finds no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise EngineUnavailable("--device cuda: PyTorch finds no CUDA device here: leave it out to train on the CPU")
    if threads:
        torch.set_num_threads(threads)


def resume_path(out: Path) -> Path:
    """Where a training to ``out`` keeps optimizer, both sets of weights, random state and history."""
    return out.with_name(f"{out.stem}.resume{out.suffix}")


class _Run:
    """One training, between epochs or within one."""

    def __init__(self, model: nn.Module, task: Task, out: Path, settings: Settings, device: torch.device) -> None:
        self.model, self.task, self.out, self.settings, self.device = model, task, out, settings, device
        self.average = copy.deepcopy(model).eval()
        weights = [p for p in model.parameters() if p.requires_grad]
        groups = [  # norms, biases and other vectors are not pulled to zero
            {"params": [p for p in weights if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.lr)
        self.history: list[Epoch] = []
        self.content: Callable[[Mapping[str, Tensor]], dict[str, Any]] = dict
        self.keep_best = False
        self.steps = task.steps(settings.batch)
        self._bfloat16 = settings.bfloat16 and _has_bfloat16(device)

    def epoch(self, number: int, progress: Callable[[str, int, int], None]) -> Epoch:
        start, total, summed = time.perf_counter(), self.steps * self.settings.epochs, 0.0
        self.model.train()
        for i, batch in enumerate(self.task.batches(number, self.settings.batch)):
            step = (number - 1) * self.steps + i
            summed += self._step(tuple(part.to(self.device) for part in batch), step, number)
            left = (time.perf_counter() - start) / (i + 1) * (total - step - 1)
            stage = f"train: epoch {number}/{self.settings.epochs}, loss {summed / (i + 1):.4g}, {_duration(left)} left"
            progress(stage, step + 1, total)
        with torch.inference_mode():
            scores = self.task.score(self.average)
        return Epoch(number, summed / self.steps, scores, time.perf_counter() - start)

    def _step(self, batch: Batch, step: int, number: int) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * _schedule(step / (self.steps * self.settings.epochs), self.settings.warmup)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bfloat16):
            loss = self.task.loss(self.model, batch)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        value = float(loss.detach())
        if not math.isfinite(value + float(norm)):
            epoch = best_epoch(self.task, self.history).number if self.keep_best and self.history else number - 1
            kept = f"{self.out} has the weights of epoch {epoch}" if self.history else "nothing was written"
            raise TrainingError(
                f"the loss is {value:g} and its gradient {float(norm):g} in step {step + 1} (epoch {number}): "
                f"stopped, {kept}; take a lower learning rate"
            )
        self.optimizer.step()
        self._follow(min(self.settings.average, (1 + step) / (10 + step)))
        return value

    @torch.no_grad()
    def _follow(self, keep: float) -> None:
        """Move the averaged weights, and the running statistics, towards the trained ones."""
        for slow, fast in zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True):
            if slow.is_floating_point():
                slow.lerp_(fast, 1 - keep)
            else:
                slow.copy_(fast)

    def save(self) -> None:
        state = {
            "made_with": self._made_with(),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "history": [asdict(epoch) for epoch in self.history],
        }
        weights = self.content({key: tensor.cpu() for key, tensor in self.average.state_dict().items()})
        files = {resume_path(self.out): state}
        if not self.keep_best or best_epoch(self.task, self.history) is self.history[-1]:
            files = {self.out: weights, **files}
        for path, content in files.items():
            with replace_file(path) as partial:
                torch.save(content, partial)

    def restore(self) -> None:
        path = resume_path(self.out)
        state = _load(path)
        made_with, now = state["made_with"], self._made_with()
        changed = [f"{key} was {made_with.get(key)} and is {now[key]}" for key in now if made_with.get(key) != now[key]]
        if changed:
            raise TrainingError(f"{path}: cannot go on: {'; '.join(changed)}")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        self.history = [Epoch(**row) for row in state["history"]]

    def _made_with(self) -> dict[str, Any]:
        shapes = "/".join(f"{key}{tuple(tensor.shape)}" for key, tensor in self.model.state_dict().items())
        return {**asdict(self.settings), "data": self.task.identity, "model": f"{type(self.model).__name__} {shapes}"}


def _load(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if state.keys() != {"made_with", "model", "average", "optimizer", "random", "history"}:
            raise ValueError("other content")
    except FileNotFoundError:
        raise TrainingError(f"{path}: not there, so there is nothing to resume: start without --resume") from None
    except Exception:  # a damaged file makes the loader raise anything
        raise TrainingError(f"{path}: damaged, or not written by a training: start again with --force") from None
    return state


def _schedule(done: float, warmup: float) -> float:
    """Share of the highest learning rate when ``done`` (0-1) of all steps are behind."""
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return (1 + math.cos(math.pi * (done - warmup) / (1 - warmup))) / 2


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and "avx512_bf16" in instruction_sets()


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min" if minutes else "under 1 min"
