"""What is left of a layer's inputs stands in for those that go, as well as it linearly can.

Channels are correlated. A removed one is predicted from those that are kept, by least squares over the user's own
samples (x_gone = A x_kept, the same at every place), and the layers that took it take its prediction instead:
W_kept + W_gone A. It changes no shape, and removes most of the error of narrow layers before any training; channel
pruning with reconstruction is He et al., ICCV 2017 (arXiv 1707.06168).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgepose.converters.channels import Group
from edgepose.converters.importance import answers

__all__ = ["Moments", "compensate", "input_moments"]

Moments = Mapping[str, Tensor]
"""By layer: (C, C) float64, sums of the products of its input channels over samples and places."""

_RIDGE = 1e-3  # of the mean square: what keeps predictions from nearly equal channels small


def input_moments(model: nn.Module, samples: NDArray[Any], groups: Iterable[Group]) -> Moments:
    """Of all layers that take the channels of groups.

    Args:
        model: Behind its contract, in evaluation mode.
        samples: (N, ...) inputs of the contract.
        groups: Of the model inside.
    """
    found: dict[str, Tensor] = {}
    names = {member.module for group in groups for member in group.members if member.side == "in"}
    inner = model.get_submodule("model")
    handles = [inner.get_submodule(name).register_forward_pre_hook(_adding(found, name)) for name in names]
    try:
        answers(model, samples)
    finally:
        for handle in handles:
            handle.remove()
    return found


def compensate(model: nn.Module, group: Group, kept: Tensor, moments: Moments) -> None:
    """Let the layers that take a group's channels make do with some (numbers, rising), in place; cut them after it."""
    for member in group.members:
        if member.side != "in" or member.module not in moments:
            continue
        stays = torch.cat([kept + copy * group.width for copy in range(member.copies)])
        goes = _others(stays, group.width * member.copies)
        moment = moments[member.module]
        among = moment[stays][:, stays]
        ridge = _RIDGE * among.diagonal().mean().clamp(min=torch.finfo(among.dtype).tiny)
        prediction = torch.linalg.solve(
            among + ridge * torch.eye(len(stays), dtype=among.dtype), moment[stays][:, goes]
        )
        module = model.get_submodule(member.module)
        weight = module.get_parameter("weight").detach()
        channels_last = weight.movedim(0 if isinstance(module, nn.ConvTranspose2d) else 1, -1)
        channels_last[..., stays] += channels_last[..., goes] @ prediction.T.to(weight.dtype)


def _adding(found: dict[str, Tensor], name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """A hook that adds up the products of what a layer takes."""

    def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0] if isinstance(module, nn.Linear) else inputs[0].movedim(1, -1)
        rows = x.flatten(0, -2)
        product = (rows.T @ rows).double()
        found[name] = found[name] + product if name in found else product

    return add


def _others(stays: Tensor, count: int) -> Tensor:
    gone = torch.ones(count, dtype=torch.bool)
    gone[stays] = False
    return gone.nonzero().flatten()
