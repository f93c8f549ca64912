"""How many points each block of a bundle's model costs when it alone is INT8."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from edgepose.bundle import Bundle
from edgepose.calibration.datasets.registry import open_pictures
from edgepose.calibration.samples import collect
from edgepose.converters.budget import Budget, Judge, Sensitivity, rank_blocks
from edgepose.converters.recipes import Recipe, recipe_from_dict
from edgepose.converters.variants import Job, get_variant
from edgepose.errors import ConversionError
from edgepose.pipeline import Estimator
from edgepose.runtimes.load import load, load_file

__all__ = ["sensitivity"]

_CALIBRATE, _VERIFY = 16, 32
_BASELINE = "onnx-fp32"


def sensitivity(
    path: Path,
    variant: str,
    calibration: Path,
    *,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> list[Sensitivity]:
    """Rank the blocks of an INT8 variant, worst first.

    The bundle needs ``onnx-fp32`` to compare with, and for TFLite ``tflite-fp32`` to start from.

    Args:
        path: The bundle.
        variant: The INT8 variant whose recipe and engine to use.
        calibration: Any data set, images or a video: 16 crops calibrate, 32 others judge.
        seed: Seed of the choice of crops.
        progress: Told about each stage.

    Raises:
        BundleError, ConversionError, DatasetError: The bundle, the variant or the pictures cannot be used.
    """
    bundle, row = Bundle.open(path), get_variant(variant)
    if not row.calibrated:
        raise ConversionError(f"{variant}: is no INT8 variant")
    recipe = recipe_from_dict(bundle.variant(variant).recipe["quantizer"])
    source = bundle.checked_variant(bundle.variant(row.source))
    fp32 = load(path, variant=_BASELINE)
    data = open_pictures(calibration)
    crops = collect(data, bundle.spec, _CALIBRATE + _VERIFY, seed, fp32.best_region, progress).crops
    held_back = min(_VERIFY, len(crops) // 2)
    judge = Judge(fp32, crops[:held_back], Budget(0.0))
    with tempfile.TemporaryDirectory(prefix="edgepose-") as scratch:

        def make(alone: Recipe) -> Estimator:
            file = Path(scratch) / row.files[0]
            row.make(Job(source, file, bundle.spec, {}, alone, crops[held_back:][:_CALIBRATE]))
            return load_file(file)

        layers = row.layers(row.read(source))
        return rank_blocks(
            make, recipe, layers, judge.drop_of, lambda done, total: progress("quantize each block alone", done, total)
        )
