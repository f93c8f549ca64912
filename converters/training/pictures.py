"""Learning heatmaps from labelled pictures, with the augmentation of TransPose's code (that of Simple Baselines)."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor, nn

from edgepose.calibration.datasets.base import Picture, PictureData
from edgepose.calibration.datasets.labelled import fit_labels, joint_order
from edgepose.converters.contract import IMAGENET_MEAN, IMAGENET_STD
from edgepose.converters.training.loop import Batch
from edgepose.decode import decode
from edgepose.errors import DatasetError
from edgepose.files import sha256_file
from edgepose.geometry import boxes_around, regions_from_boxes
from edgepose.preprocess import crop
from edgepose.types import ModelSpec

__all__ = ["PictureTask", "heatmaps_of", "random_view"]

_ROTATION, _ROTATED, _SCALE, _HALF_BODY, _HALF_BODY_JOINTS = 40.0, 0.6, 0.35, 0.3, 8
_SIGMA = 2 / 64
"""Of a target, in heights of a heatmap: 2 pixels for crops of 256 x 192."""
_LOWER = ("hip", "knee", "ankle")


class PictureTask:
    """Mean squared error of heatmaps; implements ``Task``. The held-out score is the data set's own."""

    higher_is_better = True

    def __init__(self, data: PictureData, held: PictureData, spec: ModelSpec, seed: int, workers: int = 2) -> None:
        """List the people.

        Raises:
            DatasetError: There are no labels, or none of the model's joints.
        """
        if data.joints is None or held.joints is None:
            raise DatasetError(f"{(held if data.joints else data).path}: has no labelled joints to learn from")
        self._held, self.spec, self.seed, self._workers = held, spec, seed, workers
        self.identity = " ".join(sha256_file(path)[:16] for path in (*data.sources(), *held.sources()))
        order = joint_order(data.joints, spec, str(data.path))
        self._people = [
            (picture, fit_labels(picture.labels, order), row)
            for picture in data.pictures()
            if picture.labels is not None and picture.boxes_xywh is not None
            for row in range(len(picture.boxes_xywh))
            if fit_labels(picture.labels, order).visible[row].any()
        ]
        joints = [name.rpartition("_")[2] for name in spec.joints.joints]
        self._lower = np.array([name in _LOWER for name in joints])

    def steps(self, batch: int) -> int:
        """See ``Task``."""
        return max(len(self._people) // batch, 1)

    def batches(self, epoch: int, batch: int) -> Iterator[Batch]:
        """Crops (B, H, W, 3) uint8, joints (B, K, 2) in heatmap pixels, and whether they count (B, K)."""
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self._people))
        with ThreadPoolExecutor(self._workers) as pool:
            ahead = [pool.submit(self._sample, epoch, int(i)) for i in order[:batch]]
            for step in range(1, self.steps(batch) + 1):
                ready, following = ahead, order[step * batch : (step + 1) * batch]
                ahead = [pool.submit(self._sample, epoch, int(i)) for i in following]
                yield tuple(torch.from_numpy(np.stack(p)) for p in zip(*(f.result() for f in ready), strict=True))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Half the mean squared error over all maps; those of joints that do not count weigh nothing."""
        crops, joints, counts = batch
        heatmaps = heatmaps_of(model, crops)
        error = (heatmaps - _targets(joints, (heatmaps.shape[2], heatmaps.shape[3]))) ** 2 * counts[:, :, None, None]
        return error.mean() / 2

    def relative_error(self, heatmaps: Tensor, joints: Tensor, counts: Tensor) -> Tensor:
        """The squared error over the power of the targets: 1 for an empty answer, whatever the number of joints."""
        targets = _targets(joints, (heatmaps.shape[2], heatmaps.shape[3])) * counts[:, :, None, None]
        error: Tensor = ((heatmaps - targets) ** 2 * counts[:, :, None, None]).sum()
        return error / (targets**2).sum().clamp(min=1e-12)

    def score(self, model: nn.Module) -> dict[str, float]:
        """What the held-out data set's scorer says."""
        scorer, device = self._held.scorer(self.spec), next(model.parameters()).device
        assert scorer is not None
        for picture in self._held.pictures():
            image = _read(picture)
            assert picture.boxes_xywh is not None
            regions = regions_from_boxes(picture.boxes_xywh, self.spec.aspect, self.spec.crop_padding)
            crops = torch.from_numpy(crop(image, regions, self.spec.input_wh)).to(device)
            scorer.add(picture, regions, *decode(heatmaps_of(model, crops).cpu().numpy(), regions))
        return dict(scorer.result().stats)

    def _sample(self, epoch: int, index: int) -> tuple[NDArray[Any], ...]:
        """One person, the same for the same seed and epoch whichever thread it falls to."""
        picture, labels, row = self._people[index]
        rng = np.random.default_rng((self.seed, epoch, index))
        joints, visible, boxes = labels.keypoints_xy[row], labels.visible[row], picture.boxes_xywh
        assert boxes is not None
        half = self._half_body(joints, visible, rng)
        region = regions_from_boxes(
            boxes[row] if half is None else half, self.spec.aspect, self.spec.crop_padding if half is None else 1.5
        )[0]
        to_picture, mirrored = random_view(region, self.spec.input_wh, rng)
        image = cv2.warpAffine(_read(picture), to_picture, self.spec.input_wh, flags=_WARP)
        to_crop = cv2.invertAffineTransform(to_picture)
        joints = joints @ to_crop[:, :2].T + to_crop[:, 2]
        inside = ((joints > -1) & (joints < self.spec.input_wh)).all(axis=1)
        order = list(self.spec.joints.flip_order) if mirrored else slice(None)
        h, w = self.spec.output.shape[2:]
        assert h
        assert w
        shrink = (np.array([w, h]) - 1) / (np.array(self.spec.input_wh) - 1)
        counts = (visible & inside).astype(np.float32)
        return np.ascontiguousarray(image[..., ::-1]), (joints * shrink).astype(np.float32)[order], counts[order]

    def _half_body(self, joints: NDArray[Any], visible: NDArray[np.bool_], rng: Generator) -> NDArray[Any] | None:
        """Now and then the box around the joints above or below the waist, where more than two are labelled."""
        if rng.random() >= _HALF_BODY or visible.sum() <= _HALF_BODY_JOINTS:
            return None
        halves = [visible & ~self._lower, visible & self._lower]
        chosen = next((half for half in rng.permutation(np.array(halves)) if half.sum() > 2), visible)
        return boxes_around(joints[chosen])


