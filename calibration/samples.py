"""Crops to calibrate, verify and compare with, taken from annotations, a folder of images, or a video."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edgepose.calibration.coco import CocoKeypoints
from edgepose.errors import DatasetError, SourceError
from edgepose.files import sha256_file
from edgepose.geometry import regions_from_boxes
from edgepose.preprocess import crop
from edgepose.sources import IMAGE_SUFFIXES, image_files, open_source, quiet_opencv, read_image
from edgepose.types import ModelSpec

__all__ = ["MIN_SAMPLES", "CropSet", "FindRegion", "check_source", "collect"]

MIN_SAMPLES = 8

Image = NDArray[np.uint8]
FindRegion = Callable[[Image], tuple[NDArray[np.float64], bool]]
"""Best region (1, 4) of a frame, and whether it shows a person: how frames without boxes are cropped."""


@dataclass(frozen=True)
class CropSet:
    """Crops and where they come from.

    Attributes:
        crops: (N, H, W, 3) uint8 RGB.
        source: The folder, video or annotation file.
        seed: Seed of the selection.
        rows: One per crop: file (name, with the frame number in a video), region, SHA-256 of the crop's pixels.
        skipped: Files that could not be read.
        source_sha256: Hash of the one source file, or None for a folder.
    """

    crops: NDArray[np.uint8]
    source: str
    seed: int
    rows: list[dict[str, object]]
    skipped: list[str]
    source_sha256: str | None

    def to_dict(self) -> dict[str, object]:
        """For ``calibration.json``: enough to rebuild the set and to check it."""
        return {
            "source": self.source,
            "source_sha256": self.source_sha256,
            "seed": self.seed,
            "count": len(self.crops),
            "skipped": self.skipped,
            "crops": self.rows,
        }


@dataclass(frozen=True)
class _Candidate:
    """One picture to crop: ``box`` xywh where known, else the person has to be found."""

    name: str
    box: NDArray[np.float64] | None
    read: Callable[[], Image | None]


def collect(
    path: Path,
    spec: ModelSpec,
    count: int,
    seed: int,
    find: FindRegion,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    minimum: int = MIN_SAMPLES,
) -> CropSet:
    """Choose ``count`` crops at random with a seed, fewer where there are fewer.

    Annotations give one crop per annotated person. Images and videos give one per picture, around the person
    whom ``find`` finds; pictures without a person come last, to fill up to the minimum.

    Args:
        path: A COCO keypoint JSON, a folder of images, an image list's folder, or a video.
        spec: The model's crop size and padding.
        count: How many crops at most.
        seed: Seed of the selection.
        find: Finds the person where no box is given.
        progress: Told how many are done, and out of how many.
        minimum: Fewer crops than this (or than ``count``) are an error.

    Raises:
        DatasetError: The path holds nothing usable, or too few crops come out.
    """
    candidates = list(_candidates(path))
    random.Random(seed).shuffle(candidates)
    chosen: list[tuple[_Candidate, Image, NDArray[np.float64]]] = []
    without_person: list[tuple[_Candidate, Image, NDArray[np.float64]]] = []
    skipped = []
    for candidate in candidates:
        if len(chosen) == count:
            break
        image = candidate.read()
        if image is None:
            skipped.append(candidate.name)
            continue
        region, found = _region(candidate, image, spec, find)
        (chosen if found else without_person).append((candidate, crop(image, region, spec.input_wh)[0], region))
        progress(len(chosen), min(count, len(candidates)))
    needed = min(minimum, count)
    chosen += without_person[: max(0, needed - len(chosen))]
    if len(chosen) < needed:
        unread = f", {len(skipped)} of them unreadable ({', '.join(sorted(skipped)[:3])})" if skipped else ""
        raise DatasetError(
            f"{path}: {len(chosen)} usable of {len(candidates)} pictures{unread}; at least {needed} are needed: "
            "add pictures of people as your camera sees them"
        )
    return CropSet(
        crops=np.stack([pixels for _, pixels, _ in chosen]),
        source=path.name,
        seed=seed,
        rows=[_row(*item) for item in chosen],
        skipped=sorted(skipped),
        source_sha256=sha256_file(path) if path.is_file() else None,
    )


def check_source(path: Path) -> None:
    """Find out early whether :func:`collect` has anything to choose from.

    Raises:
        DatasetError: The path holds nothing usable.
    """
    next(_candidates(path), None)


def _region(candidate: _Candidate, image: Image, spec: ModelSpec, find: FindRegion) -> tuple[NDArray[np.float64], bool]:
    if candidate.box is None:
        return find(image)
    return regions_from_boxes(candidate.box, spec.aspect, spec.crop_padding), True


def _row(candidate: _Candidate, pixels: Image, region: NDArray[np.float64]) -> dict[str, object]:
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    return {"file": candidate.name, "region": [round(float(v), 2) for v in region[0]], "sha256": digest}


def _candidates(path: Path) -> Iterator[_Candidate]:
    if not path.exists():
        raise DatasetError(f"{path}: no such folder, video or annotation file")
    if path.suffix.lower() == ".json":
        yield from _annotated(path)
    elif path.is_dir():
        annotated = list(path.glob("person_keypoints_*.json"))
        files = image_files(path)
        if len(annotated) == 1:
            yield from _annotated(annotated[0])
        elif files:
            yield from (_Candidate(str(f.relative_to(path)), None, lambda f=f: read_image(f)) for f in files)  # type: ignore[misc]
        else:
            raise DatasetError(f"{path}: no images here (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
    else:
        yield from _video_frames(path)


def _annotated(path: Path) -> Iterator[_Candidate]:
    for image in CocoKeypoints(path).ground_truth():
        for box in image.boxes_xywh:
            yield _Candidate(image.path.name, box, lambda p=image.path: read_image(p, exif=False))  # type: ignore[misc]


def _video_frames(path: Path) -> Iterator[_Candidate]:
    try:
        count = open_source(str(path)).count
    except SourceError as error:
        raise DatasetError(str(error)) from None
    frames = _VideoReader(path)
    for index in range(count):
        yield _Candidate(f"{path.name}#{index}", None, lambda i=index: frames.read(i))  # type: ignore[misc]


class _VideoReader:
    """Random access to the frames of a video; seeks, and keeps the file open."""

    def __init__(self, path: Path) -> None:
        with quiet_opencv():
            self._capture = cv2.VideoCapture(str(path))

    def read(self, index: int) -> Image | None:
        self._capture.set(cv2.CAP_PROP_POS_FRAMES, index)
        ok, image = self._capture.read()
        return np.asarray(image, dtype=np.uint8) if ok else None
