"""Torch blocks shared by the model families. Parameter names are those of the published checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "Encoder",
    "EncoderLayer",
    "MultiheadSelfAttention",
    "PoolTokens",
    "conv_bn",
    "residual_stage",
    "sine_position",
]


def conv_bn(c_in: int, c_out: int, kernel: int, stride: int = 1, *, relu: bool = False) -> nn.Sequential:
    """Convolution without bias, BatchNorm and perhaps ReLU, as a Sequential (keys 0.*, 1.*)."""
    layers: list[nn.Module] = [
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(c_out),
    ]
    return nn.Sequential(*layers, nn.ReLU()) if relu else nn.Sequential(*layers)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a residual (He et al. 2016)."""

    expansion = 1

    def __init__(self, c_in: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(c_in, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, planes, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        shortcut: Tensor = x if self.downsample is None else self.downsample(x)
        return torch.relu(y + shortcut)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (with the stride), 1 x 1 convolutions and a residual (He et al. 2016)."""

    expansion = 4

    def __init__(self, c_in: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        c_out = planes * self.expansion
        self.conv1 = nn.Conv2d(c_in, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, c_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(c_in, c_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 4 * planes, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        shortcut: Tensor = x if self.downsample is None else self.downsample(x)
        return torch.relu(y + shortcut)


def _shortcut(c_in: int, c_out: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and c_in == c_out:
        return None
    return nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))


def residual_stage(
    block: type[BasicBlock] | type[Bottleneck], c_in: int, planes: int, count: int, stride: int = 1
) -> nn.Sequential:
    """``count`` residual blocks; the first has the stride and widens c_in to planes * expansion."""
    first = block(c_in, planes, stride)
    return nn.Sequential(first, *(block(planes * block.expansion, planes) for _ in range(count - 1)))


class PoolTokens(nn.Module):
    """Means over squares of ``factor`` x ``factor`` tokens: (N, h * w, d) -> (N, h * w / factor ** 2, d).

    First over rows, then over columns: each a mean along one axis of a tensor in its own order, without a transpose.
    """

    def __init__(self, width: int, factor: int) -> None:
        super().__init__()
        self.width, self.factor = width, factor

    def forward(self, x: Tensor) -> Tensor:
        """See the class; w is ``width``."""
        _, count, d = x.shape
        f, w = self.factor, self.width
        rows = x.reshape(-1, count // (w * f), f, w * d).mean(2)
        return rows.reshape(-1, count // f**2, f, d).mean(2)


class MultiheadSelfAttention(nn.Module):
    """Self-attention with separate query/key and value inputs; parameters named as in nn.MultiheadAttention.

    Plain matrix products and a softmax: nn.MultiheadAttention has a fast path that does not export.
    Its ``inner`` features are ``heads`` times ``head_dim``: d_model, or less in a pruned model. With ``pool`` queries
    attend to pooled keys and values, of which there are fewer.
    """

    def __init__(self, d_model: int, heads: int, pool: PoolTokens | None = None) -> None:
        super().__init__()
        self.head_dim, self.pool = d_model // heads, pool
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d_model, d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.out_proj = nn.Linear(d_model, d_model)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    @property
    def inner(self) -> int:
        """Features of the queries, and of keys and values, all heads together."""
        return self.in_proj_weight.shape[0] // 3

    @property
    def heads(self) -> int:
        """How many there are."""
        return self.inner // self.head_dim

    def forward(self, query_key: Tensor, value: Tensor) -> Tensor:
        """query_key (N, T, d), value (N, T, d) -> (N, T, d)."""
        n = self.inner
        weight, bias = self.in_proj_weight, self.in_proj_bias
        q, k = nn.functional.linear(query_key, weight[: 2 * n], bias[: 2 * n]).chunk(2, dim=-1)
        v = nn.functional.linear(value, weight[2 * n :], bias[2 * n :])
        if self.pool is not None:  # a mean of projections is the projection of the mean: the rewrite pools first
            k, v = self.pool(k), self.pool(v)
        scale = 1 / math.sqrt(self.head_dim)
        attention = torch.softmax(self._split(q * scale) @ self._split(k).transpose(-1, -2), dim=-1)
        merged = (attention @ self._split(v)).transpose(1, 2).flatten(2)
        projected: Tensor = self.out_proj(merged)
        return projected

    def _split(self, x: Tensor) -> Tensor:
        """(N, T, inner) -> (N, heads, T, head_dim)."""
        return x.reshape(*x.shape[:2], self.heads, self.head_dim).transpose(1, 2)


class EncoderLayer(nn.Module):
    """DETR-style Transformer encoder layer, post-norm: the position is added to queries and keys only."""

    def __init__(self, d_model: int, heads: int, feedforward: int, pool: PoolTokens | None = None) -> None:
        super().__init__()
        self.self_attn = MultiheadSelfAttention(d_model, heads, pool)
        self.linear1 = nn.Linear(d_model, feedforward)
        self.linear2 = nn.Linear(feedforward, d_model)
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """Tokens (N, T, d), position (1, T, d) -> (N, T, d)."""
        x = self.norm1(x + self.self_attn(x + position, x))
        y: Tensor = self.norm2(x + self.linear2(torch.relu(self.linear1(x))))
        return y


class Encoder(nn.Module):
    """Encoder layers over the pixels of a feature map."""

    def __init__(self, layers: int, d_model: int, heads: int, feedforward: int, pool: PoolTokens | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(d_model, heads, feedforward, pool) for _ in range(layers))

    def forward(self, features: Tensor, position: Tensor) -> Tensor:
        """Features (N, d, h, w), position (h * w, 1, d) -> (N, d, h, w)."""
        tokens = features.flatten(2).transpose(1, 2)
        for layer in self.layers:
            tokens = layer(tokens, position.transpose(0, 1))
        return tokens.transpose(1, 2).reshape(features.shape)


def sine_position(grid_hw: Sequence[int], d_model: int) -> Tensor:
    """2D sine position embedding (h * w, 1, d): d/2 features of y, then d/2 of x, sine and cosine interleaved.

    Source: DETR's sine embedding as TransPose uses it: positions count from one, divided by (last + 1e-6),
    times 2 pi; temperature 10000.
    """
    h, w = grid_hw
    half = d_model // 2
    frequency = 10000 ** (2 * torch.div(torch.arange(half), 2, rounding_mode="floor") / half)

    def features(count: int) -> Tensor:
        position = torch.arange(1, count + 1, dtype=torch.float32) / (count + 1e-6) * 2 * math.pi
        angle = position[:, None] / frequency
        return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=2).flatten(1)

    y = features(h)[:, None, :].expand(h, w, half)
    x = features(w)[None, :, :].expand(h, w, half)
    return torch.cat([y, x], dim=2).reshape(h * w, 1, d_model).contiguous()
