"""A checkpoint becomes a smaller one: channels, heads and encoder layers go, keys and values are pooled.

The result is a dense model whose file says how small it is (``checkpoint.pruned_content``): it converts, trains and
prunes again like any other. Its accuracy is gone until it has been trained further.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgepose.converters.channels import Group, channel_groups, keep
from edgepose.converters.checkpoint import Checkpoint, pruned_content
from edgepose.converters.compensation import Moments, compensate, input_moments
from edgepose.converters.contract import deployed
from edgepose.converters.importance import Importance, answers, importance, output_change
from edgepose.errors import PruningError
from edgepose.files import replace_file
from edgepose.models.narrow import widths_of

__all__ = [
    "ROUND_TO",
    "Knowledge",
    "Plan",
    "global_plan",
    "knowledge",
    "layer_costs",
    "prune",
    "rounded_width",
    "save_pruned",
    "uniform_plan",
]

ROUND_TO = 16
"""INT8 kernels work on so many channels at a time: others cost the same as the next multiple."""


@dataclass(frozen=True)
class Plan:
    """What to take out of a model.

    Attributes:
        widths: Channels to keep, by group (``layer1.0.conv1``; of attention ``global_encoder.layers.0.self_attn``,
            whole heads). Groups that are not named stay whole.
        removed: Numbers of the encoder layers that go, counted in the model as it is.
        kv_pool: Keys and values are means over squares of so many tokens a side; 1: as they are.
        importance: Which channels go: see :func:`edgepose.converters.importance.importance`.
    """

    widths: Mapping[str, int] = field(default_factory=dict)
    removed: tuple[int, ...] = ()
    kv_pool: int = 1
    importance: str = "l2"

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "widths": dict(self.widths), "removed": list(self.removed)}


@dataclass(frozen=True)
class Knowledge:
    """What is known of a model's channels.

    Attributes:
        scores: Which matter.
        moments: How they go together on samples; empty without samples.
    """

    scores: Importance
    moments: Moments


def knowledge(checkpoint: Checkpoint, how: str, samples: NDArray[Any] | None) -> Knowledge:
    """Of a model's channels, for plans to share.

    Args:
        checkpoint: The model.
        how: See :func:`edgepose.converters.importance.importance`.
        samples: As for :func:`prune`.

    Raises:
        PruningError: There is no such importance, or it needs samples.
    """
    scores = _scores(checkpoint, how, samples)
    if samples is None:
        return Knowledge(scores, {})
    model = deployed(checkpoint.model, checkpoint.row.spec)
    return Knowledge(scores, input_moments(model, samples, channel_groups(checkpoint.model)))


def prune(
    checkpoint: Checkpoint, plan: Plan, samples: NDArray[Any] | None = None, *, known: Knowledge | None = None
) -> Checkpoint:
    """A smaller copy of a model; the checkpoint stays as it is.

    Args:
        checkpoint: Perhaps of a model that is pruned already.
        plan: What to take out.
        samples: (N, ...) inputs of the model, a few dozen of the user's own: what stays is fitted to stand in for what
            goes (``compensation.py``), heads are chosen by their attention maps on them, and importance ``taylor``
            needs them. Without, channels are left out and no more.
        known: From :func:`knowledge`, where several plans share it.

    Returns:
        A checkpoint whose row is smaller; its source says what it was pruned from, and how.

    Raises:
        PruningError: The plan does not fit the model, or leaves nothing of a part of it.
    """
    groups = {group.name: group for group in channel_groups(checkpoint.model)}
    _check(checkpoint, plan, groups)
    model = copy.deepcopy(checkpoint.model)
    if plan.widths:
        known = known or knowledge(checkpoint, plan.importance, samples)
    for name, width in plan.widths.items():
        assert known is not None
        kept = _best(known.scores(groups[name]), width)
        compensate(model, groups[name], kept, known.moments)
        keep(model, groups[name], kept)
    row = checkpoint.row.shrunk(_sizes(checkpoint, plan))
    weights = _without_layers(model.state_dict(), plan.removed, _modules_of_a_layer(model))
    widths = _without_layers(widths_of(model, _full(checkpoint)), plan.removed, _modules_of_a_layer(model))
    row = replace(row, widths=widths)
    smaller = row.build()
    smaller.load_state_dict(weights)
    parent = {key: value for key, value in checkpoint.source.items() if key != "pruned"}
    source = {"file": None, "sha256": None, "random": checkpoint.source.get("random", False), "pruned": row.pruned}
    return Checkpoint(smaller, row, {**source, "parent": {**parent, "plan": plan.to_dict()}}, checkpoint.notes)


def save_pruned(checkpoint: Checkpoint, path: Path, record: Mapping[str, Any] | None = None) -> None:
    """Write a model so that ``load_checkpoint`` reads it, whole or not at all.

    Args:
        checkpoint: From :func:`prune`, perhaps trained further since.
        path: The file.
        record: Added to what the file says of its parent, as JSON values: how it was recovered, scores.
    """
    parent = {**checkpoint.source.get("parent", {}), **(record or {})}
    weights = {key: tensor.detach().cpu() for key, tensor in checkpoint.model.state_dict().items()}
    with replace_file(path) as partial, partial.open("wb") as file:  # a name would go into the file
        torch.save(pruned_content(checkpoint.row, weights, parent), file)


def uniform_plan(
    model: nn.Module, ratio: float | Mapping[str, float], *, round_to: int = ROUND_TO, kept: Sequence[str] = ()
) -> Plan:
    """Every group loses the same share of its channels.

    Args:
        model: To be pruned.
        ratio: Share of the channels to keep, 0-1, or by block (``layer1``): others stay whole.
        round_to: Widths are multiples of it, 16 or 32; a group that is no wider stays as it is. Heads stay whole.
        kept: Layers that stay whole, by the start of their names: ``layer1.0``.

    Raises:
        PruningError: A ratio is not above 0 and up to 1, or leaves nothing of a layer; or there is no such block or
            layer.
    """
    groups = _free(model, kept)
    ratios = ratio if isinstance(ratio, Mapping) else {group.block: ratio for group in groups}
    blocks = {group.block for group in groups}
    if unknown := sorted(ratios.keys() - blocks):
        raise PruningError(f"no block {unknown[0]!r} to prune: there are {', '.join(sorted(blocks))}")
    widths = {group.name: rounded_width(group, ratios.get(group.block, 1.0), round_to) for group in groups}
    return Plan({group.name: widths[group.name] for group in groups if widths[group.name] < group.width})


def global_plan(
    checkpoint: Checkpoint,
    ratio: float,
    samples: NDArray[Any] | None = None,
    *,
    how: str = "l2",
    round_to: int = ROUND_TO,
    kept: Sequence[str] = (),
) -> Plan:
    """The least important channels of the whole model go, whatever group they are in.

    Scores are divided by their group's mean, so that groups of large weights are not better for that alone. Of every
    group something stays.

    Args:
        checkpoint: To be pruned.
        ratio: Share of all channels to keep, 0-1.
        samples, how, round_to, kept: As for :func:`prune` and :func:`uniform_plan`.

    Raises:
        PruningError: As there, or so few channels cannot be kept: the least that can are named.
    """
    _check_ratio(ratio, "the model")
    groups = {g.name: g for g in _free(checkpoint.model, kept) if g.width > _step(g, round_to)}
    scores = _scores(checkpoint, how, samples)
    portions = [part for group in groups.values() for part in _portions(group, scores(group), round_to)]
    widths = {name: group.width for name, group in groups.items()}
    total = sum(widths.values())
    for _, name, left in sorted(portions):
        if sum(widths.values()) <= ratio * total:
            break
        widths[name] = min(left, widths[name])
    if (least := sum(widths.values()) / max(total, 1)) > ratio:
        raise PruningError(f"cannot keep {ratio:g} of the channels: with {round_to} in each layer it is {least:.2f}")
    return Plan({name: width for name, width in widths.items() if width < groups[name].width}, importance=how)


def rounded_width(group: Group, ratio: float, round_to: int = ROUND_TO) -> int:
    """So many of a group's channels are kept by a ratio.

    Raises:
        PruningError: None are, or the ratio is not above 0 and up to 1.
    """
    _check_ratio(ratio, group.name)
    step = _step(group, round_to)
    if group.width <= step:
        return group.width
    width = min(math.floor(ratio * group.width / step + 0.5) * step, group.width)
    if width == 0:
        raise PruningError(
            f"{group.name}: a ratio of {ratio:g} leaves none of its {group.width} channels, which go by {step}: "
            f"the smallest is {step / group.width:.3g}"
        )
    return width


def layer_costs(checkpoint: Checkpoint, samples: NDArray[Any]) -> list[float]:
    """By encoder layer: how much the answers on the samples change when it alone is removed (relative RMS).

    Raises:
        PruningError: There is a single layer.
    """
    full = answers(deployed(checkpoint.model, checkpoint.row.spec), samples)
    costs = []
    for number in range(checkpoint.row.sizes["layers"]):
        without = prune(checkpoint, Plan(removed=(number,)))
        costs.append(output_change(full, answers(deployed(without.model, without.row.spec), samples)))
    return costs


def _check(checkpoint: Checkpoint, plan: Plan, groups: Mapping[str, Group]) -> None:
    for name, width in plan.widths.items():
        group = groups.get(name)
        if group is None:
            raise PruningError(f"{checkpoint.row.name}: no channels are made by {name!r} that can be pruned")
        if not 1 <= width <= group.width or width % group.unit:
            by = f", {group.unit} at a time" if group.unit > 1 else ""
            raise PruningError(f"{name}: cannot keep {width} of its {group.width} channels: 1 to {group.width}{by}")
    layers = checkpoint.row.sizes["layers"]
    if not set(plan.removed) <= set(range(layers)) or len(set(plan.removed)) != len(plan.removed):
        raise PruningError(f"{checkpoint.row.name}: its layers are numbered 0 to {layers - 1}, not {plan.removed}")
    if len(plan.removed) >= layers:
        raise PruningError(f"{checkpoint.row.name}: all its {layers} layers would go: leave one")
    _check_pool(checkpoint, plan.kv_pool)


def _check_pool(checkpoint: Checkpoint, factor: int) -> None:
    was = checkpoint.row.sizes.get("kv_pool", 1)
    if factor == 1:
        return
    if checkpoint.row.input_hw is None:
        raise PruningError(f"{checkpoint.row.name}: has no grid of tokens, so its keys and values are not pooled")
    if factor not in (2, 4) or factor < was:
        raise PruningError(f"{checkpoint.row.name}: keys and values are pooled by 2 or 4, and no less than {was}")


def _check_ratio(ratio: float, what: str) -> None:
    if not 0 < ratio <= 1:
        raise PruningError(f"{what}: a ratio of {ratio:g} leaves nothing of it or adds to it: give 0 to 1, above 0")


def _free(model: nn.Module, kept: Sequence[str]) -> list[Group]:
    """Groups without the layers that are to stay whole."""
    names = [name for name, _ in model.named_modules()]
    for start in kept:
        if not any(_starts(name, start) for name in names):
            top = ", ".join(name for name, _ in model.named_children())
            raise PruningError(f"no layer {start!r} to keep: names begin with one of {top}")
    return [
        group
        for group in channel_groups(model)
        if not any(_starts(member.module, start) for member in group.members for start in kept)
    ]


def _starts(name: str, start: str) -> bool:
    return name == start or name.startswith(start + ".")


def _step(group: Group, round_to: int) -> int:
    """Heads go whole; that is rounding enough."""
    return group.unit if group.unit > 1 else round_to


def _portions(group: Group, scores: Tensor, round_to: int) -> list[tuple[float, str, int]]:
    """What can go of a group, least important first: its mean score, the group, how wide that is then."""
    step, ordered = _step(group, round_to), (scores / scores.mean()).sort(descending=True).values
    starts = range(step, group.width, step)
    return [(float(ordered[start : start + step].mean()), group.name, start) for start in reversed(starts)]


def _scores(checkpoint: Checkpoint, how: str, samples: NDArray[Any] | None) -> Importance:
    try:
        return importance(how, deployed(checkpoint.model, checkpoint.row.spec), samples)
    except ValueError as error:
        raise PruningError(f"{checkpoint.row.name}: {error}") from None


def _best(scores: Tensor, width: int) -> Tensor:
    """Numbers of the channels with the highest scores, rising; of equals the first."""
    return scores.sort(descending=True, stable=True).indices[:width].sort().values


def _sizes(checkpoint: Checkpoint, plan: Plan) -> dict[str, Any]:
    pooled = {"kv_pool": plan.kv_pool} if plan.kv_pool > 1 else {}
    return {**pooled, "layers": checkpoint.row.sizes["layers"] - len(plan.removed)}


def _full(checkpoint: Checkpoint) -> nn.Module:
    """The model as its row has it, with nothing narrow."""
    with torch.device("meta"):
        return replace(checkpoint.row, widths={}).build()


_LISTS = ("global_encoder.layers", "blocks")


def _modules_of_a_layer(model: nn.Module) -> int:
    """AMPose's ``blocks`` has several modules for each layer."""
    blocks = getattr(getattr(model, "config", None), "blocks", ())
    return max(len(blocks), 1)


def _without_layers(named: Mapping[str, Any], removed: Sequence[int], each: int) -> dict[str, Any]:
    """Entries by module or parameter name without those of removed layers; later layers move up."""
    gone = {layer * each + i for layer in removed for i in range(each)}
    result = {}
    for name, value in named.items():
        start = next((s for s in _LISTS if name.startswith(s + ".")), None)
        if start is None:
            result[name] = value
            continue
        number, _, rest = name[len(start) + 1 :].partition(".")
        if int(number) not in gone:
            result[f"{start}.{int(number) - sum(g < int(number) for g in gone)}.{rest}"] = value
    return result
