"""Exact rewrites of a torch model before export: the same answers from fewer operations that quantize better.

fold_batchnorm         Convolution and BatchNorm become one convolution: the quantizer sees the weights that run.
fuse_attention         One product for Q, K and V instead of two; position and scale become constants, because
                       (x + p) W + b = x W + (p W + b): no additions that break INT8 chains.
unfold_deconvolution   A 4 x 4 stride-2 transposed convolution, for which most engines have no INT8 kernel, becomes a
                       3 x 3 convolution and a pixel shuffle (Shi et al., arXiv 1609.07009).

Each is exact up to rounding: tests hold them to 1e-10 in float64.
"""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edgepose.models.blocks import Encoder, EncoderLayer, MultiheadSelfAttention

__all__ = ["REWRITES", "fold_batchnorm", "fuse_attention", "rewrite", "unfold_deconvolution"]


def rewrite(model: nn.Module) -> nn.Module:
    """A copy of a model in evaluation mode with every rewrite that applies; the model itself stays as it is."""
    rewritten = copy.deepcopy(model).eval()
    for step in REWRITES:
        step(rewritten)
    return rewritten


def unfold_deconvolution(model: nn.Module) -> None:
    """Replace each ``Sequential(ConvTranspose2d 4/2/1, BatchNorm2d, ReLU)``, in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Sequential) and _is_deconvolution(child):
                setattr(parent, name, _as_pixel_shuffle(*child))


def fold_batchnorm(model: nn.Module) -> None:
    """Fold each BatchNorm into the convolution that is registered just before it in the same module, in place."""
    for parent in list(model.modules()):
        children = list(parent.named_children())
        for (name, convolution), (norm_name, norm) in pairwise(children):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(convolution, norm))
                setattr(parent, norm_name, nn.Identity())


def fuse_attention(model: nn.Module) -> None:
    """Replace each Transformer encoder whose module holds its ``pos_embedding``, in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Encoder):
                position = getattr(parent, "pos_embedding")  # noqa: B009 - nn.Module's own attribute types are looser
                setattr(parent, name, _FusedEncoder(child, position.detach().transpose(0, 1)))


REWRITES = (unfold_deconvolution, fold_batchnorm, fuse_attention)


def _is_deconvolution(block: nn.Sequential) -> bool:
    kinds = [type(layer) for layer in block]
    if kinds != [nn.ConvTranspose2d, nn.BatchNorm2d, nn.ReLU]:
        return False
    layer = block[0]
    assert isinstance(layer, nn.ConvTranspose2d)
    geometry = (layer.kernel_size, layer.stride, layer.padding, layer.output_padding, layer.dilation, layer.groups)
    return geometry == ((4, 4), (2, 2), (1, 1), (0, 0), (1, 1), 1) and layer.bias is None


def _as_pixel_shuffle(deconvolution: nn.Module, norm: nn.Module, relu: nn.Module) -> nn.Sequential:
    """Output pixel 2 y + r sees input y + dy through kernel row r + 1 - 2 dy; likewise in x."""
    assert isinstance(deconvolution, nn.ConvTranspose2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    assert norm.running_mean is not None
    gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    weight = (deconvolution.weight * gain[None, :, None, None]).detach()
    c_in, c_out = weight.shape[:2]
    unfolded = weight.new_zeros(c_out, 2, 2, c_in, 3, 3)
    taps = [(r, d, r + 1 - 2 * d) for r in (0, 1) for d in (-1, 0, 1) if 0 <= r + 1 - 2 * d < 4]
    for row, dy, ky in taps:
        for column, dx, kx in taps:
            unfolded[:, row, column, :, dy + 1, dx + 1] = weight[:, :, ky, kx].T
    convolution = nn.Conv2d(c_in, 4 * c_out, 3, padding=1).to(weight)
    convolution.weight = nn.Parameter(unfolded.reshape(4 * c_out, c_in, 3, 3), requires_grad=False)
    bias = (norm.bias - norm.running_mean * gain).detach()
    convolution.bias = nn.Parameter(bias.repeat_interleave(4), requires_grad=False)
    return nn.Sequential(convolution, relu, nn.PixelShuffle(2))


class _FusedAttention(nn.Module):
    """Self-attention over tokens whose position is known: one product for Q, K and V, and a constant."""

    constant: Tensor

    def __init__(self, attention: MultiheadSelfAttention, position: Tensor) -> None:
        super().__init__()
        self.heads = attention.heads
        weight, bias = attention.in_proj_weight.detach().clone(), attention.in_proj_bias.detach()
        d = weight.shape[1]
        with_position = position @ weight[: 2 * d].T + bias[: 2 * d]
        constant = torch.cat([with_position, bias[2 * d :].expand(*position.shape[:2], d)], dim=2)
        scale = 1 / math.sqrt(d // self.heads)
        weight[:d] *= scale
        constant[..., :d] *= scale
        self.qkv = nn.Linear(d, 3 * d, bias=False).to(weight)
        self.qkv.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("constant", constant)
        self.out_proj = attention.out_proj

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, d) -> (N, T, d)."""
        q, k, v = (self._split(part) for part in (self.qkv(x) + self.constant).chunk(3, dim=-1))
        merged = self._merge(torch.softmax(q @ k.transpose(-1, -2), dim=-1) @ v)
        projected: Tensor = self.out_proj(merged)
        return projected

    def _split(self, x: Tensor) -> Tensor:
        """(N, T, d) -> (N, heads, T, d / heads); a single head stays as it is."""
        if self.heads == 1:
            return x
        return x.reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def _merge(self, x: Tensor) -> Tensor:
        return x if self.heads == 1 else x.transpose(1, 2).flatten(2)


class _FusedLayer(nn.Module):
    """An encoder layer with the position inside."""

    def __init__(self, layer: EncoderLayer, position: Tensor) -> None:
        super().__init__()
        self.self_attn = _FusedAttention(layer.self_attn, position)
        self.linear1, self.linear2 = layer.linear1, layer.linear2
        self.norm1, self.norm2 = layer.norm1, layer.norm2

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, d) -> (N, T, d)."""
        x = self.norm1(x + self.self_attn(x))
        y: Tensor = self.norm2(x + self.linear2(torch.relu(self.linear1(x))))
        return y


class _FusedEncoder(nn.Module):
    """An encoder that does not need to be told the position again."""

    def __init__(self, encoder: Encoder, position: Tensor) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        for layer in encoder.layers:
            assert isinstance(layer, EncoderLayer)
            self.layers.append(_FusedLayer(layer, position))

    def forward(self, features: Tensor, position: Tensor) -> Tensor:
        """Features (N, d, h, w) -> (N, d, h, w); takes what ``Encoder`` takes."""
        tokens: Tensor = self.layers(features.flatten(2).transpose(1, 2))
        return tokens.transpose(1, 2).reshape(features.shape)
