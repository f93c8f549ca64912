"""The accuracy of every variant of a bundle on the same crops, in one pass over the data."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.calibration.agreement import Comparison
from edgepose.calibration.datasets.base import Image, Picture, PictureData, Scorer
from edgepose.calibration.evidence import Validation, VariantEvidence
from edgepose.calibration.metrics import drop_interval
from edgepose.calibration.reading import RegionFinder, read_ahead
from edgepose.errors import DatasetError, EngineError
from edgepose.files import sha256_file
from edgepose.geometry import regions_from_boxes, scale_and_shift
from edgepose.pipeline import Estimator
from edgepose.preprocess import crop
from edgepose.types import Engine

__all__ = ["validate"]

Progress = Callable[[int, int], None]
Regions = NDArray[np.float64]
Heatmaps = dict[str, NDArray[np.float32]]


def validate(
    estimators: Mapping[str, Estimator],
    data: PictureData,
    *,
    baseline: str,
    flip: bool = False,
    limit: int | None = None,
    batch: int = 8,
    workers: int = 2,
    progress: Progress = lambda done, total: None,
) -> Validation:
    """Judge every variant against the labels, and compare it with the baseline.

    Args:
        estimators: By variant name; all of one model.
        data: Pictures, with labels or without. People without boxes are found by the baseline, and followed within
            a clip; every variant sees the same crops.
        baseline: Name of the variant to compare with.
        flip: Average with the mirrored crop.
        limit: Fewer pictures.
        batch: Crops per engine call at most.
        workers: Threads that read pictures ahead.
        progress: Told how many pictures are done, and out of how many.

    Raises:
        DatasetError: The labels do not fit the model, pictures are missing, or none can be read.
        EngineError: The baseline failed. Another variant that fails is left out, with the reason.
    """
    total = min(limit or len(data), len(data))
    with _Cpu() as cpu:
        run = _Run(estimators, data, baseline, flip, batch, cpu)
        for done, (picture, image, read_s) in enumerate(read_ahead(data, limit, workers), start=1):
            cpu.readers += read_s
            run.add(picture, image)
            progress(done, total)
        if not run.crops:
            unread = f", {len(run.skipped)} could not be read ({', '.join(run.skipped[:10])})" if run.skipped else ""
            raise DatasetError(f"{data.path}: nobody to crop on {total} pictures{unread}: check files, boxes and limit")
        rows = run.rows()
    return Validation(
        kind=data.kind,
        data=str(data.path),
        data_sha256={path.name: sha256_file(path) for path in data.sources()},
        boxes=data.boxes,
        skeleton=estimators[baseline].spec.skeleton,
        baseline=baseline,
        flip=flip,
        score_threshold=run.spec.score_threshold,
        images=run.images,
        crops=run.crops,
        skipped=tuple(run.skipped),
        rows=rows,
        failed=run.failed,
        cpu_seconds=cpu.total,
        host_cpu_seconds=cpu.host,
    )


@dataclass
class _Cpu:
    """CPU time of the process, and the part of it that this thread and the readers spend outside the engines."""

    readers: float = 0.0
    engines: float = 0.0
    total: float = 0.0
    host: float = 0.0

    def __enter__(self) -> _Cpu:
        self._start = time.process_time(), time.thread_time()
        return self

    def __exit__(self, *_: object) -> None:
        process, thread = self._start
        self.total = time.process_time() - process
        self.host = time.thread_time() - thread - self.engines + self.readers


@dataclass
class _Run:
    """What was found so far."""

    estimators: Mapping[str, Estimator]
    data: PictureData
    baseline: str
    flip: bool
    batch: int
    cpu: _Cpu
    images: int = 0
    crops: int = 0
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.spec = self.estimators[self.baseline].spec
        self._running = {name: _timed(estimator, self.cpu) for name, estimator in self.estimators.items()}
        scorers = {name: self.data.scorer(self.spec) for name in self.estimators}
        self._scorers: dict[str, Scorer] = {name: scorer for name, scorer in scorers.items() if scorer is not None}
        self._comparison = Comparison(self.spec, tuple(self.estimators), self.baseline)
        self._seconds = dict.fromkeys(self.estimators, 0.0)
        self._finder = RegionFinder(self._running[self.baseline])
        self._clips: dict[tuple[int, int], int] = {}

    def add(self, picture: Picture, image: Image | None) -> None:
        """Run every variant on a picture's people."""
        if image is None:
            self.skipped.append(picture.name)
            return
        picture = self._with_gaps(picture)
        regions = self._regions(picture, image)
        answers = self._answers(picture, image, regions)
        for name in self._running:
            if name in self._scorers:
                self._scorers[name].add(picture, regions, *answers[name])
        if picture.boxes_xywh is None:
            self._finder.follow(picture, *answers[self.baseline])
        self.images += bool(len(regions))
        self.crops += len(regions)

    def rows(self) -> tuple[VariantEvidence, ...]:
        """The verdict on every variant that came through."""
        agreements = self._comparison.result()
        return tuple(
            VariantEvidence(
                variant=name,
                engine=f"{estimator.engine.name} {estimator.engine.device}",
                accuracy=self._scorers[name].result() if name in self._scorers else None,
                agreement=agreements[name],
                seconds=self._seconds[name],
                worst=self._comparison.exhibits(name),
                drop_interval=self._drop_interval(name),
            )
            for name, estimator in self._running.items()
        )

    def _drop_interval(self, name: str) -> tuple[float, float] | None:
        if name == self.baseline or name not in self._scorers:
            return None
        base, other = self._scorers[self.baseline].people(), self._scorers[name].people()
        return None if base is None or other is None else drop_interval(base[0], other[0], base[1])

    def _with_gaps(self, picture: Picture) -> Picture:
        """A picture that could not be read ends its clip: those before and after it do not follow each other."""
        if picture.clip is None:
            return picture
        key = picture.clip, len(self.skipped)
        return replace(picture, clip=self._clips.setdefault(key, len(self._clips)))

    def _regions(self, picture: Picture, image: Image) -> Regions:
        if picture.boxes_xywh is None:
            return self._finder(picture, image)
        return regions_from_boxes(picture.boxes_xywh, self.spec.aspect, self.spec.crop_padding)

    def _answers(self, picture: Picture, image: Image, regions: Regions) -> Mapping[str, _Answer]:
        """Keypoints in picture pixels and scores of all of a picture's people, by variant."""
        joints = len(self.spec.joints.joints)
        areas = picture.person_areas(regions, self.spec.crop_padding)
        parts: dict[str, list[_Answer]] = {name: [] for name in self.estimators}
        for start in range(0, len(regions), self.batch):
            part = regions[start : start + self.batch]
            crops = crop(image, part, self.spec.input_wh)
            names = tuple(f"{picture.name}#{start + i}" if len(regions) > 1 else picture.name for i in range(len(part)))
            part_areas = areas[start : start + self.batch]
            found = self._comparison.add(self._heatmaps(crops), crops, names, part, part_areas, picture.clip)
            scale, shift = scale_and_shift(part, self.spec.input_wh)
            for name, (keypoints, scores) in found.items():
                in_picture = (keypoints * scale[:, None, None] + shift[:, None]).astype(np.float32)
                parts[name].append((in_picture, scores))
        nobody = np.zeros((0, joints, 2), np.float32), np.zeros((0, joints), np.float32)
        return {name: _joined([nobody, *answers]) for name, answers in parts.items()}

    def _heatmaps(self, crops: NDArray[np.uint8]) -> Heatmaps:
        """Every variant's; one that fails is left out from here on."""
        heatmaps = {}
        for name, estimator in tuple(self._running.items()):
            start = time.perf_counter()
            try:
                heatmaps[name] = estimator.heatmaps(crops, self.flip)
                self._seconds[name] += time.perf_counter() - start
            except EngineError as error:
                if name == self.baseline:
                    raise
                del self._running[name]
                self.failed[name] = f"{error} (after {self.crops} crops)"
        return heatmaps


