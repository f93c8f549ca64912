"""Layers with fewer channels: what a pruned model is made of. Names and kinds of layers stay as they are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgepose.models.blocks import MultiheadSelfAttention

__all__ = ["Width", "keep_channels", "narrow", "width_of", "widths_of"]

Width = tuple[int, int]
"""Channels that a layer takes and gives; of attention, d_model and ``inner``."""


def narrow(model: nn.Module, widths: Mapping[str, Width]) -> None:
    """Cut layers to widths, in place; their weights are then the first channels, and have no meaning.

    Args:
        model: With layers at least as wide.
        widths: By the name of the module.

    Raises:
        ValueError: There is no such layer, or it is narrower, or the width leaves nothing or part of a head.
    """
    modules = dict(model.named_modules())
    for name, (c_in, c_out) in widths.items():
        module = modules.get(name)
        full = None if module is None else width_of(module)
        if module is None or full is None:
            raise ValueError(f"{name!r} is no layer with channels")
        unit = module.head_dim if isinstance(module, MultiheadSelfAttention) else 1
        if not (1 <= c_in <= full[0] and 1 <= c_out <= full[1]) or c_out % unit:
            raise ValueError(f"{name} of {full[0]} to {full[1]} channels cannot have {c_in} to {c_out}")
        keep_channels(module, torch.arange(c_in), torch.arange(c_out))


def widths_of(model: nn.Module, full: nn.Module) -> dict[str, Width]:
    """Widths of the layers of a model that are narrower than in ``full``, a model of the same depth."""
    modules = dict(full.named_modules())
    found = {name: width_of(module) for name, module in model.named_modules()}
    return {name: width for name, width in found.items() if width is not None and width != width_of(modules[name])}


def width_of(module: nn.Module) -> Width | None:
    """Of a layer that can be narrowed; None for other modules."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        return module.in_channels, module.out_channels
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, nn.BatchNorm2d):
        return module.num_features, module.num_features
    if isinstance(module, nn.LayerNorm):
        return module.normalized_shape[0], module.normalized_shape[0]
    if isinstance(module, MultiheadSelfAttention):
        return module.in_proj_weight.shape[1], module.inner
    return None


def keep_channels(module: nn.Module, inputs: Tensor | None = None, outputs: Tensor | None = None) -> None:
    """Leave a layer some of its channels, in place.

    Args:
        module: One that :func:`width_of` knows.
        inputs: Numbers of the channels to keep of what it takes; None for all. Norms and attention do not look at it.
        outputs: The same of what it gives; of attention, of each of queries, keys and values.
    """
    if isinstance(module, MultiheadSelfAttention):
        _select(module, ("in_proj_weight", "in_proj_bias"), 0, _thrice(outputs, module.inner))
        return
    transposed = isinstance(module, nn.ConvTranspose2d)
    _select(module, ("weight",), int(transposed), outputs)
    _select(module, ("bias", "running_mean", "running_var"), 0, outputs)
    if not isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
        _select(module, ("weight",), int(not transposed), inputs)
    _count(module)


def _select(module: nn.Module, names: tuple[str, ...], dim: int, kept: Tensor | None) -> None:
    for name in names:
        tensor = getattr(module, name, None)
        if tensor is None or kept is None:
            continue
        cut = tensor.detach().index_select(dim, kept.to(tensor.device))
        setattr(module, name, nn.Parameter(cut, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else cut)


def _thrice(outputs: Tensor | None, inner: int) -> Tensor | None:
    """Rows of queries, keys and values."""
    return None if outputs is None else torch.cat([outputs, outputs + inner, outputs + 2 * inner])


def _count(module: nn.Module) -> None:
    """Make a layer's own record of its channels true."""
    weight = module.get_parameter("weight")
    if isinstance(module, nn.Conv2d):
        module.out_channels, module.in_channels = weight.shape[:2]
    elif isinstance(module, nn.ConvTranspose2d):
        module.in_channels, module.out_channels = weight.shape[:2]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.BatchNorm2d):
        module.num_features = len(weight)
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = (len(weight),)
