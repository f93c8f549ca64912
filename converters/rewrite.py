"""Exact rewrites of a torch model before export: the same answers from fewer operations that quantize better.

fold_batchnorm         Convolution and BatchNorm become one convolution: the quantizer sees the weights that run.
fuse_attention         One product for Q, K and V instead of two; position and scale become constants, because
                       (x + p) W + b = x W + (p W + b): no additions that break INT8 chains.
unfold_deconvolution   A 4 x 4 stride-2 transposed convolution, for which most engines have no INT8 kernel, becomes one
                       2 x 2 convolution, and the 1 x 1 convolution after it moves before the up-sampling.

Each is exact up to rounding: tests hold them to 1e-10 in float64.
"""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edgepose.models.blocks import Encoder, EncoderLayer, MultiheadSelfAttention

__all__ = [
    "REWRITES",
    "FusedEncoder",
    "fold_batchnorm",
    "fuse_attention",
    "rewrite",
    "separate",
    "unfold_deconvolution",
]


def rewrite(model: nn.Module) -> nn.Module:
    """A copy of a model in evaluation mode with every rewrite that applies; the model itself stays as it is."""
    rewritten = copy.deepcopy(model).eval()
    for step in REWRITES:
        step(rewritten)
    return rewritten


def unfold_deconvolution(model: nn.Module) -> None:
    """Replace each deconvolution (4 x 4, stride 2, BatchNorm, ReLU) and the 1 x 1 convolution after it, in place."""
    for parent in list(model.modules()):
        for (name, block), (head_name, head) in pairwise(list(parent.named_children())):
            if _is_deconvolution(block) and isinstance(head, nn.Conv2d) and head.kernel_size == (1, 1):
                setattr(parent, name, nn.Identity())
                setattr(parent, head_name, _PhaseHead(block, head))


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
                setattr(parent, name, FusedEncoder(child, position.detach().transpose(0, 1)))


REWRITES = (unfold_deconvolution, fold_batchnorm, fuse_attention)


def _is_deconvolution(block: nn.Module) -> TypeGuard[nn.Sequential]:
    if not isinstance(block, nn.Sequential):
        return False
    if [type(layer) for layer in block] != [nn.ConvTranspose2d, nn.BatchNorm2d, nn.ReLU]:
        return False
    layer = block[0]
    assert isinstance(layer, nn.ConvTranspose2d)
    geometry = (layer.kernel_size, layer.stride, layer.padding, layer.output_padding, layer.dilation, layer.groups)
    return geometry == ((4, 4), (2, 2), (1, 1), (0, 0), (1, 1), 1) and layer.bias is None


