"""AMPose: Transformer layers alternating with graph convolutions, 2D keypoints -> 3D (idea: arXiv 2210.04216).

From the paper's abstract: self-attention connects each joint with all others, graph convolutions connect it with its
neighbours on the body, the two are stacked alternately, and neighbours do not share one weight matrix. Its authors have
published neither code nor weights: everything else here is our design.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgepose.models.blocks import MultiheadSelfAttention
from edgepose.skeletons import get_skeleton

__all__ = ["AMPose", "AMPoseConfig", "AttentionBlock", "GraphBlock", "GraphConv", "neighbour_groups"]

_CENTRE = "spine"


@dataclass(frozen=True)
class AMPoseConfig:
    """Sizes of an AMPose, and what its ablations change.

    Attributes:
        skeleton: Name of the joints' order; one of them is the spine.
        d_model: Features of a joint.
        layers: How often ``blocks`` is repeated.
        heads: Of the attention.
        mlp_ratio: Features of the MLP's hidden layer over ``d_model``.
        groups: Neighbour groups with a weight matrix of their own: 3 (itself, towards the spine, away from it), or 4
            with the mirrored joint.
        blocks: Their order: ``attention`` and ``gcn``.
        gcn: ``plain+residual``, ``plain+plain``, ``residual+residual`` or ``residual`` (one convolution).
    """

    skeleton: str
    d_model: int
    layers: int
    heads: int
    mlp_ratio: int = 4
    groups: int = 3
    blocks: tuple[str, ...] = ("attention", "gcn")
    gcn: str = "plain+residual"


class AMPose(nn.Module):
    """AMPose: keypoints (N, 17, 2) float32, normalised -> (N, 17, 3) float32 metres in the camera's frame.

    A missing joint comes as ``edgepose.lifting.MISSING`` in both coordinates, and a learned embedding takes its place.
    The answer is relative to the first joint, the pelvis, which is exactly zero.
    """

    Config = AMPoseConfig

    def __init__(self, config: AMPoseConfig) -> None:
        super().__init__()
        self.config = config
        d, joints = config.d_model, len(get_skeleton(config.skeleton).joints)
        self.embed = nn.Linear(2, d)
        self.missing = nn.Parameter(0.02 * torch.randn(d))
        self.joints = nn.Parameter(0.02 * torch.randn(joints, d))
        self.blocks = nn.ModuleList(_BLOCKS[name](config) for _ in range(config.layers) for name in config.blocks)
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, 3)

    def forward(self, keypoints: Tensor) -> Tensor:
        """See the class."""
        # 1 for a joint in the picture (x above -8), 0 for MISSING: arithmetic, since not every engine compares.
        known = (keypoints[..., :1] + 9).clamp(0, 1)
        x = known * self.embed(keypoints) + (1 - known) * self.missing + self.joints
        for block in self.blocks:
            x = block(x)
        xyz: Tensor = self.head(self.norm(x))
        return xyz - xyz[:, :1]


class AttentionBlock(nn.Module):
    """Transformer encoder layer, pre-norm: (N, J, d) -> (N, J, d)."""

    def __init__(self, config: AMPoseConfig) -> None:
        super().__init__()
        d = config.d_model
        self.norm1 = nn.LayerNorm(d)
        self.self_attn = MultiheadSelfAttention(d, config.heads)
        self.norm2 = nn.LayerNorm(d)
        self.linear1 = nn.Linear(d, config.mlp_ratio * d)
        self.linear2 = nn.Linear(config.mlp_ratio * d, d)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        y = self.norm1(x)
        x = x + self.self_attn(y, y)
        z: Tensor = self.linear2(self.act(self.linear1(self.norm2(x))))
        return x + z


class GraphConv(nn.Module):
    """y = sum over groups k of A_k x W_k, plus a bias: (N, J, d) -> (N, J, d).

    Written as [A_1 x, A_2 x, ...] [W_1; W_2; ...]: one small product for each group and one layer with all weights.
    """

    def __init__(self, config: AMPoseConfig) -> None:
        super().__init__()
        groups = neighbour_groups(config.skeleton)[: config.groups]
        for k, matrix in enumerate(groups[1:], 1):
            self.register_buffer(f"a{k}", matrix, persistent=False)
        self.groups = len(groups)
        self.linear = nn.Linear(self.groups * config.d_model, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        gathered = [x] + [getattr(self, f"a{k}") @ x for k in range(1, self.groups)]
        y: Tensor = self.linear(torch.cat(gathered, dim=-1))
        return y


class GraphBlock(nn.Module):
    """Graph convolution, norm, GELU, graph convolution; where the input is added depends on ``config.gcn``."""

    def __init__(self, config: AMPoseConfig) -> None:
        super().__init__()
        first, _, second = config.gcn.partition("+")
        self.first_residual, self.second_residual = first == "residual", second == "residual"
        self.conv1 = GraphConv(config)
        self.norm = nn.LayerNorm(config.d_model)
        self.act = nn.GELU()
        self.conv2 = GraphConv(config) if second else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, J, d) -> (N, J, d)."""
        y: Tensor = self.act(self.norm(self.conv1(x)))
        if self.first_residual:
            y = x + y
        if self.conv2 is None:
            return y
        z: Tensor = self.conv2(y)
        if self.second_residual:
            z = z + (y if self.first_residual else x)
        return z


_BLOCKS: Mapping[str, Callable[[AMPoseConfig], nn.Module]] = {"attention": AttentionBlock, "gcn": GraphBlock}


def neighbour_groups(skeleton: str) -> Tensor:
    """Which joints a joint hears: (4, J, J) float32, ``A[k, i, j]`` from joint j to joint i.

    The groups are: itself; its neighbour towards the spine; its neighbours away from the spine; its mirrored joint
    (itself where it has none). Each column sums to one, or to zero for a joint that nobody hears.
    """
    row = get_skeleton(skeleton)
    count = len(row.joints)
    hops = _hops(row.edges, count, row.joints.index(_CENTRE))
    towards = torch.zeros(count, count)
    for a, b in row.edges:
        outer, inner = (a, b) if hops[a] > hops[b] else (b, a)
        towards[outer, inner] = 1
    itself = torch.eye(count)
    groups = torch.stack([itself, towards, towards.T, itself[list(row.flip_order)]])
    return groups / groups.sum(dim=1, keepdim=True).clamp(min=1)


def _hops(edges: tuple[tuple[int, int], ...], count: int, start: int) -> list[int]:
    """Edges from ``start`` to each joint."""
    hops = [count] * count
    hops[start] = 0
    for _ in range(count):
        for a, b in edges:
            hops[a], hops[b] = min(hops[a], hops[b] + 1), min(hops[b], hops[a] + 1)
    return hops
