"""Training for INT8: layers compute with the roundings that 8-bit kernels make, gradients pass through them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from edgepose.models.blocks import MultiheadSelfAttention

__all__ = ["QuantizationAware", "plain_state", "rounded_input", "rounded_weight"]

_LEVELS = 255
_MOMENTUM = 0.05
_PREFIX = "inner."
_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, MultiheadSelfAttention)


class QuantizationAware(nn.Module):
    """A model whose convolutions and linear layers see 8-bit weights and inputs; what it holds stays plain float.

    Weights are rounded symmetrically per output channel (-127 to 127), inputs asymmetrically per tensor (0 to 255)
    between limits that follow the smallest and largest value of each batch. Per-channel rounding does not change when
    BatchNorm is folded into a convolution, so it is the exported model's. Products of activations, sums and norms stay
    in float, as in our recipes for onnxruntime.
    """

    def __init__(self, model: nn.Module, float_modules: Sequence[str] = ()) -> None:
        """Wrap ``model``; modules named (or inside one named) in ``float_modules`` stay as they are."""
        super().__init__()
        self.inner = model
        layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, _LAYERS) and name.split(".")[0] not in float_modules
        }
        self.axes = _weights(layers)
        self.inputs = nn.ModuleList()
        self._hooks = []
        for layer in layers.values():
            rounding = _RoundedInputs(2 if isinstance(layer, MultiheadSelfAttention) else 1)
            self._hooks.append(layer.register_forward_pre_hook(rounding))
            self.inputs.append(rounding)

    def release(self) -> nn.Module:
        """Give the model back as it came: without roundings."""
        for hook in self._hooks:
            hook.remove()
        return self.inner

    def forward(self, x: Tensor) -> Tensor:
        """The model's answer by rounded weights and inputs."""
        parameters = dict(self.inner.named_parameters())
        rounded = {name: rounded_weight(parameters[name], axis) for name, axis in self.axes.items()}
        answer: Tensor = functional_call(self.inner, rounded, (x,))
        return answer


class _RoundedInputs(nn.Module):
    """Rounds the inputs of a layer, as a hook before it; a module, so that its limits are saved and averaged."""

    limits: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("limits", torch.zeros(count, 2))

    def forward(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(self._rounded(x, i) for i, x in enumerate(inputs))

    def _rounded(self, x: Tensor, i: int) -> Tensor:
        if self.training:
            self._follow(x.detach(), i)
        low, high = (float(limit) for limit in self.limits[i])
        return rounded_input(x, low, high) if high > low else x

    def _follow(self, x: Tensor, i: int) -> None:
        now = torch.stack([x.min().clamp(max=0), x.max().clamp(min=0)]).float()
        first = bool((self.limits[i] == 0).all())
        self.limits[i] = now if first else self.limits[i].lerp(now, _MOMENTUM)


def rounded_weight(weight: Tensor, axis: int) -> Tensor:
    """Symmetric signed 8-bit steps per channel of ``axis``, as floats; the gradient is that of the identity."""
    others = [i for i in range(weight.ndim) if i != axis]
    scale = (weight.detach().abs().amax(dim=others) / (_LEVELS // 2)).clamp(min=1e-12)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    rounded: Tensor = torch.fake_quantize_per_channel_affine(weight, scale, zero, axis, -127, 127)
    return rounded


def rounded_input(x: Tensor, low: float, high: float) -> Tensor:
    """Asymmetric unsigned 8-bit steps between ``low`` (at most 0) and ``high``, as floats; no gradient beyond them."""
    scale = (high - low) / _LEVELS
    rounded: Tensor = torch.fake_quantize_per_tensor_affine(x, scale, round(-low / scale), 0, _LEVELS)
    return rounded


def plain_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's own weights in the state of a :class:`QuantizationAware`; any other state as it is."""
    if not any(key.startswith("inputs.") for key in state):
        return dict(state)
    return {key.removeprefix(_PREFIX): tensor for key, tensor in state.items() if key.startswith(_PREFIX)}


def _weights(layers: Mapping[str, nn.Module]) -> dict[str, int]:
    """Name of each weight -> axis of its output channels."""
    axes = {}
    for name, layer in layers.items():
        own = "in_proj_weight" if isinstance(layer, MultiheadSelfAttention) else "weight"
        axes[f"{name}.{own}".lstrip(".")] = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    return axes
