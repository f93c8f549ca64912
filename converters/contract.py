"""The I/O contract in torch: what goes into a deployed model and what comes out of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgepose.types import ModelSpec

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Deployed", "DeployedLifter", "deployed", "example_input"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def deployed(model: nn.Module, spec: ModelSpec) -> nn.Module:
    """A model behind the contract of its task, in evaluation mode."""
    return Deployed(model) if spec.task == "pose2d" else DeployedLifter(model)


def example_input(spec: ModelSpec, batch: int) -> Tensor:
    """Zeros of the shape and dtype that a deployed model takes."""
    shape = [int(side or 0) for side in spec.input.shape[1:]]
    return torch.zeros((batch, *shape), dtype=getattr(torch, spec.input.dtype))


class Deployed(nn.Module):
    """A 2D model: image (N, H, W, 3) uint8 RGB -> heatmaps (N, K, H / 4, W / 4) float32.

    Normalisation by mean and deviation of each colour is inside.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        self.register_buffer("scale", (1 / (255 * std)).view(1, 3, 1, 1))
        self.register_buffer("shift", (-mean / std).view(1, 3, 1, 1))
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        heatmaps: Tensor = self.model(image.permute(0, 3, 1, 2).float() * self.scale + self.shift)
        return heatmaps


class DeployedLifter(nn.Module):
    """A lifting model: keypoints (N, K, 2) float32, normalised -> keypoints_xyz (N, K, 3) float32 metres."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, keypoints: Tensor) -> Tensor:
        """See the class."""
        xyz: Tensor = self.model(keypoints)
        return xyz
