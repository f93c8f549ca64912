"""What quantization costs at the end of a chain, in millimetres: pictures -> 2D model -> lifting model.

Each 2D variant finds the joints in the same crops, each lifting variant lifts what each of them found, and every pair
is compared with the pair of baselines. So the pairs with one baseline in them tell whose loss it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgepose.calibration.datasets.base import Image, Picture, PictureData
from edgepose.calibration.evidence import LiftEvidence, LiftValidation
from edgepose.calibration.lifting import lift_agreement
from edgepose.calibration.reading import RegionFinder, read_ahead
from edgepose.errors import DatasetError, EngineError
from edgepose.files import sha256_file
from edgepose.geometry import regions_from_boxes
from edgepose.lifter import Lifter
from edgepose.pipeline import Estimator
from edgepose.skeletons import skeleton_map
from edgepose.types import Poses

__all__ = ["pair_name", "validate_chain"]

Floats = NDArray[np.float32]
Pair = tuple[str, str]


def pair_name(pair: Pair) -> str:
    """For people: ``onnx-int8 > tflite-int8``."""
    return f"{pair[0]} > {pair[1]}"


def validate_chain(
    estimators: Mapping[str, Estimator],
    lifters: Mapping[str, Lifter],
    data: PictureData,
    *,
    baseline: Pair,
    flip: bool = True,
    limit: int | None = None,
    workers: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LiftValidation:
    """Compare every pair of a 2D variant and a lifting variant with the pair of baselines.

    Args:
        estimators: 2D variants by name; all of one model.
        lifters: Lifting variants by name; all of one model.
        data: Pictures; labels are not used. People without boxes are found by the baseline, and followed within a clip.
        baseline: Names of the two variants to compare with.
        flip: Whether the lifting model averages with its answer for the mirrored pose.
        limit: Fewer pictures.
        workers: Threads that read pictures ahead.
        progress: Told how many pictures are done, and out of how many.

    Raises:
        EdgePoseError: There is no map between the two skeletons.
        DatasetError: Pictures are missing, or nobody on them can be lifted.
        EngineError: A baseline failed. Another variant that fails is left out, with the reason.
    """
    skeleton_map(estimators[baseline[0]].spec.skeleton, lifters[baseline[1]].spec.skeleton)
    run = _Run(estimators, lifters, baseline, flip)
    total = min(limit or len(data), len(data))
    for done, (picture, image, _) in enumerate(read_ahead(data, limit, workers), start=1):
        run.add(picture, image)
        progress(done, total)
    if not run.poses:
        raise DatasetError(f"{data.path}: nobody who can be lifted on {total} pictures: are whole bodies in view?")
    return LiftValidation(
        kind=f"chain on {data.kind}",
        data=str(data.path),
        data_sha256={path.name: sha256_file(path) for path in data.sources()},
        keypoints=f"found by the 2D variants; boxes: {data.boxes}",
        skeleton=lifters[baseline[1]].spec.skeleton,
        baseline=pair_name(baseline),
        flip=flip,
        poses=run.poses,
        skipped=run.remarks(),
        rows=run.rows(),
        failed=run.failed,
    )


@dataclass
class _Run:
    """What was found so far."""

    estimators: Mapping[str, Estimator]
    lifters: Mapping[str, Lifter]
    baseline: Pair
    flip: bool
    poses: int = 0
    unread: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        pairs = [(a, b) for a in self.estimators for b in self.lifters]
        self._xyz: dict[Pair, list[Floats]] = {pair: [] for pair in pairs}
        self._shifts: dict[str, list[Floats]] = {name: [] for name in self.estimators}
        self._seconds = dict.fromkeys(pairs, 0.0)
        self._finder = RegionFinder(self.estimators[self.baseline[0]])
        self._spec = self.estimators[self.baseline[0]].spec
        self._finding, self._lifting = dict(self.estimators), dict(self.lifters)
        self._unfit = 0

    def add(self, picture: Picture, image: Image | None) -> None:
        """Run every pair on a picture's people."""
        if image is None:
            self.unread.append(picture.name)
            return
        if picture.boxes_xywh is None:
            regions = self._finder(picture, image)
        else:
            regions = regions_from_boxes(picture.boxes_xywh, self._spec.aspect, self._spec.crop_padding)
        if not len(regions):
            return
        found = {name: self._find(name, image, regions) for name in tuple(self._finding)}
        poses = {name: people for name, (people, _) in found.items() if people is not None}
        base = poses[self.baseline[0]]
        self._lift(poses, {name: seconds for name, (_, seconds) in found.items()}, image)
        seen = base.scores >= self._spec.score_threshold
        for name, people in poses.items():
            self._shifts[name].append(np.linalg.norm(people.keypoints_xy - base.keypoints_xy, axis=-1)[seen])
        if picture.boxes_xywh is None:
            self._finder.follow(picture, base.keypoints_xy, base.scores)

    def _find(self, name: str, image: Image, regions: NDArray[np.float64]) -> tuple[Poses | None, float]:
        """A 2D variant's poses, and the seconds that they took; None once it has failed."""
        start = time.perf_counter()
        try:
            return self._finding[name].poses_at(image, regions), time.perf_counter() - start
        except EngineError as error:
            if name == self.baseline[0]:
                raise
            del self._finding[name]
            self._fail([(name, other) for other in self.lifters], error)
            return None, 0.0

    def _lift(self, poses: Mapping[str, Poses], seconds: Mapping[str, float], image: Image) -> None:
        """Every pair's poses in space; people whom the baseline cannot lift do not count."""
        size = image.shape[1], image.shape[0]
        fit: NDArray[np.bool_] | None = None
        for pair in sorted(self._xyz, key=lambda pair: pair != self.baseline):
            if pair[0] not in poses or pair[1] not in self._lifting:
                continue
            start = time.perf_counter()
            try:
                lifter = self._lifting[pair[1]]
                xyz = lifter.lift(poses[pair[0]], size, self._spec.score_threshold, flip=self.flip).keypoints_xyz
            except EngineError as error:
                if pair[1] == self.baseline[1]:
                    raise
                del self._lifting[pair[1]]
                self._fail([(other, pair[1]) for other in self.estimators], error)
                continue
            self._seconds[pair] += time.perf_counter() - start + seconds[pair[0]]
            assert xyz is not None
            if fit is None:
                fit = _whole(xyz)
                self.poses += int(fit.sum())
                self._unfit += int((~fit).sum())
            self._xyz[pair].append(xyz[fit])

    def _fail(self, pairs: list[Pair], error: EngineError) -> None:
        for pair in pairs:
            self._xyz.pop(pair, None)
            self.failed[pair_name(pair)] = f"{error} (after {self.poses} poses)"

    def remarks(self) -> tuple[str, ...]:
        """What is left out."""
        lines = (
            [f"pictures that could not be read: {len(self.unread)} ({', '.join(self.unread[:3])})"]
            if self.unread
            else []
        )
        if self._unfit:
            lines.append(f"people of whom the 2D baseline finds too few joints to be lifted: {self._unfit}")
        for name in self._finding:
            lost = int((~_whole(np.concatenate(self._xyz[name, self.baseline[1]]))).sum())
            if lost:
                lines.append(f"people of whom {name} finds too few joints to be lifted, unlike the baseline: {lost}")
        return tuple(lines)

    def rows(self) -> tuple[LiftEvidence, ...]:
        """The verdict on every pair that came through, over the people whom both it and the baseline lift."""
        return tuple(map(self._row, self._xyz))

    def _row(self, pair: Pair) -> LiftEvidence:
        estimator, lifter = self.estimators[pair[0]], self.lifters[pair[1]]
        truth, xyz = np.concatenate(self._xyz[self.baseline]), np.concatenate(self._xyz[pair])
        both = _whole(xyz)
        engines = [f"{model.engine.name} {model.engine.device}" for model in (estimator, lifter)]
        return LiftEvidence(
            variant=pair_name(pair),
            engine=" > ".join(dict.fromkeys(engines)),
            accuracy=None,
            agreement=lift_agreement(truth[both], xyz[both], lifter.spec.joints.joints),
            seconds=self._seconds[pair],
            shift_px=float(np.concatenate(self._shifts[pair[0]]).mean()),
        )


def _whole(xyz: Floats) -> NDArray[np.bool_]:
    """(N,) who could be lifted."""
    return np.asarray(np.isfinite(xyz).all(axis=(1, 2)))
