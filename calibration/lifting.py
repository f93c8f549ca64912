"""Lifting models on poses with known truth, and how far each variant is from the baseline: millimetres."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from edgepose.calibration.datasets.base import LiftingClip, LiftingData
from edgepose.calibration.evidence import LiftAgreement, LiftEvidence, LiftValidation
from edgepose.calibration.metrics import percentiles
from edgepose.calibration.metrics_3d import LiftingScorer, joint_errors_mm
from edgepose.errors import DatasetError, EngineError
from edgepose.files import sha256_file
from edgepose.lifter import Lifter
from edgepose.lifting import liftable
from edgepose.skeletons import get_skeleton

__all__ = ["lift_agreement", "validate_lifting"]

Floats = NDArray[np.float32]


def lift_agreement(truth: Floats, other: Floats, joints: tuple[str, ...]) -> LiftAgreement:
    """Compare a variant's poses (N, K, 3) in metres with the baseline's; ``joints`` are the names of the K joints."""
    errors = joint_errors_mm(truth, other)
    noise = float(np.square(truth - other).sum())
    power = float(np.square(truth).sum())
    return LiftAgreement(
        poses=len(truth),
        mean_mm=float(errors.mean()),
        p95_mm=float(np.percentile(errors, 95)),
        worst_mm=float(errors.mean(axis=1).max()),
        joint_mm={joint: float(errors[:, k].mean()) for k, joint in enumerate(joints)},
        percentiles_mm=percentiles(errors),
        max_abs_error=float(np.abs(truth - other).max()),
        snr_db=10 * math.log10(power / noise) if noise and power else math.inf,
    )


def validate_lifting(
    lifters: Mapping[str, Lifter],
    data: LiftingData,
    *,
    baseline: str,
    flip: bool = True,
    limit: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LiftValidation:
    """Judge every variant against the truth, and compare it with the baseline.

    Frames that the protocol does not count are left out of both, and so are people of whom too few joints are known.

    Args:
        lifters: By variant name; all of one model.
        data: Clips with 2D keypoints and the truth.
        baseline: Name of the variant to compare with.
        flip: Average with the answer for the mirrored pose.
        limit: Fewer clips.
        progress: Told how many clips are done; the total is not known before.

    Raises:
        DatasetError: The data do not fit the model, or hold nothing to measure.
        EngineError: The baseline failed. Another variant that fails is left out, with the reason.
    """
    run = _Run(lifters, baseline, flip, data.skeleton)
    for done, clip in enumerate(data.clips(limit), start=1):
        run.add(clip)
        progress(done, 0)
    if not run.poses:
        raise DatasetError(f"{data.path}: no pose to lift: check the data and the limit")
    return LiftValidation(
        kind=data.kind,
        data=str(data.path),
        data_sha256={path.name: sha256_file(path) for path in data.sources()},
        keypoints="of the data set",
        skeleton=lifters[baseline].spec.skeleton,
        baseline=baseline,
        flip=flip,
        poses=run.poses,
        skipped=(f"poses with too few joints to be lifted: {run.unfit}",) if run.unfit else (),
        rows=run.rows(),
        failed=run.failed,
    )


@dataclass
class _Run:
    """What was found so far."""

    lifters: Mapping[str, Lifter]
    baseline: str
    flip: bool
    skeleton: str
    poses: int = 0
    unfit: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        target = self.lifters[self.baseline].spec.skeleton
        if target != self.skeleton:
            raise DatasetError(f"the truth has the joints of {self.skeleton}, the model those of {target}")
        self.joints = get_skeleton(target).joints
        self._running = dict(self.lifters)
        self._answers: dict[str, list[Floats]] = {name: [] for name in self.lifters}
        self._scorers = {name: LiftingScorer(target) for name in self.lifters}
        self._seconds = dict.fromkeys(self.lifters, 0.0)

    def add(self, clip: LiftingClip) -> None:
        """Lift the frames of a clip that count with every variant."""
        counted = np.asarray(clip.valid, bool)
        fit = counted & liftable(clip.keypoints_xy)
        self.unfit += int((counted & ~fit).sum())
        if not fit.any():
            return
        self.poses += int(fit.sum())
        scored = replace(
            clip, keypoints_xy=clip.keypoints_xy[fit], keypoints_xyz=clip.keypoints_xyz[fit], valid=fit[fit]
        )
        for name in tuple(self._running):
            xyz = self._lift(name, scored)
            if xyz is not None:
                self._answers[name].append(xyz)
                self._scorers[name].add(scored, xyz)

    def _lift(self, name: str, clip: LiftingClip) -> Floats | None:
        start = time.perf_counter()
        try:
            xyz = self._running[name].keypoints_xyz(clip.keypoints_xy, clip.image_wh, flip=self.flip)
        except EngineError as error:
            if name == self.baseline:
                raise
            del self._running[name]
            self.failed[name] = f"{error} (after {self.poses} poses)"
            return None
        self._seconds[name] += time.perf_counter() - start
        return xyz

    def rows(self) -> tuple[LiftEvidence, ...]:
        """The verdict on every variant that came through."""
        truth = np.concatenate(self._answers[self.baseline])
        return tuple(
            LiftEvidence(
                variant=name,
                engine=f"{lifter.engine.name} {lifter.engine.device}",
                accuracy=self._scorers[name].result(),
                agreement=lift_agreement(truth, np.concatenate(self._answers[name]), self.joints),
                seconds=self._seconds[name],
            )
            for name, lifter in self._running.items()
        )
