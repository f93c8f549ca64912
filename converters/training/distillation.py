"""Recovery: a smaller model learns the answers and features of the model that it was cut from, without labels.

The loss of a batch is the sum of

- the heatmaps' squared error over the parent's power, both weighted by how near the parent's heatmap is to its peak
  (``_BACKGROUND`` elsewhere), so that the background, nine tenths of a heatmap, does not decide;
- ``_FEATURES`` times the same, without weights, of the features at the points where both models have the same
  channels;
- of pictures with labels, ``_LABELS`` times the error of ``PictureTask`` over the power of its targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor, nn

from edgepose.calibration.agreement import Comparison
from edgepose.converters.training.frames import Frames
from edgepose.converters.training.loop import Batch
from edgepose.converters.training.pictures import PictureTask, heatmaps_of, random_view
from edgepose.converters.training.quantized import QuantizationAware
from edgepose.types import ModelSpec

__all__ = ["Distillation", "agreement_of", "distillation_loss", "peak_weights", "shared_points"]

_BACKGROUND, _FEATURES, _LABELS = 0.05, 0.5, 0.5
_POINTS = ("layer1", "layer2", "reduce", "global_encoder", "deconv_layers")
_CHUNK = 64
_WARP = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
_LIGHT, _COLOUR = 0.4, 0.1


@dataclass(frozen=True)
class _Terms:
    heatmaps: Tensor
    features: dict[str, Tensor]


class Distillation:
    """Learns from ``parent`` on frames without labels, and from labels where there are any; implements ``Task``."""

    higher_is_better = True

    def __init__(
        self,
        parent: nn.Module,
        student: nn.Module,
        frames: Frames,
        spec: ModelSpec,
        seed: int,
        *,
        labelled: PictureTask | None = None,
        workers: int = 2,
    ) -> None:
        """Find the points whose features can be compared.

        Args:
            parent: The model whose answers are learned; it is put into evaluation mode.
            student: The model that will learn, for its shapes.
            frames: What to learn on, and what to score with.
            spec: Of both models.
            seed: Of augmentation and order.
            labelled: Pictures with labels beside the frames, and their held-out score.
            workers: Threads that make views.
        """
        self._parent, self._frames, self.spec = parent.eval().requires_grad_(False), frames, spec
        self._labelled, self._seed, self._workers = labelled, seed, workers
        self.points = shared_points(parent, student, spec)
        labels = f" {labelled.identity}" if labelled else ""
        self.identity = f"{frames.sha256[:16]}{labels} {','.join(self.points)}"

    def steps(self, batch: int) -> int:
        """See ``Task``: those of the frames, and those of the labelled pictures."""
        labelled = self._labelled.steps(batch) if self._labelled else 0
        return max(len(self._frames.patches) // batch, 1) + labelled

    def batches(self, epoch: int, batch: int) -> Iterator[Batch]:
        """Crops (B, H, W, 3) uint8, alone or with what ``PictureTask`` gives, in random order."""
        labelled = self._labelled.steps(batch) if self._labelled else 0
        of_frames = self.steps(batch) - labelled
        turns = np.random.default_rng((self._seed, epoch, 1)).permutation([True] * of_frames + [False] * labelled)
        frames = self._views(epoch, batch, of_frames)
        pictures = self._labelled.batches(epoch, batch) if self._labelled else iter(())
        for own in turns:
            yield next(frames) if own else next(pictures)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """See the module."""
        crops, *labels = batch
        with torch.no_grad():
            truth = _run(self._parent.to(crops.device), crops, self.points)
        found = _run(model, crops, self.points)
        loss = distillation_loss(found.heatmaps, truth.heatmaps)
        for name in self.points:
            loss = loss + _FEATURES / len(self.points) * _relative(found.features[name], truth.features[name])
        if labels and self._labelled:
            loss = loss + _LABELS * self._labelled.relative_error(found.heatmaps, *labels)
        return loss

    def score(self, model: nn.Module) -> dict[str, float]:
        """Points of agreement with the parent on held-out frames; with labels, their score first."""
        labelled = self._labelled.score(model) if self._labelled else {}
        return labelled | agreement_of(model, self._parent, self._frames.held, self.spec)

    def _views(self, epoch: int, batch: int, steps: int) -> Iterator[Batch]:
        order = np.random.default_rng((self._seed, epoch)).permutation(len(self._frames.patches))
        with ThreadPoolExecutor(self._workers) as pool:
            for step in range(steps):
                rows = [int(i) for i in order[step * batch : (step + 1) * batch]]
                yield (torch.from_numpy(np.stack(list(pool.map(lambda i: self._view(epoch, i), rows)))),)

    def _view(self, epoch: int, index: int) -> NDArray[np.uint8]:
        """One person, mirrored, scaled, turned and coloured; the same for the same seed and epoch."""
        rng = np.random.default_rng((self._seed, epoch, index))
        patch = self._frames.patches[index]
        centre = (np.array(patch.shape[1::-1]) - 1) / 2
        region = np.array([*centre, *self.spec.input_wh])
        to_patch, _ = random_view(region, self.spec.input_wh, rng)
        return _other_light(cv2.warpAffine(patch, to_patch, self.spec.input_wh, flags=_WARP), rng)


def distillation_loss(heatmaps: Tensor, truth: Tensor) -> Tensor:
    """Squared error over the truth's power, both by ``peak_weights``; (N, K, h, w) each -> a scalar."""
    weights = peak_weights(truth)
    loss: Tensor = (weights * (heatmaps - truth) ** 2).sum() / (weights * truth**2).sum().clamp(min=1e-12)
    return loss


