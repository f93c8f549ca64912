"""What ``edgepose prune`` takes out of a model, and where it leaves the result until that has learned again."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepose.cli._console import remark

if TYPE_CHECKING:
    from edgepose.converters.checkpoint import Checkpoint
    from edgepose.converters.pruning import Plan
    from edgepose.converters.pruning_latency import Measure
    from edgepose.models.registry import ModelRow

__all__ = ["VARIANTS", "Cut", "check_plan", "cut_model", "resumed", "share_of"]

VARIANTS = {"onnxruntime": "onnx-int8", "openvino": "openvino-int8"}
"""Engine -> the variant whose latency counts."""
_PRUNED = "pruned.pth"
_BUSY = 0.1  # of the cores


@dataclass(frozen=True)
class Cut:
    """What goes, as asked for; latency is measured with so many ``threads``."""

    ratio: float | None
    target: float | None
    engine: str
    kv_pool: int
    drop_layers: int
    keep: tuple[str, ...]
    importance: str
    threads: int | None = None


def check_plan(parent: Checkpoint, cut: Cut) -> None:
    """Refuse what cannot be cut before the frames are read, which takes minutes."""
    from edgepose.converters.pruning import Plan, global_plan, prune, uniform_plan

    uniform_plan(parent.model, 1.0, kept=cut.keep)
    if cut.ratio:
        global_plan(parent, 1 - cut.ratio, kept=cut.keep)
    prune(parent, Plan(removed=tuple(range(cut.drop_layers)), kv_pool=cut.kv_pool))


def cut_model(parent: Checkpoint, cut: Cut, samples: Any, work: Path, update: Any) -> None:
    """Write the smaller model into ``work``, from where ``--resume`` takes it as well."""
    from edgepose.converters.pruning import prune, save_pruned
    from edgepose.converters.pruning_latency import engine_latency

    measure = engine_latency(VARIANTS[cut.engine], samples, threads=cut.threads, progress=update)
    with _told_who_disturbs():
        plan, latency = _plan(parent, cut, samples, measure, update)
        pruned = prune(parent, plan, samples)
        if not latency:
            update("measure latency", 0, 0)
            milliseconds = measure({"before": parent, "pruned": pruned})
            latency = {"base_ms": milliseconds["before"], "measured_ms": milliseconds["pruned"]}
    work.mkdir(parents=True, exist_ok=True)
    save_pruned(
        pruned,
        work / _PRUNED,
        {
            "latency": {"variant": VARIANTS[cut.engine], "threads": cut.threads}
            | {k: float(v) for k, v in latency.items()}
        },
    )
    _tell(plan, latency, VARIANTS[cut.engine])


@contextmanager
def _told_who_disturbs() -> Iterator[None]:
    """Say so where other processes kept the machine busy: shares that are timed then may be far off."""
    from edgepose.runtimes.cpu_load import load_between, moment

    before = moment()
    try:
        yield
    finally:
        load, cores = load_between(before, moment()), os.cpu_count() or 1
        if load and load.others > _BUSY * cores:
            remark(
                f"note: other processes kept {load.others:.1f} of {cores} cores busy while models were timed: "
                "latencies may be off; prune on an idle machine"
            )


def _tell(plan: Plan, latency: dict[str, float], variant: str) -> None:
    """What goes and what that saves, before the model learns again, which takes long."""
    for name, width in plan.widths.items():
        remark(f"plan: {name} keeps {width} channels")
    if plan.removed:
        remark(f"plan: encoder layers {', '.join(map(str, plan.removed))} go")
    if plan.kv_pool > 1:
        remark(f"plan: keys and values are pooled over {plan.kv_pool} x {plan.kv_pool} tokens")
    expected = f"; {latency['predicted']:.2f}x predicted" if "predicted" in latency else ""
    share = latency["measured_ms"] / latency["base_ms"]
    remark(f"{variant}: {latency['base_ms']:.2f} ms before, {latency['measured_ms']:.2f} now: {share:.2f}x{expected}")


def _plan(parent: Checkpoint, cut: Cut, samples: Any, measure: Measure, update: Any) -> tuple[Plan, dict[str, float]]:
    """What goes, and where a latency was asked for, what was predicted and measured."""
    from dataclasses import replace

    from edgepose.converters.pruning import Plan, global_plan, layer_costs
    from edgepose.converters.pruning_plan import plan_for_latency

    update("plan", 0, 0)
    if cut.target:
        planned = plan_for_latency(
            parent, cut.target, samples, measure, how=cut.importance, kept=cut.keep, progress=update
        )
        found = {key: getattr(planned, key) for key in ("target", "predicted", "measured", "base_ms", "measured_ms")}
        return planned.plan, found
    plan = Plan(importance=cut.importance)
    if cut.ratio:
        plan = global_plan(parent, 1 - cut.ratio, samples, how=cut.importance, kept=cut.keep)
    if cut.drop_layers:
        costs = layer_costs(parent, samples)
        order = sorted(range(len(costs)), key=lambda i: costs[i])
        plan = replace(plan, removed=tuple(sorted(order[: cut.drop_layers])))
    return replace(plan, kv_pool=cut.kv_pool), {}


def share_of(text: str | None) -> float | None:
    """``0.6x`` -> 0.6."""
    if text is None:
        return None
    try:
        share = float(text.lower().removesuffix("x"))
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise click.BadParameter(
            f"{text!r}: give a part of what the model takes now, for instance 0.6x", param_hint="--target-latency"
        )
    return share


def resumed(work: Path, row: ModelRow, parent: Checkpoint) -> Checkpoint:
    """The smaller model that :func:`cut_model` has written, with its latency in its record.

    Raises:
        TrainingError: It is not there, or was pruned from another checkpoint.
    """
    from edgepose.converters.checkpoint import load_checkpoint
    from edgepose.errors import TrainingError

    if not (work / _PRUNED).is_file():
        raise TrainingError(f"{work}: not there, so there is nothing to resume: start without --resume")
    loaded = load_checkpoint(work / _PRUNED, row)
    if loaded.source["parent"].get("sha256") != parent.source["sha256"]:
        raise TrainingError(f"{work}: was pruned from another checkpoint: start again with --force")
    return loaded
