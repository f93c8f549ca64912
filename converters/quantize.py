"""FP32 -> INT8 with NNCF, by a recipe: ONNX and OpenVINO models alike."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable
from typing import Any

import onnx
from numpy.typing import NDArray

from edgepose.converters.attention import fragile_products
from edgepose.converters.qdq import close_residuals, make_signed, quantize_residuals
from edgepose.converters.recipes import Recipe
from edgepose.errors import ConversionError
from edgepose.runtimes.openvino import import_openvino, usage_statistics_blocked

__all__ = ["linear_layers", "quantize"]

Passed = Callable[[int], None]
_WHOLE_ATTENTION = ("auto", "int8")
"""As a Transformer NNCF leaves the product of softmax with values in float, come what may."""
_SUMS = ["Add", "Subtract", "Multiply", "Divide", "Power", "MVN"]
"""What NNCF leaves in float in a Transformer besides: sums, and LayerNorm with its parts."""
_PICTURE = 4
"""Channels of a picture at most."""
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Convolution", "GroupConvolution", "ConvolutionBackpropData")


def quantize(model: Any, samples: NDArray[Any], recipe: Recipe, progress: Passed = lambda samples: None) -> Any:
    """Quantize weights and activations to 8 bits with calibration samples.

    Args:
        model: FP32, an ``onnx.ModelProto`` or an ``openvino.Model`` behind the contract. It may
            be changed.
        samples: (N, ...) inputs of the model: crops uint8 RGB, or keypoints; every one is used.
        recipe: What to quantize, and how.
        progress: Told how many samples have passed through the model; NNCF passes over them more than once.

    Returns:
        A model of the same kind.

    Raises:
        ConversionError: NNCF cannot quantize the model, or the recipe names layers that it does not have.
    """
    nncf = _nncf()
    is_onnx = isinstance(model, onnx.ModelProto)
    seen = 0

    def feed(sample: NDArray[Any]) -> Any:
        nonlocal seen
        seen += 1
        progress(seen)
        return {model.graph.input[0].name: sample[None]} if is_onnx else sample[None]

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            quantized = nncf.quantize(
                model,
                nncf.Dataset(list(samples), feed),
                subset_size=len(samples),
                model_type=None if recipe.attention in _WHOLE_ATTENTION else nncf.ModelType.TRANSFORMER,
                preset=nncf.QuantizationPreset(recipe.preset),
                fast_bias_correction=recipe.bias_correction != "accurate",
                ignored_scope=_ignored(nncf, model, samples, recipe),
                advanced_parameters=_advanced(nncf, recipe),
            )
    except Exception as error:  # NNCF raises many types, with no common base but Exception
        raise ConversionError(f"NNCF cannot quantize this model ({type(error).__name__}: {error})") from error
    if is_onnx and recipe.explicit:
        return quantize_residuals(make_signed(quantized), samples)
    return close_residuals(quantized, samples) if is_onnx and recipe.close_residuals else quantized


def linear_layers(model: Any) -> list[str]:
    """Names of layers with weights and of products, in the order of the graph: what a search may put back to float."""
    mixing = set(_mixing(model))
    return [
        name
        for name, kind, weighted in _operations(model)
        if kind in _WEIGHTED and (weighted or kind == "MatMul") and name not in mixing
    ]


def _ignored(nncf: Any, model: Any, samples: NDArray[Any], recipe: Recipe) -> Any:
    """What stays in float: by name, and, where NNCF is not told that this is a Transformer, by type."""
    names = [*recipe.float_layers, *_mixing(model), *(_picture_layers(model) if recipe.explicit else [])]
    if isinstance(model, onnx.ModelProto) and recipe.attention in _WHOLE_ATTENTION:
        raise ConversionError(f"recipe {recipe.name}: attention {recipe.attention!r} is for OpenVINO")
    if recipe.attention == "float":
        names += [name for name, kind, weighted in _operations(model) if kind == "MatMul" and not weighted]
    elif recipe.attention == "auto":
        names += fragile_products(model, samples)
    present = {op.get_type_name() for op in model.get_ops()} if recipe.attention in _WHOLE_ATTENTION else set()
    return nncf.IgnoredScope(names=list(dict.fromkeys(names)), types=[kind for kind in _SUMS if kind in present])


def _operations(model: Any) -> list[tuple[str, str, bool]]:
    """Name, type, and whether the second operand is a constant, of every node with two operands."""
    if isinstance(model, onnx.ModelProto):
        constants = {tensor.name for tensor in model.graph.initializer}
        return [(n.name, n.op_type, n.input[1] in constants) for n in model.graph.node if len(n.input) > 1]
    return [
        (op.get_friendly_name(), op.get_type_name(), _is_constant(op.input_value(1).get_node()))
        for op in model.get_ordered_ops()
        if op.get_input_size() > 1
    ]


def _mixing(model: Any) -> list[str]:
    """Products of a constant with activations, by which graph convolutions mix joints: engines have no INT8 kernel."""
    if isinstance(model, onnx.ModelProto):
        constants = {tensor.name for tensor in model.graph.initializer}
        return [n.name for n in model.graph.node if n.op_type == "MatMul" and n.input[0] in constants]
    return [
        op.get_friendly_name()
        for op in model.get_ordered_ops()
        if op.get_type_name() == "MatMul" and _is_constant(op.input_value(0).get_node())
    ]


def _picture_layers(model: onnx.ModelProto) -> list[str]:
    """Convolutions of a picture's channels: engines have poor INT8 kernels for so few of them, or none."""
    channels = {tensor.name: tensor.dims[1] for tensor in model.graph.initializer if len(tensor.dims) == 4}
    return [n.name for n in model.graph.node if n.op_type == "Conv" and channels.get(n.input[1], 99) <= _PICTURE]


def _is_constant(node: Any) -> bool:
    """Whether a node is a constant, perhaps one that is stored in 16 bits."""
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant")


def _advanced(nncf: Any, recipe: Recipe) -> Any:
    narrow = nncf.quantization.advanced_parameters.OverflowFix
    return nncf.AdvancedQuantizationParameters(
        overflow_fix=narrow.ENABLE if recipe.narrow_weights else narrow.DISABLE,
        disable_bias_correction=recipe.bias_correction == "none",
        smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(
            matmul=-1 if recipe.smooth_quant is None else recipe.smooth_quant
        ),
    )


def _nncf() -> Any:
    """NNCF without its usage statistics, nor those of OpenVINO, which it may import later."""
    with usage_statistics_blocked():
        import nncf
    with contextlib.suppress(ImportError):
        import_openvino()
    nncf.set_log_level(logging.ERROR)
    return nncf
