"""FP32 TFLite -> INT8, INT8 weights with INT16 activations, or FP16 weights.

Convolutions, linear layers, and the sums, pads and pools between convolutions are 8-bit: weights symmetric per output
channel, activations asymmetric. So is the product of queries with keys where there is a single head, unless the recipe
says ``attention="float"``; with several heads XNNPACK has no INT8 kernel for it. Softmax, its product with values,
LayerNorm and the residual sums of the encoder stay in float: INT8 softmax has a fixed step of 1/256, too coarse for
thousands of tokens, and each change between float and 8 bits costs a pass over the tensor. The layer that gives the
heatmaps stays in float too: that costs nothing and keeps the shape of peaks.

Ranges are ours, not the quantizer's: the ninth decile over crops of each crop's extremes, so that one odd crop does not
coarsen the steps of all; and so is the correction of biases for the mean error of rounded weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.converters.recipes import Recipe
from edgepose.converters.tflite import WEIGHTED, quiet, tflite_layers, weighted_layers
from edgepose.converters.tflite_model import from_bytes, is_constant, one_line, operator_names, require, to_bytes
from edgepose.errors import ConversionError

__all__ = ["half_precision", "quantize_tflite"]

_BETWEEN = ("ADD", "MAX_POOL_2D", "PAD", "RESIZE_NEAREST_NEIGHBOR")
"""What is 8-bit between convolutions."""
_DECILE = 90
_INT64 = 4  # of the schema: biases beside INT16 activations; else they are INT32
_Floats = NDArray[np.float32]


def quantize_tflite(
    model: Any,
    samples: NDArray[Any],
    recipe: Recipe,
    progress: Callable[[int], None] = lambda samples: None,
    *,
    activation_bits: int = 8,
) -> Any:
    """Quantize weights to 8 bits, and activations to 8 or 16, with calibration samples.

    Args:
        model: FP32, as ``load_tflite`` reads it; it stays as it is.
        samples: (N, ...) inputs of the model: crops uint8 RGB, or keypoints; every one is used.
        recipe: What to quantize, and how: ``preset``, ``attention``, ``bias_correction``, ``float_layers``.
        progress: Told how many samples have passed through the model.
        activation_bits: 8, or 16 (symmetric), which is exact to the eye and slow: XNNPACK has no kernels for it.

    Returns:
        A model of the same kind.

    Raises:
        ConversionError: The tools are not installed, the quantizer cannot quantize the model, or the recipe names
            layers that it does not have.
    """
    unknown = sorted(set(recipe.float_layers) - set(tflite_layers(model)))
    if unknown:
        raise ConversionError(
            f"recipe {recipe.name}: the model has no layer {', '.join(unknown[:3])}: sensitivity lists"
        )
    model = model if activation_bits == 8 else _without_zero_biases(model)
    chosen = _chosen(model, recipe)
    if not chosen:
        return from_bytes(to_bytes(model))
    seen = _Calibration(model, chosen)
    seen.run(samples, progress)
    with quiet():
        try:
            quantized = _quantized(model, chosen, seen, recipe, activation_bits)
        except Exception as error:  # the quantizer's errors have no common base but Exception
            if isinstance(error, ConversionError):
                raise
            raise ConversionError(f"ai-edge-quantizer cannot quantize this model ({one_line(error)})") from error
    if recipe.bias_correction != "none":
        _correct_biases(model, quantized, seen)
    return quantized


def half_precision(model: Any) -> Any:
    """The model with the weights of its layers in 16-bit floats; they are widened when it is loaded.

    Raises:
        ConversionError: The quantizer is not installed, or cannot do it.
    """
    with quiet():
        quantizer, kinds = require("ai_edge_quantizer.quantizer"), require("ai_edge_quantizer.qtyping")
        half = kinds.OpQuantizationConfig(
            weight_tensor_config=kinds.TensorQuantizationConfig(16, dtype=kinds.TensorDataType.FLOAT),
            compute_precision=kinds.ComputePrecision.FLOAT,
            explicit_dequantize=True,
        )
        try:
            converter = quantizer.Quantizer(to_bytes(model))
            for name in (kinds.TFLOperationName.CONV_2D, kinds.TFLOperationName.FULLY_CONNECTED):
                converter.update_quantization_recipe(".*", name, half, quantizer.AlgorithmName.FLOAT_CASTING)
            result = converter.quantize(enable_progress_bar=False, enable_progress_report=False)
            return from_bytes(bytes(result.quantized_model))
        except Exception as error:  # see above
            raise ConversionError(f"ai-edge-quantizer cannot halve this model ({one_line(error)})") from error


def _without_zero_biases(model: Any) -> Any:
    """A copy without the biases that ``export_tflite`` added.

    Beside INT16 activations tflite-runtime 2.14 is wrong with them, and right without: tests/arm met both.
    """
    plain = from_bytes(to_bytes(model))
    graph = plain.subgraphs[0]
    for op, name in zip(graph.operators, operator_names(plain), strict=True):
        if name == "FULLY_CONNECTED" and not np.any(_values(plain, graph.tensors[op.inputs[2]], np.float32)):
            op.inputs = [*op.inputs[:2], -1]
    return plain


def _chosen(model: Any, recipe: Recipe) -> list[int]:
    """Numbers of the operators that are quantized, in the order of the graph."""
    graph, names = model.subgraphs[0], operator_names(model)
    layers = set(tflite_layers(model)) - set(recipe.float_layers)
    if recipe.attention == "float":
        layers &= set(weighted_layers(model))
    chosen = {
        i
        for i, (op, name) in enumerate(zip(graph.operators, names, strict=True))
        if name in WEIGHTED and _name(graph, op.outputs[0]) in layers
    }
    made_by = {tensor: i for i, op in enumerate(graph.operators) for tensor in op.outputs}
    for i, (op, name) in enumerate(zip(graph.operators, names, strict=True)):
        if name in _BETWEEN and len(graph.tensors[op.outputs[0]].shape) == 4:
            given = [made_by.get(tensor) for tensor in op.inputs[: 2 if name == "ADD" else 1]]
            read = [n for n, reader in enumerate(graph.operators) if op.outputs[0] in reader.inputs]
            if chosen.issuperset(given) or (name != "ADD" and chosen.issuperset(read)):
                chosen.add(i)
    return sorted(chosen)


def _name(graph: Any, tensor: int) -> str:
    name: str = graph.tensors[tensor].name.decode()
    return name


class _Calibration:
    """Extremes of the tensors around the chosen operators, and means of what layers read."""

    def __init__(self, model: Any, chosen: Iterable[int]) -> None:
        graph, names = model.subgraphs[0], operator_names(model)
        self._content = to_bytes(model)
        operators = [(graph.operators[i], names[i]) for i in chosen]
        ends = {tensor for op, _ in operators for tensor in (*op.inputs, *op.outputs) if tensor >= 0}
        self._tensors = sorted(tensor for tensor in ends if not is_constant(model, tensor))
        self._read = {op.inputs[0] for op, name in operators if name in WEIGHTED}
        self._names = [tensor.name.decode() for tensor in graph.tensors]
        self._ranks = {_name(graph, i): 0 if t.shape is None else len(t.shape) for i, t in enumerate(graph.tensors)}
        self._extremes: dict[str, list[tuple[float, float]]] = {}
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._count = 0

    def run(self, samples: NDArray[Any], progress: Callable[[int], None]) -> None:
        """Pass samples through the float model."""
        library = require("edgepose.runtimes.tflite").import_tflite()
        with quiet():
            interpreter = library.module.Interpreter(
                model_content=self._content, num_threads=2, experimental_preserve_all_tensors=True
            )
            interpreter.allocate_tensors()
        number = interpreter.get_input_details()[0]["index"]
        for sample in samples:
            interpreter.set_tensor(number, sample[None])
            interpreter.invoke()
            for tensor in self._tensors:
                self._see(self._names[tensor], interpreter.get_tensor(tensor), tensor in self._read)
            self._count += 1
            progress(self._count)

    def _see(self, name: str, values: _Floats, read: bool) -> None:
        self._extremes.setdefault(name, []).append((float(values.min()), float(values.max())))
        if read:
            mean = values.mean(axis=tuple(range(values.ndim - 1)), dtype=np.float64)
            self._sums[name] = self._sums.get(name, np.zeros(())) + mean

    def mean(self, name: str) -> NDArray[np.float64]:
        """(C,) mean of each channel."""
        return self._sums[name] / self._count

    def ranges(self) -> dict[str, dict[str, _Floats]]:
        """Smallest and largest value of each tensor, in the quantizer's form."""
        found = {}
        for name, seen in self._extremes.items():
            low, high = np.array(seen, np.float32).T
            shape = (1,) * self._ranks[name]
            found[name] = {
                "min": np.float32(np.percentile(low, 100 - _DECILE)).reshape(shape),
                "max": np.float32(np.percentile(high, _DECILE)).reshape(shape),
            }
        return found


