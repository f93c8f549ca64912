"""Quantize and dequantize nodes in ONNX graphs: what a quantizer leaves open and an engine needs closed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

__all__ = ["close_residuals"]

_Range = tuple[float, float]


def close_residuals(model: onnx.ModelProto, samples: NDArray[Any]) -> onnx.ModelProto:
    """Give convolutions with 8-bit inputs and a float output an 8-bit output.

    Quantizers leave the output of a convolution that ends in a residual sum in float, for engines that fuse the sum.
    onnxruntime runs such a convolution in float altogether: it needs the output quantized as well. The range is the
    smallest and largest value over the samples.

    Args:
        model: An ONNX model with QuantizeLinear and DequantizeLinear nodes; it is changed.
        samples: (N, ...) inputs of the model.

    Returns:
        The model.
    """
    open_ends = _open_ends(model.graph)
    if open_ends:
        ranges = _ranges(model, open_ends, samples)
        nodes = []
        for node in model.graph.node:
            node.input[:] = [_closed(name) if name in ranges else name for name in node.input]
            nodes.append(node)
            for name in node.output:
                if name in ranges:
                    nodes += _quantize_and_back(model.graph, name, ranges[name])
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    return model


def _open_ends(graph: onnx.GraphProto) -> list[str]:
    """Outputs of quantized convolutions, or of the ReLU behind them, that nobody quantizes."""
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    dequantized = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    ends = []
    for node in graph.node:
        if node.op_type == "Conv" and {*node.input[:2]} <= dequantized:
            end = node.output[0]
            if [reader.op_type for reader in readers[end]] == ["Relu"]:
                end = readers[end][0].output[0]
            if readers[end] and not any(reader.op_type == "QuantizeLinear" for reader in readers[end]):
                ends.append(end)
    return ends


def _ranges(model: onnx.ModelProto, names: list[str], samples: NDArray[Any]) -> dict[str, _Range]:
    """Smallest and largest value of tensors over the samples; zero is always inside."""
    from edgepose.runtimes.onnxruntime import run_graph

    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    probed.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    low, high = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    feeds = ({model.graph.input[0].name: sample[None]} for sample in samples)
    for answers in run_graph(probed.SerializeToString(), feeds, names):
        for name, value in answers.items():
            low[name], high[name] = min(low[name], float(value.min())), max(high[name], float(value.max()))
    return {name: (low[name], high[name]) for name in names}


def _quantize_and_back(graph: onnx.GraphProto, name: str, limits: _Range) -> list[NodeProto]:
    scale = (limits[1] - limits[0]) / 255 or 1.0
    parameters: Mapping[str, NDArray[np.generic]] = {
        f"{name}_scale": np.asarray(scale, np.float32),
        f"{name}_zero_point": np.asarray(round(-limits[0] / scale), np.uint8),
    }
    graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in parameters.items())
    return [
        helper.make_node("QuantizeLinear", [name, *parameters], [f"{name}_quantized"], name=f"{name}_quantize"),
        helper.make_node(
            "DequantizeLinear", [f"{name}_quantized", *parameters], [_closed(name)], name=f"{name}_dequantize"
        ),
    ]


def _closed(name: str) -> str:
    return f"{name}_closed"
