"""What conversion does differently for 2D models and for lifting models: samples, verdict, evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgepose.calibration.agreement import compare_on_crops
from edgepose.calibration.datasets.registry import open_pictures
from edgepose.calibration.evidence import (
    Agreement,
    LiftAgreement,
    LiftEvidence,
    LiftValidation,
    Validation,
    VariantEvidence,
)
from edgepose.calibration.lifting import lift_agreement
from edgepose.converters.budget import Budget, Judge, LiftJudge, PictureJudge
from edgepose.converters.samples import Samples, crop_samples, keypoint_samples, noise_samples
from edgepose.errors import ConversionError
from edgepose.lifter import Lifter
from edgepose.model import LoadedModel
from edgepose.pipeline import Estimator
from edgepose.types import ModelSpec

if TYPE_CHECKING:
    from edgepose.converters.convert import ConversionRow

__all__ = ["BASELINE", "Compared", "Lift3d", "Pose2d", "Task", "task_of"]

BASELINE = "onnx-fp32"
"""What every variant is compared with."""

Progress = Callable[[str, int, int], None]


class Compared(Protocol):
    """Every variant beside the baseline."""

    @property
    def agreements(self) -> Mapping[str, Any]:
        """By variant: how far it is from the baseline."""
        ...

    def validation(self, rows: Sequence[ConversionRow]) -> Validation | LiftValidation:
        """What the conversion itself found out, in the words of every later validation."""
        ...


class Task(Protocol):
    """One kind of model."""

    def collect(self, fp32: Any, size: int, seed: int, progress: Progress) -> Samples:
        """Samples to calibrate and verify with.

        Raises:
            DatasetError: Too few usable ones.
        """
        ...

    def judge(self, fp32: Any, samples: Samples, budget: Budget) -> Judge:
        """Measures what a variant loses."""
        ...

    def compare(self, models: Mapping[str, Any], samples: Samples, progress: Progress) -> Compared:
        """Run every model on the samples to verify with."""
        ...


def task_of(spec: ModelSpec, calibration: Path | None, keypoints_from: Path | None) -> Task:
    """The task of a model, with the data to calibrate with.

    Raises:
        ConversionError: ``keypoints_from`` is given for a 2D model.
        DatasetError: The data cannot be opened.
    """
    if spec.task == "lift3d":
        return Lift3d(spec, calibration, keypoints_from)
    if keypoints_from is not None:
        raise ConversionError(f"{spec.name}: takes pictures: --keypoints-from is for lifting models")
    return Pose2d(spec, calibration)


class Pose2d:
    """Pictures of people to heatmaps; implements :class:`Task`."""

    def __init__(self, spec: ModelSpec, calibration: Path | None) -> None:
        self._spec = spec
        self._data = open_pictures(calibration) if calibration is not None else None

    def collect(self, fp32: Estimator, size: int, seed: int, progress: Progress) -> Samples:
        """See :class:`Task`."""
        if self._data is None:
            return noise_samples(self._spec, seed)
        return crop_samples(self._data, fp32, size, seed, progress)

    def judge(self, fp32: Estimator, samples: Samples, budget: Budget) -> Judge:
        """See :class:`Task`."""
        return PictureJudge(fp32, samples.verify, budget)

    def compare(self, models: Mapping[str, Estimator], samples: Samples, progress: Progress) -> Compared:
        """See :class:`Task`."""
        comparison = compare_on_crops(
            models,
            samples.verify,
            samples.names,
            BASELINE,
            lambda done, total: progress("verify on crops held back", done, total),
        )
        worst = {name: comparison.exhibits(name) for name in models}
        return _ComparedCrops(self._spec, models, samples, comparison.result(), worst)


class Lift3d:
    """Keypoints to poses in space; implements :class:`Task`."""

    def __init__(self, spec: ModelSpec, calibration: Path | None, keypoints_from: Path | None) -> None:
        self._spec, self._calibration, self._keypoints_from = spec, calibration, keypoints_from
        if calibration is None and keypoints_from is not None:
            raise ConversionError("--keypoints-from goes with pictures or a video in --calib")

    def collect(self, fp32: Lifter, size: int, seed: int, progress: Progress) -> Samples:
        """See :class:`Task`."""
        if self._calibration is None:
            return noise_samples(self._spec, seed)
        return keypoint_samples(self._calibration, self._keypoints_from, self._spec, size, seed, progress)

    def judge(self, fp32: Lifter, samples: Samples, budget: Budget) -> Judge:
        """See :class:`Task`."""
        return LiftJudge(fp32, samples.verify, budget)

    def compare(self, models: Mapping[str, Lifter], samples: Samples, progress: Progress) -> Compared:
        """See :class:`Task`."""
        progress("verify on poses held back", 0, 0)
        answers = {name: model.lifted(samples.verify, flip=False) for name, model in models.items()}
        joints = self._spec.joints.joints
        agreements = {name: lift_agreement(answers[BASELINE], xyz, joints) for name, xyz in answers.items()}
        return _ComparedPoses(self._spec, models, samples, agreements)


@dataclass(frozen=True)
class _ComparedCrops:
    spec: ModelSpec
    models: Mapping[str, Estimator]
    samples: Samples
    agreements: Mapping[str, Agreement]
    worst: Mapping[str, tuple[Any, ...]]

    def validation(self, rows: Sequence[ConversionRow]) -> Validation:
        """See :class:`Compared`."""
        return Validation(
            kind="crops held back from calibration" if self.samples.taken else "noise",
            data=self.samples.source,
            data_sha256=self.samples.source_sha256,
            boxes="as for calibration",
            skeleton=self.spec.skeleton,
            baseline=BASELINE,
            flip=False,
            images=len(self.samples.verify),
            crops=len(self.samples.verify),
            skipped=self.samples.skipped,
            rows=tuple(
                VariantEvidence(
                    variant=row.variant,
                    engine=_engine(self.models[row.variant]),
                    accuracy=None,
                    agreement=self.agreements[row.variant],
                    seconds=row.seconds,
                    worst=self.worst[row.variant],
                    megabytes=row.megabytes,
                )
                for row in rows
            ),
        )


@dataclass(frozen=True)
class _ComparedPoses:
    spec: ModelSpec
    models: Mapping[str, Lifter]
    samples: Samples
    agreements: Mapping[str, LiftAgreement]

    def validation(self, rows: Sequence[ConversionRow]) -> LiftValidation:
        """See :class:`Compared`."""
        return LiftValidation(
            kind="poses held back from calibration" if self.samples.taken else "noise",
            data=self.samples.source,
            data_sha256=self.samples.source_sha256,
            keypoints="as for calibration",
            skeleton=self.spec.skeleton,
            baseline=BASELINE,
            flip=False,
            poses=len(self.samples.verify),
            skipped=self.samples.skipped,
            rows=tuple(
                LiftEvidence(
                    variant=row.variant,
                    engine=_engine(self.models[row.variant]),
                    accuracy=None,
                    agreement=self.agreements[row.variant],
                    seconds=row.seconds,
                    megabytes=row.megabytes,
                )
                for row in rows
            ),
        )


def _engine(model: LoadedModel) -> str:
    return f"{model.engine.name} {model.engine.device}"
