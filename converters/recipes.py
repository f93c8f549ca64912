"""How a model is quantized for one engine and instruction set: frozen, named, saved in the manifest.

A name is ``<engine>-<instructions>``, perhaps with a variation: ``onnxruntime-x86``, ``openvino-vnni-accurate``.

    engine         onnxruntime  openvino  tensorrt  tflite
    instructions   x86   any x86-64 with 8-bit dot products (VNNI)
                   arm   ARMv8.2 dot products or newer
                   vnni  8-bit dot products: x86-64 with AVX-512 VNNI, AVX-VNNI or AMX, or ARM's
                   avx2  x86-64 without them: its 8-bit products saturate in 16 bits, so weights get 7 bits
                   qdq   explicit quantization that the engine compiles itself
                   xnnpack  the kernels that TFLite has for ARM and x86 alike
    variations     accurate  slower, nearer to FP32
                   fast  quicker, further from it
                   lift  of lifting models: attention over a few joints costs nothing in float, and SmoothQuant halves
                         the distance from FP32 at the same speed

What is fast on one engine is not fast on another; benchmarks/int8.py measures it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

from edgepose.errors import ConversionError
from edgepose.machine import has_dot_products, instruction_sets

__all__ = ["RECIPES", "Recipe", "default_recipe", "get_recipe", "recipe_from_dict"]


@dataclass(frozen=True)
class Recipe:
    """One way to quantize.

    Attributes:
        name: See the module.
        preset: ``mixed`` (asymmetric activations) or ``performance`` (symmetric).
        smooth_quant: Strength 0-1 with which large activations before linear layers are moved into the weights
            (SmoothQuant, Xiao et al. 2023); None leaves them.
        bias_correction: ``fast`` shifts biases by the mean error of each layer alone, ``accurate`` re-measures layer by
            layer, ``none`` leaves them.
        attention: Which products of attention are 8-bit: none (``float``), that of queries with keys (``scores``), that
            of softmax with values as well where it loses nothing (``auto``, see ``attention.py``) or everywhere
            (``int8``). Softmax itself, LayerNorm and sums are computed in float.
        close_residuals: Whether convolutions that end in a residual sum get 8-bit outputs, which the quantizer leaves
            in float for engines that fuse the sum; onnxruntime has no kernel for such a convolution.
        narrow_weights: 7-bit weights, for processors whose 8-bit sums saturate.
        explicit: For an engine that compiles quantized nodes as they stand: activations are signed as well as
            symmetric, convolutions of a picture's few channels stay in float, and where a convolution ends in a sum the
            other operand is 8-bit, so that both become one kernel.
        float_layers: Names of nodes that stay in float, as the accuracy search found them.
    """

    name: str
    preset: str = "mixed"
    smooth_quant: float | None = None
    bias_correction: str = "fast"
    attention: str = "scores"
    close_residuals: bool = False
    narrow_weights: bool = False
    explicit: bool = False
    float_layers: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)

    def with_float(self, layers: Iterable[str]) -> Recipe:
        """The same with more layers in float."""
        return replace(self, float_layers=tuple(dict.fromkeys((*self.float_layers, *layers))))


_ACCURATE: Mapping[str, Any] = {"smooth_quant": 0.95, "bias_correction": "accurate"}
_ONNXRUNTIME = Recipe("onnxruntime-x86", attention="float", close_residuals=True)
_ONNXRUNTIME_ARM = replace(_ONNXRUNTIME, name="onnxruntime-arm", preset="performance")
_OPENVINO = Recipe("openvino-vnni", preset="performance", attention="auto")
_OPENVINO_AVX2 = replace(_OPENVINO, name="openvino-avx2", narrow_weights=True)
_LIFTED = tuple(
    replace(row, name=f"{row.name}-lift", attention="float", smooth_quant=0.5)
    for row in (_ONNXRUNTIME, _ONNXRUNTIME_ARM, _OPENVINO, _OPENVINO_AVX2)
)

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        row.name: row
        for row in (
            _ONNXRUNTIME,
            _ONNXRUNTIME_ARM,
            replace(_ONNXRUNTIME, name="onnxruntime-x86-accurate", **_ACCURATE),
            _OPENVINO,
            replace(_OPENVINO, name="openvino-vnni-fast", attention="int8"),
            _OPENVINO_AVX2,
            replace(
                _OPENVINO,
                name="openvino-vnni-accurate",
                attention="scores",
                smooth_quant=0.95,
                bias_correction="accurate",
            ),
            Recipe("tensorrt-qdq", preset="performance", attention="float", explicit=True),
            Recipe("tflite-xnnpack"),
            Recipe("tflite-xnnpack-accurate", attention="float"),
            *_LIFTED,
        )
    }
)


def get_recipe(name: str) -> Recipe:
    """Look a recipe up by name.

    Raises:
        ConversionError: None has that name.
    """
    if name not in RECIPES:
        raise ConversionError(f"unknown recipe {name!r}; known: {', '.join(RECIPES)}")
    return RECIPES[name]


def default_recipe(engine: str, task: str = "pose2d", isa: Collection[str] | None = None) -> Recipe:
    """The recipe of an engine for instruction sets, by default this machine's; lifting models may have their own."""
    name = _default_name(engine, instruction_sets() if isa is None else isa)
    lifted = f"{name}-lift"
    return get_recipe(lifted if task == "lift3d" and lifted in RECIPES else name)


def _default_name(engine: str, isa: Collection[str]) -> str:
    if engine == "openvino":
        return "openvino-vnni" if has_dot_products(isa) else "openvino-avx2"
    if engine == "onnxruntime":
        return "onnxruntime-arm" if "asimd" in isa else "onnxruntime-x86"
    return "tflite-xnnpack" if engine == "tflite" else "tensorrt-qdq"


def recipe_from_dict(data: Mapping[str, Any]) -> Recipe:
    """Read :meth:`Recipe.to_dict` from a manifest.

    Raises:
        TypeError: It has other fields.
    """
    return Recipe(**{**data, "float_layers": tuple(data.get("float_layers", ()))})
