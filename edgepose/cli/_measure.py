"""Run a validation with a progress line: of 2D models on pictures, of lifting models on poses, of both in a chain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepose.calibration.datasets.registry import LIFTING, open_lifting, open_pictures
from edgepose.cli._console import progress
from edgepose.errors import DatasetError, EdgePoseError

if TYPE_CHECKING:
    from edgepose.calibration.datasets.base import PictureData
    from edgepose.calibration.evidence import LiftValidation, Validation
    from edgepose.model import LoadedModel

__all__ = ["measure", "measure_chain", "with_latency"]

_UNLABELED = 128
_LATENCY_ROUNDS = 30


def measure(
    models: Mapping[str, LoadedModel],
    kind: str | None,
    root: Path,
    *,
    detections: Path | None = None,
    baseline: str | None = None,
    flip: bool | None = None,
    limit: int | None = None,
    workers: int = 2,
) -> Validation | LiftValidation:
    """Measure every variant of one model.

    Args:
        models: By variant name.
        kind: A data set's, by default what the root looks like.
        root: The data.
        detections: A COCO detection file.
        baseline: What to compare with, by default FP32.
        flip: Average with the mirrored input; by default what ``edgepose run`` does.
        limit: At most so many pictures, or clips.
        workers: Threads that read pictures.

    Raises:
        EdgePoseError: The data are missing, damaged, or for another kind of model.
    """
    base = _baseline(models, baseline)
    if models[base].spec.task == "lift3d":
        return _lifting(models, kind, root, base, flip, limit, detections)
    from edgepose.calibration.validate import validate

    data, limit = _pictures(root, kind, detections, limit)
    with progress() as update:
        return validate(
            models,  # type: ignore[arg-type]  # the task says that they are estimators
            data,
            baseline=base,
            flip=bool(flip),
            limit=limit,
            workers=workers,
            progress=lambda done, total: update("pictures", done, total),
        )


def measure_chain(
    estimators: Mapping[str, Any],
    lifters: Mapping[str, Any],
    kind: str | None,
    root: Path,
    *,
    detections: Path | None = None,
    baseline: str | None = None,
    flip: bool | None = None,
    limit: int | None = None,
    workers: int = 2,
) -> LiftValidation:
    """Measure every pair of a 2D variant and a lifting variant; see :func:`measure`."""
    from edgepose.calibration.chain import validate_chain

    if any(model.spec.task != "lift3d" for model in lifters.values()):
        raise EdgePoseError("--chain: a bundle of a lifting model (2D to 3D) is needed, and this one takes pictures")
    data, limit = _pictures(root, kind, detections, limit)
    with progress() as update:
        return validate_chain(
            estimators,
            lifters,
            data,
            baseline=(_baseline(estimators, baseline), _baseline(lifters, None)),
            flip=flip is not False,
            limit=limit,
            workers=workers,
            progress=lambda done, total: update("pictures", done, total),
        )


def with_latency(
    result: Validation | LiftValidation, models: Mapping[str, LoadedModel], bundle: Path
) -> Validation | LiftValidation:
    """Add sizes and the median latency of one sample, so that the report can set speed against accuracy."""
    from edgepose.runtimes.latency import measure_latency
    from edgepose.runtimes.load import model_bytes, model_files

    running = {row.variant: models[row.variant] for row in result.rows}
    with progress() as update:
        times = measure_latency(
            running, iterations=_LATENCY_ROUNDS, warmup=5, progress=lambda done, total: update("latency", done, total)
        )
    latency = {row.variant: row.infer_ms for row in times}
    size = {name: model_bytes(path) / 1e6 for name, path in model_files(bundle).items() if name in running}
    rows: list[Any] = [
        replace(row, latency_ms=latency[row.variant], megabytes=size.get(row.variant)) for row in result.rows
    ]
    whole: Any = result
    measured: Validation | LiftValidation = replace(whole, rows=tuple(rows))
    return measured


def _lifting(
    models: Mapping[str, Any],
    kind: str | None,
    root: Path,
    base: str,
    flip: bool | None,
    limit: int | None,
    detections: Path | None,
) -> LiftValidation:
    from edgepose.calibration.lifting import validate_lifting

    if kind is None and root.suffix.lower() == ".npz":
        kind = "mocap"
    if kind not in LIFTING:
        raise DatasetError(
            f"{root}: a lifting model is scored on poses with their truth in space: give --data {', '.join(LIFTING)}; "
            "on pictures, measure it behind a 2D bundle: edgepose validate BUNDLE2D --chain BUNDLE3D"
        )
    if detections:
        raise click.UsageError("--detections goes with --data coco")
    with progress() as update:
        return validate_lifting(
            models,
            open_lifting(root, kind),
            baseline=base,
            flip=flip is not False,
            limit=limit,
            progress=lambda done, total: update("clips", done, total),
        )


def _pictures(
    root: Path, kind: str | None, detections: Path | None, limit: int | None
) -> tuple[PictureData, int | None]:
    """The data, and how many of them: without labels not all."""
    data = open_pictures(root, kind, detections)
    if detections and data.kind != "coco":
        raise click.UsageError("--detections goes with --data coco")
    return data, _UNLABELED if limit is None and data.joints is None else limit


def _baseline(names: Iterable[str], asked: str | None) -> str:
    names = list(names)
    if asked is None:
        fp32 = [name for name in names if name.endswith("-fp32")]
        if not fp32:
            known = ", ".join(names)
            raise EdgePoseError(f"no FP32 variant runs here to compare with: name another with --baseline ({known})")
        return fp32[0]
    if asked not in names:
        raise EdgePoseError(f"--baseline {asked}: not among the variants that run here: {', '.join(names)}")
    return asked