_WARP = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP


def random_view(region: NDArray[Any], size_wh: tuple[int, int], rng: Generator) -> tuple[NDArray[Any], bool]:
    """Map (2, 3) from crop to picture pixels of a turned, scaled and perhaps mirrored region; whether it is that."""
    scale = np.clip(rng.normal(1, _SCALE), 1 - _SCALE, 1 + _SCALE) * max(region[2] - 1, 1) / (size_wh[0] - 1)
    degrees = np.clip(rng.normal(0, _ROTATION), -2 * _ROTATION, 2 * _ROTATION) if rng.random() < _ROTATED else 0.0
    mirrored = bool(rng.random() < 0.5)
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = scale * np.array([[cos, -sin], [sin, cos]]) * [-1 if mirrored else 1, 1]
    centre = (np.array(size_wh) - 1) / 2
    return np.column_stack([turn, region[:2] - turn @ centre]), mirrored


def _read(picture: Picture) -> NDArray[np.uint8]:
    image = picture.read()
    if image is None:
        raise DatasetError(f"{picture.file}: cannot be decoded: copy the picture again, or remove its labels")
    return image


def heatmaps_of(model: nn.Module, crops: Tensor) -> Tensor:
    """Of uint8 crops (B, H, W, 3), through the deployed model's own normalisation."""
    mean, std = (torch.tensor(v, device=crops.device).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    heatmaps: Tensor = model((crops.permute(0, 3, 1, 2) / 255 - mean) / std)
    return heatmaps.float()


def _targets(joints: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Gaussians (B, K, h, w) of height 1 around joints (B, K, 2), exactly at their place between pixels."""
    h, w = size_hw
    spread = 2 * (_SIGMA * h) ** 2
    x = torch.exp(-((torch.arange(w, device=joints.device) - joints[:, :, :1]) ** 2) / spread)
    y = torch.exp(-((torch.arange(h, device=joints.device) - joints[:, :, 1:]) ** 2) / spread)
    return y[:, :, :, None] * x[:, :, None]
