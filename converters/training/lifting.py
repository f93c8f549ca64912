"""Learning to lift: motion-capture poses on other bodies, seen by random cameras, with noise on the 2D keypoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgepose.calibration.datasets.mocap import (
    IMAGE_WH,
    body_size,
    noisy,
    other_bodies,
    read_poses,
    split_sequences,
    view,
)
from edgepose.calibration.metrics_3d import mpjpe_mm, p_mpjpe_mm
from edgepose.converters.training.loop import Batch
from edgepose.files import sha256_file
from edgepose.lifting import normalise
from edgepose.types import ModelSpec

__all__ = ["LiftingTask"]

Floats = NDArray[np.float32]

_CHUNK = 256


class LiftingTask:
    """MPJPE on random views; implements ``Task``. Whole sequences are held out, and scored through fixed cameras."""

    higher_is_better = False

    def __init__(self, path: Path, spec: ModelSpec, seed: int) -> None:
        """Read and split the poses; see ``read_poses`` for the errors."""
        self.normalisation, self.seed = str(spec.normalisation), seed
        self.identity = f"{path.name} {sha256_file(path)[:16]} {self.normalisation}" if path.is_file() else ""
        poses, sequences = read_poses(path)
        held = split_sequences(sequences, seed)
        self.train, self.held = poses[~held], poses[held]

    def steps(self, batch: int) -> int:
        """See ``Task``."""
        return max(len(self.train) // batch, 1)

    def batches(self, epoch: int, batch: int) -> Iterator[Batch]:
        """Keypoints (B, 17, 2) and their truth (B, 17, 3)."""
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(len(self.train))
        for i in range(self.steps(batch)):
            poses = other_bodies(self.train[order[i * batch : (i + 1) * batch]], rng)
            xy, truth = view(poses, rng, wide=0.5)
            keypoints = normalise(noisy(xy, rng), IMAGE_WH, self.normalisation)
            yield torch.from_numpy(keypoints), torch.from_numpy(truth)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """MPJPE in metres."""
        keypoints, truth = batch
        error: Tensor = (model(keypoints) - truth).norm(dim=-1).mean()
        return error

    def score(self, model: nn.Module, most: int = 1000) -> dict[str, float]:
        """Millimetres, by cameras like Human3.6M's (keypoints exact, and 1 % of the body off), and by all sorts."""
        poses = self.held[:: max(len(self.held) // most, 1)]
        like_xy, like = view(poses, np.random.default_rng(0), wide=0)
        other_xy, other = view(poses, np.random.default_rng(1), wide=1)
        shaken = like_xy + body_size(like_xy) * np.random.default_rng(2).normal(0, 0.01, like_xy.shape)
        answers = [self._lift(model, xy) for xy in (like_xy, shaken.astype(np.float32), other_xy)]
        return {
            "MPJPE": mpjpe_mm(like, answers[0]),
            "P-MPJPE": p_mpjpe_mm(like, answers[0]),
            "MPJPE 1% off": mpjpe_mm(like, answers[1]),
            "MPJPE any camera": mpjpe_mm(other, answers[2]),
        }

    def _lift(self, model: nn.Module, xy: Floats) -> Floats:
        device = next(model.parameters()).device
        keypoints = torch.from_numpy(normalise(xy, IMAGE_WH, self.normalisation)).to(device)
        chunks = [keypoints[i : i + _CHUNK] for i in range(0, len(keypoints), _CHUNK)]
        return np.concatenate([model(chunk).float().cpu().numpy() for chunk in chunks])
