"""A plan for a latency: every part of a model is pruned alone and timed, and the changes that cost least are combined.

What a part saves is measured on the engine, because multiplications do not tell: INT8 kernels like widths of 16, and
attention is bound by memory. What it costs is how much the answers on the user's own samples change. Savings of parts
add up; where they do not quite, the first combination that is timed says what share of them is real, and the choice is
made again.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.converters.channels import channel_groups
from edgepose.converters.checkpoint import Checkpoint
from edgepose.converters.contract import deployed
from edgepose.converters.importance import answers, output_change
from edgepose.converters.pruning import ROUND_TO, Knowledge, Plan, knowledge, layer_costs, prune, uniform_plan
from edgepose.converters.pruning_latency import Measure
from edgepose.errors import PruningError

__all__ = ["Change", "Planned", "choose", "forecast", "plan_for_latency", "possible_changes", "reach", "try_changes"]

WIDTHS, HEADS, DEPTH = "widths", "heads", "depth"
_RATIOS = (0.75, 0.5, 0.25)
_BASE, _CHOSEN = "as it is", "the plan"
_ENCODER = "global_encoder"
_NOISE = 0.005  # of the whole model's latency: less is not a saving
_STEPS = 1000  # latencies are compared in thousandths
_NEAR = 1.03  # a plan that is measured within 3 % of the target is taken,
_FAR = 0.95  # and one that is faster than this has lost more than it had to
_ROUNDS = 3
_JUDGED = 16  # samples to see what a change does to the answers


@dataclass(frozen=True)
class Change:
    """One part of a model pruned.

    Attributes:
        part: Of the model: of each kind of change at most one is chosen for a part.
        label: For people.
        plan: What is pruned.
        saves: Share of the whole model's latency, measured.
        error: How much the answers change, relative RMS.
        kind: ``widths``; of Transformers also ``heads``, and ``depth``: fewer layers, pooled keys.
    """

    part: str
    label: str
    plan: Plan
    saves: float = 0.0
    error: float = 0.0
    kind: str = WIDTHS


@dataclass(frozen=True)
class Planned:
    """What was chosen for a latency.

    Attributes:
        plan: To prune by.
        changes: It consists of them.
        target: Share of the unpruned model's latency that was asked for.
        predicted, measured: Shares that the changes add up to, and that the pruned model takes.
        error: Predicted change of the answers, relative RMS, before any training.
        base_ms, measured_ms: Of the unpruned and of the pruned model, measured side by side.
        tried: Every change that was measured.
        attempts: Predicted and measured shares of every combination that was timed; the last is this one. The first
            prediction knows of each part alone.
    """

    plan: Plan
    changes: tuple[Change, ...]
    target: float
    predicted: float
    measured: float
    error: float
    base_ms: float
    measured_ms: float
    tried: tuple[Change, ...]
    attempts: tuple[tuple[float, float], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON values, the plan among them."""
        rows = [asdict(replace(change, plan=Plan())) for change in self.changes]
        for row in rows:
            del row["plan"]
        rest = {key: getattr(self, key) for key in ("target", "predicted", "measured", "error")}
        attempts = [list(attempt) for attempt in self.attempts]
        return {"plan": self.plan.to_dict(), "changes": rows, "attempts": attempts, **rest}


