"""Calibration sets: different crops of people, taken from any data set, that can be made again and checked."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgepose.calibration.datasets.base import Image, Picture, PictureData
from edgepose.calibration.diversity import RULE, diverse_order, thumbnail
from edgepose.errors import DatasetError
from edgepose.files import sha256_file
from edgepose.geometry import regions_from_boxes
from edgepose.preprocess import crop
from edgepose.types import ModelSpec

__all__ = ["MIN_SAMPLES", "CropSet", "FindRegion", "collect"]

MIN_SAMPLES = 8
_POOL_PER_CROP = 4
_NAMED = 3

FindRegion = Callable[[Image], tuple[NDArray[np.float64], float, bool]]
"""Best region (1, 4) of a frame, its score, and whether it shows a person: how frames without boxes are cropped."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class CropSet:
    """Crops and where they come from.

    Attributes:
        crops: (N, H, W, 3) uint8 RGB, in random order.
        source: The folder, video, archive or annotation file.
        kind: Kind of data set.
        seed: Seed of the selection.
        asked: How many crops were asked for.
        rows: One per crop: file (name, with the frame number in a video), region, size of the picture, SHA-256 of the
            crop's pixels.
        skipped: Files that could not be read, each once.
        duplicates: Candidates that were left out because they show what another one shows.
        without_person: How many of the crops show nobody whom the model recognises.
        source_sha256: Hashes of the files that pin the data set, by name; empty for a folder of pictures.
    """

    crops: NDArray[np.uint8]
    source: str
    kind: str
    seed: int
    asked: int
    rows: list[dict[str, object]]
    skipped: list[str]
    duplicates: int
    without_person: int
    source_sha256: dict[str, str]

    def to_dict(self) -> dict[str, object]:
        """For ``calibration.json``: enough to rebuild the set and to check it."""
        return {
            "source": self.source,
            "source_sha256": self.source_sha256,
            "kind": self.kind,
            "rule": f"random pool of at most {_POOL_PER_CROP} candidates per crop, by seed; {RULE}",
            "seed": self.seed,
            "asked": self.asked,
            "count": len(self.crops),
            "skipped": self.skipped,
            "duplicates": self.duplicates,
            "without_person": self.without_person,
            "crops": self.rows,
        }


@dataclass(frozen=True)
class _Candidate:
    """One person to crop, or a picture in which one has to be found (``person`` is None)."""

    picture: Picture
    person: int | None

    @property
    def name(self) -> str:
        return self.picture.name if self.person is None else f"{self.picture.name}#{self.person}"

    def region(self, spec: ModelSpec) -> NDArray[np.float64]:
        assert self.picture.boxes_xywh is not None
        assert self.person is not None
        box = self.picture.boxes_xywh[self.person]
        return regions_from_boxes(box, spec.aspect, spec.crop_padding)


@dataclass(frozen=True)
class _Crop:
    """One crop, its record, how much it looks like a person, and whether it is one."""

    pixels: Image
    row: dict[str, object]
    score: float
    person: bool