def peak_weights(truth: Tensor) -> Tensor:
    """1 at the peak of each of the parent's heatmaps (N, K, h, w), down to ``_BACKGROUND`` where it is zero or below.

    A map without a clear peak is noise, and would be all peak: what it lacks to the batch's median peak is taken off.
    """
    peaks = truth.amax(dim=(2, 3), keepdim=True).clamp(min=1e-12)
    clear = (peaks / peaks.median()).clamp(max=1)
    return _BACKGROUND + (1 - _BACKGROUND) * clear * (truth / peaks).clamp(min=0)


def agreement_of(model: nn.Module, parent: nn.Module, crops: NDArray[np.uint8], spec: ModelSpec) -> dict[str, float]:
    """How far a model's poses are the parent's: 100 x mean OKS, and the mean shift in crop pixels.

    Both are in evaluation mode; crops (N, H, W, 3) uint8 RGB.
    """
    comparison = Comparison(spec, ("parent", "pruned"), "parent")
    device = next(model.parameters()).device
    with torch.inference_mode():
        for i in range(0, len(crops), _CHUNK):
            part = crops[i : i + _CHUNK]
            images = torch.from_numpy(part).to(device)
            models = {"parent": parent.to(device), "pruned": model}
            heatmaps = {name: heatmaps_of(m, images).cpu().numpy() for name, m in models.items()}
            comparison.add(heatmaps, part, tuple(str(i + k) for k in range(len(part))))
    found = comparison.result()["pruned"]
    return {"agreement": 100 * found.mean_oks, "shift px": found.mean_shift_px}


def shared_points(parent: nn.Module, student: nn.Module, spec: ModelSpec) -> tuple[str, ...]:
    """Modules after which both have features of the same shape: those channels were not cut, so they correspond."""
    names = [name for name in _POINTS if hasattr(parent, name) and hasattr(_inner(student), name)]
    crops = torch.zeros(1, *(spec.input_wh[::-1]), 3, dtype=torch.uint8)
    training = student.training
    student.eval()
    with torch.inference_mode():
        shapes = [{n: f.shape for n, f in _run(model, crops, names).features.items()} for model in (parent, student)]
    student.train(training)
    return tuple(name for name in names if shapes[0][name] == shapes[1][name])


def _run(model: nn.Module, crops: Tensor, points: Sequence[str]) -> _Terms:
    with _captured(_inner(model), points) as features:
        heatmaps = heatmaps_of(model, crops)
    return _Terms(heatmaps, {name: feature.float() for name, feature in features.items()})


@contextmanager
def _captured(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect what the named modules answer."""
    features: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: features.__setitem__(name, output)

    handles = [getattr(model, name).register_forward_hook(keep(name)) for name in names]
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()


def _inner(model: nn.Module) -> nn.Module:
    return model.inner if isinstance(model, QuantizationAware) else model


def _relative(found: Tensor, truth: Tensor) -> Tensor:
    error: Tensor = ((found - truth) ** 2).sum() / (truth**2).sum().clamp(min=1e-12)
    return error


def _other_light(image: NDArray[Any], rng: Generator) -> NDArray[np.uint8]:
    """Brighter or darker, and each colour a little more so."""
    gains = rng.uniform(1 - _LIGHT, 1 + _LIGHT) * rng.uniform(1 - _COLOUR, 1 + _COLOUR, 3)
    return np.clip(image * gains, 0, 255).astype(np.uint8)