_Answer = tuple[NDArray[np.float32], NDArray[np.float32]]


def _joined(answers: list[_Answer]) -> _Answer:
    keypoints, scores = zip(*answers, strict=True)
    return np.concatenate(keypoints), np.concatenate(scores)


def _timed(estimator: Estimator, cpu: _Cpu) -> Estimator:
    """The same estimator, whose engine's CPU time on this thread is counted."""
    return Estimator(_TimedEngine(estimator.engine, cpu), estimator.spec, estimator.variant)


class _TimedEngine:
    """An engine that adds this thread's time in ``run`` to the engines' CPU time."""

    def __init__(self, engine: Engine, cpu: _Cpu) -> None:
        self._engine, self._cpu = engine, cpu
        self.name, self.device, self.metadata = engine.name, engine.device, engine.metadata
        self.inputs, self.outputs = engine.inputs, engine.outputs

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See :class:`edgepose.types.Engine`."""
        start = time.thread_time()
        try:
            return self._engine.run(feeds)
        finally:
            self._cpu.engines += time.thread_time() - start

    def placement(self) -> dict[str, int]:
        """See :class:`edgepose.types.Engine`."""
        return self._engine.placement()

    def close(self) -> None:
        """See :class:`edgepose.types.Engine`."""
        self._engine.close()
