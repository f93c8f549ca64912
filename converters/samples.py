"""What the quantizer sees, and what the verdict is on: crops for a 2D model, keypoints for a lifting model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.bundle import MANIFEST
from edgepose.calibration.datasets.base import PictureData
from edgepose.calibration.datasets.mocap import IMAGE_WH, noisy, read_poses, split_sequences, view
from edgepose.calibration.datasets.registry import open_pictures
from edgepose.calibration.samples import MIN_SAMPLES, CropSet, collect
from edgepose.decode import decode
from edgepose.errors import ConversionError, DatasetError
from edgepose.files import sha256_file
from edgepose.lifting import MISSING, liftable, map_joints, normalise
from edgepose.pipeline import Estimator
from edgepose.runtimes.load import load
from edgepose.types import ModelSpec

__all__ = ["GOLDEN", "Samples", "crop_samples", "keypoint_samples", "noise_samples"]

GOLDEN = 4
"""So many of the samples to verify with are replayed on the device."""

_VERIFY = 32
_VERIFY_POSES = 512  # poses cost nothing
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs of a model, as its specification has them.

    Attributes:
        calibrate: (N, ...) for the quantizer.
        verify: (N, ...) others for the verdict; the first few become the bundle's golden inputs.
        names: Of those to verify with, for people.
        source: What they were taken from, for people.
        source_sha256: Hashes of the files that pin it, by name.
        record: ``calibration.json``: enough to take them again and to check them.
        skipped: Files that could not be read.
        notes: What people should know.
    """

    calibrate: NDArray[Any]
    verify: NDArray[Any]
    names: list[str]
    source: str
    source_sha256: Mapping[str, str] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def taken(self) -> bool:
        """Whether they are of real data, and not noise."""
        return bool(self.record.get("source"))


def noise_samples(spec: ModelSpec, seed: int) -> Samples:
    """Seeded noise to verify with, where nothing is given."""
    rng = np.random.default_rng(seed)
    shape = (MIN_SAMPLES, *(int(side or 0) for side in spec.input.shape[1:]))
    if spec.task == "pose2d":
        noise: NDArray[Any] = rng.integers(0, 256, shape, dtype=np.uint8)
    else:
        noise = _with_a_missing_joint(rng.normal(0, 0.3, shape).astype(np.float32))
    what = "pictures" if spec.task == "pose2d" else "poses"
    return Samples(
        calibrate=noise[:0],
        verify=noise,
        names=[f"noise {i}" for i in range(len(noise))],
        source="seeded noise",
        record={"source": None, "count": 0, "verified_on": len(noise), "note": f"no {what}: seeded noise"},
        notes=(f"no --calib: verified on seeded noise, not on {what}",),
    )


def crop_samples(data: PictureData, fp32: Estimator, size: int, seed: int, progress: Progress) -> Samples:
    """Crops of people who differ from each other.

    Raises:
        DatasetError: Too few usable pictures.
    """
    found = collect(data, fp32.spec, size + _VERIFY, seed, fp32.best_region, progress, minimum=MIN_SAMPLES + 1)
    held = _held_back(len(found.crops), size)
    return Samples(
        calibrate=found.crops[held:],
        verify=found.crops[:held],
        names=[str(row["file"]) for row in found.rows[:held]],
        source=found.source,
        source_sha256=found.source_sha256,
        record=found.to_dict() | {"calibrated_on": len(found.crops) - held, "verified_on": held},
        skipped=tuple(found.skipped),
        notes=_notes(found),
    )


def keypoint_samples(
    calibration: Path, keypoints_from: Path | None, spec: ModelSpec, size: int, seed: int, progress: Progress
) -> Samples:
    """Keypoints for a lifting model.

    Args:
        calibration: Motion-capture poses (.npz), seen by cameras with noise; or pictures, with ``keypoints_from``.
        keypoints_from: The 2D bundle that finds the joints on the pictures: what its quantized variant really gives.
        spec: The lifting model's.
        size: How many the quantizer sees.
        seed: Seed of the choice.
        progress: Told about each stage.

    Raises:
        ConversionError: Pictures without a 2D bundle, or poses with one.
        DatasetError: Too few usable poses.
        BundleError, EngineError: The 2D bundle cannot be used.
    """
    poses = calibration.suffix.lower() == ".npz"
    if poses and keypoints_from is not None:
        raise ConversionError(f"{calibration}: holds poses: --keypoints-from goes with pictures or a video")
    if poses:
        return _from_mocap(calibration, spec, size, seed)
    if keypoints_from is None:
        raise ConversionError(
            f"{spec.name}: calibrates on keypoints: give poses (.npz) with --calib, or pictures with --calib and the "
            "2D bundle that finds the joints on them with --keypoints-from"
        )
    return _through(keypoints_from, open_pictures(calibration), spec, size, seed, progress)


