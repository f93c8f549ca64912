"""Milliseconds of pruned models as they will be deployed: exported, quantized and run by the engine, side by side."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.converters.checkpoint import Checkpoint
from edgepose.converters.convert import always_float
from edgepose.converters.onnx import export_onnx
from edgepose.converters.recipes import Recipe, default_recipe
from edgepose.converters.rewrite import rewrite
from edgepose.converters.tasks import BASELINE
from edgepose.converters.variants import Job, VariantRow, get_variant
from edgepose.model import LoadedModel
from edgepose.runtimes.latency import TURN, time_models
from edgepose.runtimes.load import load_model_file

__all__ = ["Measure", "engine_latency"]

Measure = Callable[[Mapping[str, Checkpoint]], Mapping[str, float]]
"""Milliseconds of one inference by name; models that are measured together can be compared."""

_CALIBRATE = 4  # samples: latency depends on ranges hardly, and on which products of attention stay float
_SECONDS, _TURNS = 15.0, (20, 400)  # that all take together; turns of each, at least and at most


def engine_latency(
    variant: str,
    samples: NDArray[Any],
    *,
    engine: str | None = None,
    threads: int | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Measure:
    """Measures a variant, ``openvino-int8`` say, on this machine.

    All models run in every round, a few times in a row each. A model's latency is the first one's, times the median
    over the rounds of how much longer it took in the same round: so clocks and neighbours that change hit both.

    Args:
        variant: What to make of each model: by the recipe of its engine here, without bias correction, which costs
            time and changes no latency.
        samples: (N, ...) inputs of the model; a few calibrate.
        engine: That runs the files; by default the first that does.
        threads: Of one inference.
        progress: Told the stage, and how many models are made, out of how many.

    Raises:
        ConversionError, BundleError: There is no such variant.
    """
    row = get_variant(variant)

    def measure(checkpoints: Mapping[str, Checkpoint]) -> Mapping[str, float]:
        models: dict[str, LoadedModel] = {}
        with tempfile.TemporaryDirectory(prefix="edgepose-") as scratch:
            try:
                for number, (name, checkpoint) in enumerate(checkpoints.items()):
                    progress(f"make {variant}: {name}", number, len(checkpoints))
                    path = _made(checkpoint, row, samples[:_CALIBRATE], Path(scratch) / str(number))
                    models[name] = load_model_file(path, engine, threads=threads)
                progress("time them", len(checkpoints), len(checkpoints))
                return _side_by_side(models)
            finally:
                for model in models.values():
                    model.close()

    return measure


def _side_by_side(models: Mapping[str, LoadedModel]) -> dict[str, float]:
    first = time_models(models, iterations=TURN, warmup=TURN)
    for error in first.failed.values():
        raise error
    round_s = sum(sum(times.infer) for times in first.times.values())
    timing = time_models(models, iterations=TURN * int(np.clip(_SECONDS / round_s, *_TURNS)), warmup=TURN)
    turns = {name: np.median(np.reshape(times.infer, (-1, TURN)), axis=1) for name, times in timing.times.items()}
    base = turns[next(iter(models))]
    base_ms = 1e3 * float(np.median(base))
    return {name: base_ms * float(np.median(turns[name] / base)) for name in models}


def _made(checkpoint: Checkpoint, row: VariantRow, samples: NDArray[Any], folder: Path) -> Path:
    """The file of one model."""
    folder.mkdir()
    spec, source = checkpoint.row.spec, folder / f"source{get_variant(row.source).suffixes[0]}"
    _export(checkpoint, row, source)
    recipe = Recipe("none")
    if row.calibrated:
        recipe = replace(default_recipe(row.engine, checkpoint.row.task), bias_correction="none")
        recipe = recipe.with_float(always_float(row.layers(row.read(source)), checkpoint.row))
    path = folder / row.files[0]
    row.make(Job(source, path, spec, {}, recipe, samples))
    return path


def _export(checkpoint: Checkpoint, row: VariantRow, path: Path) -> None:
    """The float model that a variant is made from."""
    model, spec = rewrite(checkpoint.model), checkpoint.row.spec
    if row.source == BASELINE:
        export_onnx(model, spec, path)
        return
    from edgepose.converters.tflite import export_tflite

    export_tflite(model, spec, path)
