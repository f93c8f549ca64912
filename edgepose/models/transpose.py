"""TransPose (Yang et al., ICCV 2021, arXiv 2012.14214): a convolutional stem, a Transformer encoder, heatmaps.

Two families: TransPose-R (ResNet stem, stride 8, then a deconvolution) and TransPose-H (HRNet stem, stride 4).
Parameter names and shapes are those of the published checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgepose.models.blocks import (
    BasicBlock,
    Bottleneck,
    Encoder,
    PoolTokens,
    conv_bn,
    residual_stage,
    sine_position,
)

__all__ = ["TransPoseH", "TransPoseHConfig", "TransPoseR", "TransPoseRConfig"]


@dataclass(frozen=True)
class TransPoseRConfig:
    """Sizes of a TransPose-R; ``kv_pool`` 2 pools keys and values over 2 x 2 tokens, 1 does not."""

    joints: int
    input_hw: tuple[int, int]
    d_model: int
    feedforward: int
    heads: int
    layers: int
    stem: int = 64
    planes: tuple[int, int] = (64, 128)
    deconv: int = 256
    kv_pool: int = 1


@dataclass(frozen=True)
class TransPoseHConfig:
    """Sizes of a TransPose-H; ``width`` is the W of HRNet-W32 and -W48, ``kv_pool`` as in TransPose-R."""

    joints: int
    input_hw: tuple[int, int]
    d_model: int
    feedforward: int
    heads: int
    layers: int
    width: int
    stage3_modules: int = 4
    kv_pool: int = 1


class TransPoseR(nn.Module):
    """TransPose-R: normalised RGB (N, 3, H, W) float32 -> heatmaps (N, K, H / 4, W / 4) float32."""

    Config = TransPoseRConfig
    stride = 8

    def __init__(self, config: TransPoseRConfig) -> None:
        super().__init__()
        self.config = config
        first, second = config.planes
        self.conv1 = nn.Conv2d(3, config.stem, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(config.stem)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = residual_stage(Bottleneck, config.stem, first, 3)
        self.layer2 = residual_stage(Bottleneck, 4 * first, second, 4, stride=2)
        self.reduce = nn.Conv2d(4 * second, config.d_model, 1, bias=False)
        self.pos_embedding = _position(config, self.stride)
        self.global_encoder = _encoder(config, self.stride)
        self.deconv_layers = nn.Sequential(
            nn.ConvTranspose2d(config.d_model, config.deconv, 4, 2, 1, bias=False),
            nn.BatchNorm2d(config.deconv),
            nn.ReLU(),
        )
        self.final_layer = nn.Conv2d(config.deconv, config.joints, 1)

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        x = self.reduce(self.layer2(self.layer1(x)))
        x = self.global_encoder(x, self.pos_embedding)
        heatmaps: Tensor = self.final_layer(self.deconv_layers(x))
        return heatmaps


class TransPoseH(nn.Module):
    """TransPose-H: normalised RGB (N, 3, H, W) float32 -> heatmaps (N, K, H / 4, W / 4) float32."""

    Config = TransPoseHConfig
    stride = 4

    def __init__(self, config: TransPoseHConfig) -> None:
        super().__init__()
        self.config = config
        w = config.width
        self.conv1 = nn.Conv2d(3, 64, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 64, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.layer1 = residual_stage(Bottleneck, 64, 64, 4)
        self.transition1 = _transition((256,), (w, 2 * w))
        self.stage2 = nn.ModuleList([_HRModule((w, 2 * w), outputs=2)])
        self.transition2 = _transition((w, 2 * w), (w, 2 * w, 4 * w))
        last = config.stage3_modules - 1
        self.stage3 = nn.ModuleList(
            _HRModule((w, 2 * w, 4 * w), outputs=1 if i == last else 3) for i in range(last + 1)
        )
        self.reduce = nn.Conv2d(w, config.d_model, 1, bias=False)
        self.pos_embedding = _position(config, self.stride)
        self.global_encoder = _encoder(config, self.stride)
        self.final_layer = nn.Conv2d(config.d_model, config.joints, 1)

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        x = self.relu(self.bn1(self.conv1(image)))
        x = self.relu(self.bn2(self.conv2(x)))
        branches = [self.layer1(x)]
        for transition, stage in ((self.transition1, self.stage2), (self.transition2, self.stage3)):
            branches = [step(branches[min(i, len(branches) - 1)]) for i, step in enumerate(transition)]
            for module in stage:
                branches = module(branches)
        x = self.global_encoder(self.reduce(branches[0]), self.pos_embedding)
        heatmaps: Tensor = self.final_layer(x)
        return heatmaps


class _HRModule(nn.Module):
    """HRNet module: four basic blocks on each branch, then every output sums all branches at its resolution."""

    def __init__(self, channels: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(residual_stage(BasicBlock, c, c, 4) for c in channels)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_fuse(channels, source, target) for source in range(len(channels)))
            for target in range(outputs)
        )

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        """One (N, C_i, H / 2^i, W / 2^i) tensor per branch -> one per output."""
        branches = [branch(x) for branch, x in zip(self.branches, branches, strict=True)]
        fused = []
        for row in self.fuse_layers:
            assert isinstance(row, nn.ModuleList)
            terms = [fuse(x) for fuse, x in zip(row, branches, strict=True)]
            fused.append(torch.relu(sum(terms[1:], start=terms[0])))
        return fused


def _fuse(channels: tuple[int, ...], source: int, target: int) -> nn.Module:
    """From one branch's resolution to another's: 1 x 1 and nearest up-sampling, or strided 3 x 3 steps."""
    c_in, c_out = channels[source], channels[target]
    if source == target:
        return nn.Identity()
    if source > target:
        return conv_bn(c_in, c_out, 1).append(nn.Upsample(scale_factor=2 ** (source - target), mode="nearest"))
    steps = [conv_bn(c_in, c_in, 3, 2, relu=True) for _ in range(target - source - 1)]
    return nn.Sequential(*steps, conv_bn(c_in, c_out, 3, 2))


def _transition(old: tuple[int, ...], new: tuple[int, ...]) -> nn.ModuleList:
    """To the next stage's widths; a new branch starts from the lowest resolution with a strided 3 x 3."""
    kept = [nn.Identity() if a == b else conv_bn(a, b, 3, relu=True) for a, b in zip(old, new[: len(old)], strict=True)]
    added = [nn.Sequential(conv_bn(old[-1], c, 3, 2, relu=True)) for c in new[len(old) :]]
    return nn.ModuleList([*kept, *added])


def _encoder(config: TransPoseRConfig | TransPoseHConfig, stride: int) -> Encoder:
    pool = PoolTokens(config.input_hw[1] // stride, config.kv_pool) if config.kv_pool > 1 else None
    return Encoder(config.layers, config.d_model, config.heads, config.feedforward, pool)


def _position(config: TransPoseRConfig | TransPoseHConfig, stride: int) -> nn.Parameter:
    h, w = config.input_hw
    return nn.Parameter(sine_position((h // stride, w // stride), config.d_model), requires_grad=False)