class _PhaseHead(nn.Module):
    """A stride-2 deconvolution and the 1 x 1 convolution after it, at the input's resolution.

    Output pixel 2 y + r is made of the input rows y - 1 + r and y + r: for each of the four phases (r, s) a 2 x 2
    convolution. All four are one convolution with padding 1, of which phase (r, s) is cut out at offset (r, s); so
    nothing is multiplied by the zeros that a transposed convolution would put in between. The 1 x 1 convolution is
    the same for every pixel: it comes before the phases are woven together, when there are only K maps to weave.
    """

    def __init__(self, block: nn.Sequential, head: nn.Conv2d) -> None:
        super().__init__()
        deconvolution, norm, self.relu = block
        assert isinstance(deconvolution, nn.ConvTranspose2d)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_var is not None
        assert norm.running_mean is not None
        gain = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach()
        weight = deconvolution.weight.detach() * gain[None, :, None, None]
        taps = [_taps(weight, r, s) for r, s in _PHASES]
        self.phases = nn.Conv2d(weight.shape[0], 4 * weight.shape[1], 2, padding=1).to(weight)
        self.phases.weight = _constant(torch.cat([tap.transpose(0, 1) for tap in taps]))
        self.phases.bias = _constant((norm.bias.detach() - norm.running_mean * gain).repeat(4))
        self.maps = nn.Conv2d(4 * weight.shape[1], 4 * head.out_channels, 1, groups=4).to(weight)
        self.maps.weight = _constant(head.weight.detach().repeat(4, 1, 1, 1))
        if head.bias is None:
            self.maps.bias = None
        else:
            self.maps.bias = _constant(head.bias.detach().repeat(4))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, K, 2 h, 2 w)."""
        height, width = x.shape[-2:]
        maps = self.maps(self.relu(self.phases(x))).chunk(4, dim=1)
        cut = [part[:, :, r : r + height, s : s + width] for part, (r, s) in zip(maps, _PHASES, strict=True)]
        rows = [torch.stack(pair, dim=-1).flatten(-2) for pair in (cut[:2], cut[2:])]
        return torch.stack(rows, dim=-2).flatten(-3, -2)


_PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))


def _taps(weight: Tensor, row: int, column: int) -> Tensor:
    """The 2 x 2 kernel of a phase: rows 3, 1 of the 4 x 4 one for r = 0, rows 2, 0 for r = 1; columns likewise."""
    return weight[:, :, [3 - row, 1 - row]][:, :, :, [3 - column, 1 - column]]


def _constant(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.contiguous(), requires_grad=False)


def separate(table: Tensor) -> tuple[Tensor, Tensor] | None:
    """Two tables, (h, 1, d) and (1, w, d), whose sum is a table (h * w, d) of positions, if it has such a form.

    Sine embeddings have: the features of y, then those of x. Small tables keep a quantized file small; the engine
    adds them up when it loads the model.
    """
    count = len(table)
    for height in (h for h in range(2, count) if count % h == 0):
        grid = table.reshape(height, count // height, -1)
        rows, columns = grid[:, :1], grid[:1] - grid[:1, :1]
        if torch.allclose(rows + columns, grid, rtol=0, atol=1e-5 * float(table.abs().max())):
            return rows, columns
    return None


class _FusedAttention(nn.Module):
    """Self-attention over tokens whose position is known: one product for Q, K and V, and a constant.

    Where keys and values are pooled, one product for Q and one for K and V, of pooled tokens.
    """

    def __init__(self, attention: MultiheadSelfAttention, position: Tensor) -> None:
        super().__init__()
        self.heads, self.head_dim, self.pool = attention.heads, attention.head_dim, attention.pool
        weight, bias = attention.in_proj_weight.detach().clone(), attention.in_proj_bias.detach().clone()
        n = attention.inner
        scale = 1 / math.sqrt(self.head_dim)
        weight[:n] *= scale
        bias[:n] *= scale
        seen = weight.clone()
        seen[2 * n :] = 0  # values do not see the position
        if self.pool is None:
            self.qkv = _Projection(weight, bias, seen, position[0])
        else:
            self.q = _Projection(weight[:n], bias[:n], seen[:n], position[0])
            self.kv = _Projection(weight[n:], bias[n:], seen[n:], self.pool(position)[0])
        self.out_proj = attention.out_proj

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, d) -> (N, T, d)."""
        q, k, v = (self._split(part) for part in self._project(x))
        merged = self._merge(torch.softmax(q @ k.transpose(-1, -2), dim=-1) @ v)
        projected: Tensor = self.out_proj(merged)
        return projected

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.pool is None:
            return self.qkv(x).chunk(3, dim=-1)
        return (self.q(x), *self.kv(self.pool(x)).chunk(2, dim=-1))

    def _split(self, x: Tensor) -> Tensor:
        """(N, T, inner) -> (N, heads, T, head_dim); a single head stays as it is."""
        if self.heads == 1:
            return x
        return x.reshape(*x.shape[:2], self.heads, self.head_dim).transpose(1, 2)

    def _merge(self, x: Tensor) -> Tensor:
        return x if self.heads == 1 else x.transpose(1, 2).flatten(2)


class _Projection(nn.Linear):
    """x W + (position S + b): a linear layer whose bias differs from token to token."""

    rows: Tensor
    columns: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, seen: Tensor, position: Tensor) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
        self.weight = _constant(weight)
        whole = position[:, None], torch.zeros_like(position[:1, None])
        rows, columns = separate(position) or whole
        self.register_buffer("rows", rows @ seen.T + bias)
        self.register_buffer("columns", columns @ seen.T)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, d) -> (N, T, D)."""
        return super().forward(x) + (self.rows + self.columns).flatten(0, 1)


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


class FusedEncoder(nn.Module):
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