def plan_for_latency(
    checkpoint: Checkpoint,
    target: float,
    samples: NDArray[Any],
    measure: Measure,
    *,
    how: str = "l2",
    round_to: int = ROUND_TO,
    kept: Sequence[str] = (),
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Planned:
    """The plan with the least predicted error whose model takes ``target`` of the latency of the model as it is.

    Args:
        checkpoint: The model.
        target: Share of its latency, 0-1: 0.6 is the ``0.6x`` of the command line.
        samples: (N, ...) inputs of the model, of the user's own.
        measure: Times models: :func:`edgepose.converters.pruning_latency.engine_latency`.
        how, round_to, kept: As for :func:`edgepose.converters.pruning.global_plan`.
        progress: Told about each stage.

    Raises:
        PruningError: The target is not between 0 and 1, or out of reach: then the best that can be reached is named.
    """
    if not 0 < target < 1:
        raise PruningError(f"target latency {target:g}x: give a share of the unpruned model's, such as 0.6x")
    known = knowledge(checkpoint, how, samples)
    few = samples[:_JUDGED]
    found = possible_changes(checkpoint, few, how=how, round_to=round_to, kept=kept)
    tried = try_changes(checkpoint, found, few, measure, known, progress)
    return reach(checkpoint, tried, target, measure, known)


def reach(
    checkpoint: Checkpoint, tried: Sequence[Change], target: float, measure: Measure, known: Knowledge
) -> Planned:
    """Choose, prune and time, and choose again with what was learned, until the target is reached.

    Args:
        checkpoint, target, measure: As for :func:`plan_for_latency`.
        tried: From :func:`try_changes`; several targets can share it.
        known: From :func:`edgepose.converters.pruning.knowledge`.

    Raises:
        PruningError: The target is out of reach.
    """
    real, timed = 1.0, list[Planned]()
    for _ in range(_ROUNDS):
        try:
            timed.append(_attempt(checkpoint, tried, target, real, measure, known))
        except PruningError:  # of the first attempt: by what was measured of each part, the target is out of reach
            if not timed:
                raise
            break
        predicted, measured = timed[-1].predicted, timed[-1].measured
        if target * _FAR <= measured <= target * _NEAR:
            break
        real *= max(1 - measured, _NOISE) / (1 - predicted)
    reached = [planned for planned in timed if planned.measured <= target * _NEAR]
    if not reached:
        best = min(planned.measured for planned in timed)
        raise PruningError(f"target latency {target:g}x is out of reach: the best measured is {best:.2f}x")
    attempts = tuple((planned.predicted, planned.measured) for planned in timed)
    return replace(min(reached, key=lambda planned: planned.error), attempts=attempts)


def possible_changes(
    checkpoint: Checkpoint,
    samples: NDArray[Any],
    *,
    how: str = "l2",
    round_to: int = ROUND_TO,
    kept: Sequence[str] = (),
) -> list[Change]:
    """What can be done to each part alone: narrower layers; pooled keys and values, and fewer encoder layers."""
    found: list[Change] = []
    groups = channel_groups(checkpoint.model)
    blocks, heads = dict.fromkeys(group.block for group in groups), {group.name for group in groups if group.unit > 1}
    uniform_plan(checkpoint.model, 1.0, kept=kept)  # for its errors
    for block in blocks:
        for ratio in _RATIOS:
            try:
                plan = uniform_plan(checkpoint.model, {block: ratio}, round_to=round_to, kept=kept)
            except PruningError:  # nothing would be left, or the whole block is kept
                continue
            for kind, label in ((WIDTHS, block), (HEADS, f"{block} heads")):
                widths = {name: width for name, width in plan.widths.items() if (name in heads) == (kind == HEADS)}
                if widths and all(widths != dict(change.plan.widths) for change in found):
                    found.append(Change(block, f"{label} {ratio:g}", Plan(widths, importance=how), kind=kind))
    return found + _attention_changes(checkpoint, samples, how, kept)


def try_changes(
    checkpoint: Checkpoint,
    changes: Sequence[Change],
    samples: NDArray[Any],
    measure: Measure,
    known: Knowledge,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> list[Change]:
    """The changes with what each saves and costs alone."""
    full = answers(deployed(checkpoint.model, checkpoint.row.spec), samples)
    pruned, errors = {}, {}
    for number, change in enumerate(changes):
        progress("prune each part alone", number, len(changes))
        pruned[change.label] = prune(checkpoint, change.plan, known=known)
        errors[change.label] = output_change(full, _answers(pruned[change.label], samples))
    latency = measure({_BASE: checkpoint, **pruned})
    base = latency[_BASE]
    return [replace(change, saves=1 - latency[change.label] / base, error=errors[change.label]) for change in changes]


def choose(changes: Sequence[Change], target: float, layers: int, real: float = 1.0) -> tuple[Change, ...]:
    """At most one change of each kind for each part, such that their savings reach a target with the least error.

    Errors of parts are taken to be independent: their squares add up. All combinations are looked at, savings in
    thousandths (the multiple-choice knapsack by dynamic programming).

    Args:
        changes: With savings and errors.
        target: Share of the latency.
        layers: Encoder layers of the model: narrower layers save nothing in those that are removed.
        real: What share of the savings is left when they come together.

    Raises:
        PruningError: The target is out of reach; the best that can be reached is named.
    """
    parts: dict[str, list[Change]] = defaultdict(list)
    for change in [*changes, *_combined(changes, layers)]:
        if change.saves > _NOISE:
            parts[change.part].append(change)
    need = int(np.ceil(round((1 - target) * _STEPS, 6)))
    best: dict[int, tuple[float, tuple[Change, ...]]] = {0: (0.0, ())}
    for options in parts.values():
        grown = dict(best)
        for saved, (cost, chosen) in best.items():
            for option in options:
                reached = min(saved + int(option.saves * real * _STEPS), need)
                candidate = (cost + option.error**2, (*chosen, option))
                if reached not in grown or candidate[0] < grown[reached][0]:
                    grown[reached] = candidate
        best = grown
    if need not in best:
        raise PruningError(
            f"target latency {target:g}x is out of reach: the best is about {1 - max(best) / _STEPS:.2f}x"
        )
    return best[need][1]


def forecast(changes: Sequence[Change], real: float = 1.0) -> tuple[Plan, float, float]:
    """The plan of several changes, its share of the latency, and its error."""
    widths = {name: width for change in changes for name, width in change.plan.widths.items()}
    plan = Plan(
        widths,
        removed=next((change.plan.removed for change in changes if change.plan.removed), ()),
        kv_pool=max((change.plan.kv_pool for change in changes), default=1),
        importance=changes[0].plan.importance if changes else "l2",
    )
    saved, squares = sum(change.saves for change in changes), sum(change.error**2 for change in changes)
    return plan, 1 - real * saved, squares**0.5


def _attempt(
    checkpoint: Checkpoint,
    tried: Sequence[Change],
    target: float,
    real: float,
    measure: Measure,
    known: Knowledge,
) -> Planned:
    chosen = choose(tried, target, checkpoint.row.sizes["layers"], real)
    plan, predicted, error = forecast(chosen, real)
    latency = measure({_BASE: checkpoint, _CHOSEN: prune(checkpoint, plan, known=known)})
    return Planned(
        plan=plan,
        changes=chosen,
        target=target,
        predicted=predicted,
        measured=latency[_CHOSEN] / latency[_BASE],
        error=error,
        base_ms=latency[_BASE],
        measured_ms=latency[_CHOSEN],
        tried=tuple(tried),
    )


def _attention_changes(checkpoint: Checkpoint, samples: NDArray[Any], how: str, kept: Sequence[str]) -> list[Change]:
    """Pooling by 2 and 4, up to two layers less, and both; the layers whose removal changes least go first."""
    row = checkpoint.row
    pools = [1, *(f for f in (2, 4) if row.input_hw is not None and f > row.sizes.get("kv_pool", 1))]
    part = _ENCODER if row.input_hw is not None else "blocks"
    if any(name == part or name.startswith(part + ".") for name in kept):
        return []
    layers = row.sizes["layers"]
    order = np.argsort(layer_costs(checkpoint, samples), kind="stable") if layers > 1 else np.array([], int)
    removals = [tuple(sorted(int(i) for i in order[:count])) for count in range(min(3, layers))]
    plans = [Plan(removed=removed, kv_pool=pool, importance=how) for removed in removals for pool in pools]
    return [
        Change(part, _attention_label(plan), plan, kind=DEPTH) for plan in plans if plan.removed or plan.kv_pool > 1
    ]


def _attention_label(plan: Plan) -> str:
    words = [f"without layers {', '.join(map(str, plan.removed))}"] if plan.removed else []
    return " and ".join([*words, *([f"kv_pool {plan.kv_pool}"] if plan.kv_pool > 1 else [])])


def _combined(changes: Sequence[Change], layers: int) -> list[Change]:
    """Transformers that are narrower, have fewer heads, and are shorter or pooled: two of these, or all.

    What a layer that goes would have saved otherwise, is not saved.
    """
    kinds: dict[str, dict[str, list[Change | None]]] = defaultdict(dict)
    for change in changes:
        kinds[change.part].setdefault(change.kind, [None]).append(change)
    found = []
    for part, of_kind in kinds.items():
        for options in itertools.product(*(of_kind[kind] for kind in sorted(of_kind))):
            some = [option for option in options if option]
            if len(some) > 1:
                found.append(_together(part, some, layers))
    return found


def _together(part: str, changes: Sequence[Change], layers: int) -> Change:
    plan, _, error = forecast(changes)
    stay = 1 - len(plan.removed) / layers
    saves = sum(change.saves * (1 if change.kind == DEPTH else stay) for change in changes)
    return Change(part, ", ".join(change.label for change in changes), plan, saves, error)


def _answers(checkpoint: Checkpoint, samples: NDArray[Any]) -> Any:
    return answers(deployed(checkpoint.model, checkpoint.row.spec), samples)
