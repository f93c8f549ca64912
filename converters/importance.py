"""How much channels, heads and layers matter: what pruning takes the least important of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from edgepose.converters.channels import Group
from edgepose.models.blocks import MultiheadSelfAttention

__all__ = ["IMPORTANCE", "Importance", "answers", "importance", "output_change"]

Importance = Callable[[Group], Tensor]
"""Scores (width,) of a group's channels; more matters more."""

IMPORTANCE = ("l2", "taylor", "bn")

_BATCH = 8


def importance(how: str, model: nn.Module, samples: NDArray[Any] | None) -> Importance:
    """Scores of channels.

    Whole heads are scored by what they add to the tokens on the samples, attention maps and values together, where
    there are any: see :func:`_head_scores`.

    Args:
        how: ``l2``: squared weights of all layers of the group. ``bn``: the gain of the group's BatchNorms
            (Liu et al. 2017), and ``l2`` where it has none. ``taylor``: how much the heatmaps would change by leaving
            the channel out, to first order, |weight x gradient| of half their mean square, added up over the samples
            (Molchanov et al. 2019); no labels are needed.
        model: Behind its contract, in evaluation mode.
        samples: (N, ...) inputs of the contract; ``taylor`` needs some.

    Raises:
        ValueError: ``taylor`` without samples, or another name.
    """
    if how not in IMPORTANCE:
        raise ValueError(f"importance {how!r}: choose from {', '.join(IMPORTANCE)}")
    if how == "taylor" and samples is None:
        raise ValueError("importance 'taylor' needs samples")
    inner = model.get_submodule("model")
    saliency = _saliency(model, samples) if how == "taylor" and samples is not None else _squares(inner)
    heads = {} if samples is None else _head_scores(model, samples)

    def scores(group: Group) -> Tensor:
        if group.name in heads:
            return heads[group.name]
        if how == "bn" and (gains := _gains(inner, group)) is not None:
            return gains
        added = torch.zeros(group.width, dtype=torch.float64)
        for member in group.members:
            for name in ("weight", "in_proj_weight"):
                if (tensor := saliency.get(f"{member.module}.{name}")) is not None:
                    added += _by_channel(tensor, inner.get_submodule(member.module), member.side, group.width)
        return _by_unit(added, group.unit)

    return scores


def answers(model: nn.Module, samples: NDArray[Any]) -> Tensor:
    """What a deployed model answers, (N, ...) float32."""
    with torch.inference_mode():
        return torch.cat([model(batch) for batch in torch.split(torch.from_numpy(samples), _BATCH)])


def output_change(full: Tensor, changed: Tensor) -> float:
    """Root of the mean squared difference over the root of the mean square of ``full``."""
    return float((changed - full).square().mean().sqrt() / full.square().mean().sqrt())


def _squares(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().square() for name, parameter in model.named_parameters()}


def _saliency(model: nn.Module, samples: NDArray[Any]) -> dict[str, Tensor]:
    """|weight x gradient|, added up over the samples; whether the model is frozen does not matter."""
    own = dict(model.get_submodule("model").named_parameters())
    parameters = {f"model.{name}": parameter.detach().requires_grad_() for name, parameter in own.items()}
    total = {name: torch.zeros_like(parameter) for name, parameter in own.items()}
    for sample in torch.split(torch.from_numpy(samples), 1):
        loss = functional_call(model, parameters, (sample,)).square().mean() / 2
        gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
        for (name, parameter), gradient in zip(own.items(), gradients, strict=True):
            total[name] += (parameter.detach() * gradient).abs()
    return total


def _by_channel(tensor: Tensor, module: nn.Module, side: str, width: int) -> Tensor:
    """A weight's values added up by the group's channels."""
    out_first = not isinstance(module, nn.ConvTranspose2d)
    dim = 0 if tensor.ndim == 1 or (side == "out") == out_first else 1
    rows = tensor.movedim(dim, 0).flatten(1).sum(1, dtype=torch.float64) if tensor.ndim > 1 else tensor.double()
    return rows.reshape(-1, width).sum(0)


def _by_unit(scores: Tensor, unit: int) -> Tensor:
    """The same where channels go together by units: each has its unit's mean."""
    return scores.reshape(-1, unit).mean(1).repeat_interleave(unit)


def _gains(model: nn.Module, group: Group) -> Tensor | None:
    norms = [model.get_submodule(member.module) for member in group.members]
    gains = [norm.weight.detach().abs().double() for norm in norms if isinstance(norm, nn.BatchNorm2d)]
    return torch.stack(gains).sum(0) if gains else None


def _head_scores(model: nn.Module, samples: NDArray[Any]) -> Mapping[str, Tensor]:
    """By attention: for each feature, the mean square of what its head adds to the tokens, summed over the samples.

    A head adds A V W: its attention map, its values, and its columns of the projection. A head whose map is flat
    averages over the picture and adds the same everywhere, which the mean over tokens takes out.
    """
    scores: dict[str, Tensor] = {}
    hooks = [
        module.out_proj.register_forward_hook(_adding(scores, name, module))
        for name, module in model.get_submodule("model").named_modules()
        if isinstance(module, MultiheadSelfAttention)
    ]
    try:
        answers(model, samples)
    finally:
        for hook in hooks:
            hook.remove()
    return scores


def _adding(
    scores: dict[str, Tensor], name: str, attention: MultiheadSelfAttention
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    """A hook of the projection that adds up the scores of its heads."""
    each = (attention.heads, attention.head_dim)
    weight = attention.out_proj.weight.detach().reshape(-1, *each)

    def add(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
        mixed = inputs[0] - inputs[0].mean(1, keepdim=True)
        added = torch.einsum("nthe,dhe->nthd", mixed.reshape(*mixed.shape[:2], *each), weight)
        found = added.square().mean((1, 3)).sum(0).double().repeat_interleave(attention.head_dim)
        scores[name] = scores[name] + found if name in scores else found

    return add
