"""Crops to calibrate, verify and compare with, taken from annotations, a folder of images, or a video."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
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
_PATIENCE = 4

Image = NDArray[np.uint8]
FindRegion = Callable[[Image], tuple[NDArray[np.float64], float, bool]]
"""Best region (1, 4) of a frame, its score, and whether it shows a person: how frames without boxes are cropped."""


@dataclass(frozen=True)
class CropSet:
    """Crops and where they come from.

    Attributes:
        crops: (N, H, W, 3) uint8 RGB.
        source: The folder, video or annotation file.
        seed: Seed of the selection.
        rows: One per crop: file (name, with the frame number in a video), region, SHA-256 of the crop's pixels.
        skipped: Files that could not be read, each once.
        without_person: How many of the crops show nobody whom the model recognises.
        source_sha256: Hash of the one source file, or None for a folder.
    """

    crops: NDArray[np.uint8]
    source: str
    seed: int
    rows: list[dict[str, object]]
    skipped: list[str]
    without_person: int
    source_sha256: str | None

    def to_dict(self) -> dict[str, object]:
        """For ``calibration.json``: enough to rebuild the set and to check it."""
        return {
            "source": self.source,
            "source_sha256": self.source_sha256,
            "seed": self.seed,
            "count": len(self.crops),
            "skipped": self.skipped,
            "without_person": self.without_person,
            "crops": self.rows,
        }


@dataclass(frozen=True)
class _Candidate:
    """One picture to crop: ``box`` xywh where known, else the person has to be found."""

    file: str
    name: str
    box: NDArray[np.float64] | None
    read: Callable[[], Image | None]


@dataclass(frozen=True)
class _Crop:
    """One crop, its record, how much it looks like a person, and whether it is one."""

    pixels: Image
    row: dict[str, object]
    score: float
    person: bool


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
    whom ``find`` finds; at most four times ``count`` pictures are searched, and those without a person fill up
    what is missing, best first.

    Args:
        path: A COCO keypoint JSON or folder, a folder of images, or a video.
        spec: The model's crop size and padding.
        count: How many crops at most.
        seed: Seed of the selection.
        find: Finds the person where no box is given.
        progress: Told how many pictures have been looked at, and how many will be at most.
        minimum: Fewer crops than this (or than ``count``) are an error.

    Raises:
        DatasetError: The path holds nothing usable, or too few crops come out.
    """
    candidates = list(_candidates(path))
    random.Random(seed).shuffle(candidates)
    looked_at = candidates[: _PATIENCE * count]
    chosen: list[_Crop] = []
    empty: list[_Crop] = []
    skipped = set()
    for done, candidate in enumerate(looked_at, start=1):
        if len(chosen) == count:
            break
        image = candidate.read()
        if image is None:
            skipped.add(candidate.file)
        else:
            found = _crop(candidate, image, spec, find)
            (chosen if found.person else empty).append(found)
            empty = sorted(empty, key=lambda crop: -crop.score)[:count]
        progress(done, len(looked_at))
    fill = empty[: count - len(chosen)]
    chosen += fill
    if len(chosen) < min(minimum, count):
        unread = f", {len(skipped)} unreadable ({', '.join(sorted(skipped)[:3])})" if skipped else ""
        raise DatasetError(
            f"{path}: {len(chosen)} usable crops of {len(candidates)}{unread}; "
            f"at least {min(minimum, count)} are needed: add pictures of people as your camera sees them"
        )
    return CropSet(
        crops=np.stack([found.pixels for found in chosen]),
        source=path.name,
        seed=seed,
        rows=[found.row for found in chosen],
        skipped=sorted(skipped),
        without_person=len(fill),
        source_sha256=sha256_file(path) if path.is_file() else None,
    )


def check_source(path: Path) -> None:
    """Find out early whether :func:`collect` has anything to choose from.

    Raises:
        DatasetError: The path holds nothing usable.
    """
    next(_candidates(path), None)


def _crop(candidate: _Candidate, image: Image, spec: ModelSpec, find: FindRegion) -> _Crop:
    if candidate.box is None:
        region, score, person = find(image)
    else:
        region, score, person = regions_from_boxes(candidate.box, spec.aspect, spec.crop_padding), 1.0, True
    pixels = crop(image, region, spec.input_wh)[0]
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    row: dict[str, object] = {
        "file": candidate.name,
        "region": [round(float(v), 2) for v in region[0]],
        "sha256": digest,
    }
    return _Crop(pixels, row, score, person)


def _candidates(path: Path) -> Iterator[_Candidate]:
    if not path.exists():
        raise DatasetError(f"{path}: no such folder, video or annotation file")
    if path.suffix.lower() == ".json":
        yield from _annotated(CocoKeypoints(path))
    elif not path.is_dir():
        yield from _video_frames(path)
    elif CocoKeypoints.is_root(path):
        yield from _annotated(CocoKeypoints.from_root(path))
    else:
        yield from _pictures(path)


def _annotated(data: CocoKeypoints) -> Iterator[_Candidate]:
    for image in data.ground_truth():
        for i, box in enumerate(image.boxes_xywh):
            read = partial(read_image, image.path, exif=False)
            yield _Candidate(image.path.name, f"{image.path.name}#{i}", box, read)


def _pictures(folder: Path) -> Iterator[_Candidate]:
    files = image_files(folder)
    if not files:
        raise DatasetError(f"{folder}: no images here (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
    for file in files:
        name = str(file.relative_to(folder))
        yield _Candidate(name, name, None, partial(read_image, file))


def _video_frames(path: Path) -> Iterator[_Candidate]:
    try:
        source = open_source(str(path))
    except SourceError as error:
        raise DatasetError(str(error)) from None
    count = source.count or sum(1 for _ in source)
    source.frames.close()
    frames = _VideoReader(path)
    for index in range(count):
        yield _Candidate(f"{path.name}#{index}", f"{path.name}#{index}", None, partial(frames.read, index))


class _VideoReader:
    """Random access to the frames of a video; seeks, and keeps the file open while it is in use."""

    def __init__(self, path: Path) -> None:
        with quiet_opencv():
            self._capture = cv2.VideoCapture(str(path))

    def read(self, index: int) -> Image | None:
        self._capture.set(cv2.CAP_PROP_POS_FRAMES, index)
        ok, image = self._capture.read()
        return np.asarray(image, dtype=np.uint8) if ok else None