def _from_mocap(path: Path, spec: ModelSpec, size: int, seed: int) -> Samples:
    """Poses of the training sequences to calibrate with, and of those held out to verify with."""
    poses, sequences = read_poses(path)
    held = split_sequences(sequences, 0)  # the split that training and validation have by default
    rng = np.random.default_rng(seed)
    parts = []
    for rows, count in ((np.flatnonzero(~held), size), (np.flatnonzero(held), _VERIFY_POSES)):
        chosen = rng.permutation(rows)[:count]
        xy, _ = view(poses[chosen], rng, wide=0.5)
        parts.append((chosen, normalise(noisy(xy, rng), IMAGE_WH, str(spec.normalisation))))
    (_, calibrate), (verified, verify) = parts
    record = {
        "source": path.name,
        "source_sha256": {path.name: sha256_file(path)},
        "kind": "mocap",
        "rule": "random poses and cameras by seed; calibrated on training sequences, verified on those held out",
        "seed": seed,
        "asked": size,
        "count": len(calibrate) + len(verify),
        "calibrated_on": len(calibrate),
        "verified_on": len(verify),
        "sha256": _digest(calibrate),
    }
    return Samples(
        calibrate=calibrate,
        verify=_with_a_missing_joint(verify),
        names=[f"pose {i}" for i in verified],
        source=path.name,
        source_sha256={path.name: sha256_file(path)},
        record=record,
    )


def _through(bundle: Path, data: PictureData, spec: ModelSpec, size: int, seed: int, progress: Progress) -> Samples:
    """What a 2D bundle's preferred variant on this machine finds on pictures."""
    estimator = load(bundle)
    found = collect(data, estimator.spec, size + _VERIFY, seed, estimator.best_region, progress, minimum=1)
    keypoints, names = [], []
    for row, crop in zip(found.rows, found.crops, strict=True):
        xy, scores = decode(estimator.heatmaps(crop[None]), np.array([row["region"]], float))
        xy[scores < estimator.spec.score_threshold] = np.nan
        mapped = map_joints(xy, estimator.spec.skeleton, spec.skeleton)
        if liftable(mapped)[0]:
            keypoints.append(normalise(mapped, _wh(row), str(spec.normalisation)))
            names.append(str(row["file"]))
    estimator.close()
    if len(keypoints) <= MIN_SAMPLES:
        raise DatasetError(
            f"{data.path}: {bundle} finds {len(keypoints)} people who can be lifted; more than {MIN_SAMPLES} are "
            "needed: give footage with more of them, whole bodies in view"
        )
    arrays: NDArray[np.float32] = np.concatenate(keypoints)
    held = _held_back(len(arrays), size)
    through = {"bundle": bundle.name, "variant": estimator.variant, "model": estimator.spec.name}
    if (bundle / MANIFEST).is_file():
        through["manifest_sha256"] = sha256_file(bundle / MANIFEST)
    counts = {"calibrated_on": len(arrays) - held, "verified_on": held, "sha256": _digest(arrays[held:])}
    return Samples(
        calibrate=arrays[held:],
        verify=_with_a_missing_joint(arrays[:held]),
        names=names[:held],
        source=f"{found.source}, joints found by {estimator.spec.name} {estimator.variant}",
        source_sha256=found.source_sha256,
        record=found.to_dict() | counts | {"keypoints_from": through},
        skipped=tuple(found.skipped),
    )


def _held_back(count: int, size: int) -> int:
    """How many of the samples are kept from the quantizer: at least a fifth, but it gets ``MIN_SAMPLES`` first."""
    return min(_VERIFY, max(count - size, count // 5, GOLDEN), max(count - MIN_SAMPLES, 1))


def _with_a_missing_joint(keypoints: NDArray[np.float32]) -> NDArray[np.float32]:
    """The last golden pose lacks a joint: every engine has to show that it knows what that means."""
    changed: NDArray[np.float32] = keypoints.copy()
    changed[min(GOLDEN, len(keypoints)) - 1, -1] = MISSING
    return changed


def _wh(row: Mapping[str, Any]) -> tuple[float, float]:
    width, height = row["image_wh"]
    return float(width), float(height)


def _digest(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _notes(found: CropSet) -> tuple[str, ...]:
    """What people should know about the crops."""
    remarks = []
    if found.skipped:
        remarks.append(f"{len(found.skipped)} calibration files could not be read: {', '.join(found.skipped[:3])}")
    if found.without_person:
        remarks.append(
            f"{found.without_person} of {len(found.crops)} crops show nobody whom the model recognises: "
            "give footage with more people in it, or annotations"
        )
    return tuple(remarks)