def _quantized(model: Any, chosen: Iterable[int], seen: _Calibration, recipe: Recipe, bits: int) -> Any:
    """What the quantizer makes of the chosen operators and the ranges."""
    quantizer, kinds = require("ai_edge_quantizer.quantizer"), require("ai_edge_quantizer.qtyping")
    graph, names = model.subgraphs[0], operator_names(model)
    symmetric = bits == 16 or recipe.preset == "performance"
    config = kinds.OpQuantizationConfig(
        activation_tensor_config=kinds.TensorQuantizationConfig(bits, symmetric),
        weight_tensor_config=kinds.TensorQuantizationConfig(8, True, kinds.QuantGranularity.CHANNELWISE),
        compute_precision=kinds.ComputePrecision.INTEGER,
    )
    converter = quantizer.Quantizer(to_bytes(model))
    for i in chosen:
        scope = f"^{re.escape(_name(graph, graph.operators[i].outputs[0]))};?$"
        converter.update_quantization_recipe(scope, kinds.TFLOperationName(names[i]), config)
    result = converter.quantize(seen.ranges(), enable_progress_bar=False, enable_progress_report=False)
    return from_bytes(bytes(result.quantized_model))


def _correct_biases(model: Any, quantized: Any, seen: _Calibration) -> None:
    """Shift the biases of a quantized model by the mean error of its rounded weights, in place.

    A layer answers sum(w x) + b; with rounded weights its mean is off by sum((w - w') mean(x)), which is added to b.
    """
    graph, old = quantized.subgraphs[0], model.subgraphs[0]
    exact = {_name(old, op.outputs[0]): op for op in old.operators}
    for op, kind in zip(graph.operators, operator_names(quantized), strict=True):
        source = exact.get(_name(graph, op.outputs[0]))
        if (
            kind not in WEIGHTED
            or source is None
            or len(op.inputs) < 3
            or op.inputs[2] < 0
            or not is_constant(quantized, op.inputs[1])
        ):
            continue
        weight, bias = graph.tensors[op.inputs[1]], graph.tensors[op.inputs[2]]
        if weight.quantization is None or bias.quantization is None or bias.quantization.scale is None:
            continue
        step = np.asarray(weight.quantization.scale, np.float32)
        rounded = _values(quantized, weight, np.int8) * step.reshape(-1, *[1] * (len(weight.shape) - 1))
        error = _values(model, old.tensors[source.inputs[1]], np.float32) - rounded
        shift = _mean_response(error, seen.mean(_name(old, source.inputs[0])))
        dtype = np.int64 if bias.type == _INT64 else np.int32
        steps = np.rint(shift / np.asarray(bias.quantization.scale, np.float64))
        quantized.buffers[bias.buffer].data = (_values(quantized, bias, dtype) + steps).astype(dtype).tobytes()


def _values(model: Any, tensor: Any, dtype: type) -> NDArray[Any]:
    values: NDArray[Any] = np.frombuffer(model.buffers[tensor.buffer].data, dtype)
    shaped: NDArray[Any] = values.reshape(tensor.shape)
    return shaped


def _mean_response(weight: _Floats, mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights (O, ..., C / groups) times the mean input (C,), per output channel."""
    taps = weight.reshape(len(weight), -1, weight.shape[-1]).sum(axis=1, dtype=np.float64)
    groups = len(mean) // weight.shape[-1]
    means = np.repeat(mean.reshape(groups, -1), len(weight) // groups, axis=0)
    return np.asarray((taps * means).sum(axis=1))