def collect(
    data: PictureData,
    spec: ModelSpec,
    count: int,
    seed: int,
    find: FindRegion,
    progress: Progress = lambda stage, done, total: None,
    *,
    minimum: int = MIN_SAMPLES,
) -> CropSet:
    """Choose ``count`` crops that differ from each other, fewer where there are fewer.

    A seeded random pool of four candidates per crop is brought into farthest-point order, without duplicates
    (``diversity.py``), and taken from the front. Where boxes are known, a candidate is a person's crop; elsewhere it
    is a picture, around the person whom ``find`` finds, and those without a person fill up what is missing, best first.

    Args:
        data: Any data set with pictures.
        spec: The model's crop size and padding.
        count: How many crops at most.
        seed: Seed of the selection.
        find: Finds the person where no box is given.
        progress: Told the stage, how much of it is done, and out of how much.
        minimum: Fewer crops than this (or than ``count``) are an error.

    Raises:
        DatasetError: The data hold nothing usable, or too few crops come out.
    """
    candidates = [_Candidate(p, i) for p in data.pictures() for i in _people(p)]
    pool = _pool(candidates, seed, _POOL_PER_CROP * count)
    usable, order = _in_diverse_order(pool, spec, progress)
    chosen: list[_Crop] = []
    empty: list[_Crop] = []
    for done, candidate in enumerate(order, start=1):
        if len(chosen) == count:
            break
        found = _crop(candidate, spec, find)
        (chosen if found.person else empty).append(found)
        empty = sorted(empty, key=lambda crop: -crop.score)[:count]
        progress("take crops", max(done, len(chosen)), min(len(order), max(count, done)))
    fill = empty[: count - len(chosen)]
    chosen += fill
    random.Random(seed).shuffle(chosen)
    skipped = sorted({c.picture.file for c in pool} - {c.picture.file for c in usable})
    if len(chosen) < min(minimum, count):
        raise DatasetError(_too_few(data, len(chosen), len(candidates), skipped, min(minimum, count)))
    return CropSet(
        crops=np.stack([found.pixels for found in chosen]),
        source=data.path.name,
        kind=data.kind,
        seed=seed,
        asked=count,
        rows=[found.row for found in chosen],
        skipped=skipped,
        duplicates=len(usable) - len(order),
        without_person=len(fill),
        source_sha256={path.name: sha256_file(path) for path in data.sources()},
    )


def _people(picture: Picture) -> Sequence[int | None]:
    return (None,) if picture.boxes_xywh is None else range(len(picture.boxes_xywh))


def _pool(candidates: list[_Candidate], seed: int, size: int) -> list[_Candidate]:
    """A seeded random part."""
    shuffled = list(candidates)
    random.Random(seed).shuffle(shuffled)
    return shuffled[:size]


def _in_diverse_order(
    pool: list[_Candidate], spec: ModelSpec, progress: Progress
) -> tuple[list[_Candidate], list[_Candidate]]:
    """The candidates that can be read, and those of them that are no duplicates, most different first.

    They are read in the data set's order, which is quicker in a video.
    """
    thumbnails = {}
    for done, i in enumerate(sorted(range(len(pool)), key=lambda i: pool[i].picture.name), start=1):
        image = pool[i].picture.read()
        if image is not None:
            known = pool[i].person is not None
            thumbnails[i] = thumbnail(crop(image, pool[i].region(spec), spec.input_wh)[0] if known else image)
        progress("compare pictures", done, len(pool))
    usable = sorted(thumbnails)
    order = diverse_order([thumbnails[i] for i in usable])
    return [pool[i] for i in usable], [pool[usable[j]] for j in order]


def _crop(candidate: _Candidate, spec: ModelSpec, find: FindRegion) -> _Crop:
    image = candidate.picture.read()
    if image is None:
        raise DatasetError(f"{candidate.name}: could be read, and now it cannot: is it being changed?")
    if candidate.person is None:
        region, score, person = find(image)
    else:
        region, score, person = candidate.region(spec), 1.0, True
    pixels = crop(image, region, spec.input_wh)[0]
    row: dict[str, object] = {
        "file": candidate.name,
        "region": [round(float(v), 2) for v in region[0]],
        "image_wh": [image.shape[1], image.shape[0]],
        "sha256": hashlib.sha256(pixels.tobytes()).hexdigest(),
    }
    return _Crop(pixels, row, score, person)


def _too_few(data: PictureData, found: int, candidates: int, skipped: list[str], needed: int) -> str:
    unread = f", {len(skipped)} files unreadable ({', '.join(skipped[:_NAMED])})" if skipped else ""
    return (
        f"{data.path}: {found} usable crops of {candidates} candidates{unread}; at least {needed} different ones are "
        "needed: add pictures of people as your camera sees them"
    )
