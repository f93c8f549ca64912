"""What each block of a bundle's model costs when it alone is INT8: points, or millimetres of a lifting model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from edgepose.bundle import Bundle
from edgepose.converters.budget import Budget, Sensitivity, rank_blocks
from edgepose.converters.recipes import Recipe, recipe_from_dict
from edgepose.converters.tasks import BASELINE, task_of
from edgepose.converters.variants import Job, get_variant
from edgepose.errors import ConversionError
from edgepose.model import LoadedModel
from edgepose.runtimes.load import load_model, load_model_file

__all__ = ["sensitivity"]

_CALIBRATE = 16


def sensitivity(
    path: Path,
    variant: str,
    calibration: Path,
    *,
    keypoints_from: Path | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> list[Sensitivity]:
    """Rank the blocks of an INT8 variant, worst first.

    The bundle needs ``onnx-fp32`` to compare with, and for TFLite ``tflite-fp32`` to start from.

    Args:
        path: The bundle.
        variant: The INT8 variant whose recipe and engine to use.
        calibration: Any data set, images or a video, or for a lifting model poses: 16 samples calibrate, others judge.
        keypoints_from: The 2D bundle that finds the joints on pictures, for a lifting model.
        seed: Seed of the choice of samples.
        progress: Told about each stage.

    Raises:
        BundleError, ConversionError, DatasetError: The bundle, the variant or the pictures cannot be used.
    """
    bundle, row = Bundle.open(path), get_variant(variant)
    if not row.calibrated:
        raise ConversionError(f"{variant}: is no INT8 variant")
    recipe = recipe_from_dict(bundle.variant(variant).recipe["quantizer"])
    source = bundle.checked_variant(bundle.variant(row.source))
    fp32 = load_model(path, variant=BASELINE)
    task = task_of(bundle.spec, calibration, keypoints_from)
    samples = task.collect(fp32, _CALIBRATE, seed, progress)
    judge = task.judge(fp32, samples, Budget(0.0))
    with tempfile.TemporaryDirectory(prefix="edgepose-") as scratch:

        def make(alone: Recipe) -> LoadedModel:
            file = Path(scratch) / row.files[0]
            row.make(Job(source, file, bundle.spec, {}, alone, samples.calibrate[:_CALIBRATE]))
            return load_model_file(file)

        layers = row.layers(row.read(source))
        return rank_blocks(
            make, recipe, layers, judge.drop_of, lambda done, total: progress("quantize each block alone", done, total)
        )
