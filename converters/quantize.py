"""FP32 ONNX -> INT8 ONNX with NNCF, by a named recipe."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgepose.errors import ConversionError

__all__ = ["DEFAULT_RECIPE", "Recipe", "quantize_onnx"]


@dataclass(frozen=True)
class Recipe:
    """How a model is quantized; saved in the manifest.

    Attributes:
        name: For people and manifests.
        model_type: ``transformer`` adds SmoothQuant and leaves softmax and LayerNorm in float.
        preset: ``mixed`` (asymmetric activations) or ``performance`` (symmetric).
        fast_bias_correction: Shift biases by the mean quantization error instead of re-measuring layer by layer.
    """

    name: str = "nncf-transformer-mixed"
    model_type: str = "transformer"
    preset: str = "mixed"
    fast_bias_correction: bool = True

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)


DEFAULT_RECIPE = Recipe()


def quantize_onnx(
    model: onnx.ModelProto,
    crops: NDArray[np.uint8],
    recipe: Recipe = DEFAULT_RECIPE,
    progress: Callable[[int], None] = lambda samples: None,
) -> onnx.ModelProto:
    """Quantize weights and activations to 8 bits with calibration crops.

    Args:
        model: FP32, with the ``image`` input of the I/O contract.
        crops: (N, H, W, 3) uint8 RGB; every one is used.
        recipe: What to quantize, and how.
        progress: Told how many samples have passed through the model; NNCF passes over them more than once.

    Raises:
        ConversionError: NNCF cannot quantize the model.
    """
    nncf = _nncf()
    seen = 0

    def feed(crop: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
        nonlocal seen
        seen += 1
        progress(seen)
        return {model.graph.input[0].name: crop[None]}

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            quantized: onnx.ModelProto = nncf.quantize(
                model,
                nncf.Dataset(list(crops), feed),
                subset_size=len(crops),
                model_type=nncf.ModelType(recipe.model_type),
                preset=nncf.QuantizationPreset(recipe.preset),
                fast_bias_correction=recipe.fast_bias_correction,
            )
    except Exception as error:  # NNCF raises many types, with no common base but Exception
        raise ConversionError(f"NNCF cannot quantize this model ({type(error).__name__}: {error})") from error
    return quantized


def _nncf() -> Any:
    """NNCF without its usage statistics: it sends and stores none where openvino_telemetry cannot be imported."""
    blocked = "openvino_telemetry" not in sys.modules
    if blocked:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import nncf
    finally:
        if blocked:
            del sys.modules["openvino_telemetry"]
    nncf.set_log_level(logging.ERROR)
    return nncf
