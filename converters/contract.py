"""The I/O contract in torch: uint8 RGB crops in, raw heatmaps out, normalisation inside the graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Deployed"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Deployed(nn.Module):
    """A pose model behind the contract: image (N, H, W, 3) uint8 RGB -> heatmaps (N, K, H / 4, W / 4) float32."""

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
