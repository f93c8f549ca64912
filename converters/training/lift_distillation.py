"""Recovery of lifting models: a smaller one learns what its parent answers for motion-capture poses, truth or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgepose.calibration.datasets.mocap import view
from edgepose.calibration.metrics_3d import mpjpe_mm
from edgepose.converters.training.lifting import LiftingTask
from edgepose.converters.training.loop import Batch
from edgepose.types import ModelSpec

__all__ = ["LiftDistillation"]

_MOST = 1000


class LiftDistillation(LiftingTask):
    """Distance from the parent's joints on random views, and with ``labelled`` from the truth as well."""

    def __init__(self, parent: nn.Module, path: Path, spec: ModelSpec, seed: int, *, labelled: bool = False) -> None:
        """Read and split the poses; see ``read_poses`` for the errors."""
        super().__init__(path, spec, seed)
        self._parent, self._labelled = parent.eval().requires_grad_(False), labelled
        self.identity += " labelled" if labelled else ""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Metres."""
        keypoints, truth = batch
        answers = model(keypoints)
        with torch.no_grad():
            wanted = self._parent.to(keypoints.device)(keypoints)
        loss: Tensor = (answers - wanted).norm(dim=-1).mean()
        return loss + (answers - truth).norm(dim=-1).mean() if self._labelled else loss

    def score(self, model: nn.Module, most: int = _MOST) -> dict[str, float]:
        """Millimetres: by the truth as ``LiftingTask``, and from the parent; first the one that is learned from."""
        xy, _ = view(self.held[:: max(len(self.held) // most, 1)], np.random.default_rng(1), wide=0.5)
        device = next(model.parameters()).device
        agreement = {"from parent": mpjpe_mm(self._lift(self._parent.to(device), xy), self._lift(model, xy))}
        truth = super().score(model, most)
        return truth | agreement if self._labelled else agreement | truth
