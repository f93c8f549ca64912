"""Quantize and dequantize nodes in ONNX graphs: what a quantizer leaves open and an engine needs closed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgepose.errors import ConversionError

__all__ = ["close_residuals", "make_signed", "quantize_residuals"]

_PAIR = ("QuantizeLinear", "DequantizeLinear")
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
                    low, high = ranges[name]
                    scale = (high - low) / 255 or 1.0
                    nodes += _quantize_and_back(model.graph, name, (scale, np.uint8(round(-low / scale))))
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    return model


def make_signed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give what is quantized without a sign from zero upwards one: TensorRT knows nothing but signed and symmetric.

    The range stays; of the 255 steps in it 127 are left.

    Args:
        model: An ONNX model with QuantizeLinear and DequantizeLinear nodes; it is changed.

    Returns:
        The model.

    Raises:
        ConversionError: Something is quantized around another point than zero.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    pairs = [n.input[1:3] for n in model.graph.node if n.op_type in _PAIR]
    for name in {zero_point for _, zero_point in pairs}:
        if numpy_helper.to_array(tensors[name]).any():
            raise ConversionError(f"{name} is not zero: quantize with the preset performance")
    unsigned = [pair for pair in pairs if tensors[pair[1]].data_type == TensorProto.UINT8]
    for scale in {scale for scale, _ in unsigned}:
        wider = numpy_helper.to_array(tensors[scale]) * np.float32(255 / 127)
        tensors[scale].CopyFrom(numpy_helper.from_array(wider, scale))
    for name in {zero_point for _, zero_point in unsigned}:
        zeros = np.zeros(tuple(tensors[name].dims), np.int8)
        tensors[name].CopyFrom(numpy_helper.from_array(zeros, name))
    del model.graph.value_info[:]  # the types in it are no longer true
    return model


def quantize_residuals(model: onnx.ModelProto, samples: NDArray[Any]) -> onnx.ModelProto:
    """Give sums behind 8-bit convolutions their other operand in 8 bits, symmetric.

    TensorRT then computes convolution and sum in one kernel that reads and writes 8 bits; with a float operand it
    would have to convert between the two. The convolution's own result stays inside that kernel. Where the operand is
    quantized for another reader already, the sum reads that; else its range over the samples is taken.

    Args:
        model: An ONNX model with QuantizeLinear and DequantizeLinear nodes; it is changed.
        samples: (N, ...) inputs of the model.

    Returns:
        The model.
    """
    graph = model.graph
    dequantized = {node.input[0]: node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    pairs = {
        node.input[0]: dequantized[node.output[0]]
        for node in graph.node
        if node.op_type == "QuantizeLinear" and node.output[0] in dequantized
    }
    sums = _fused_sums(graph)
    missing = list(dict.fromkeys(operand for _, operand in sums if operand not in pairs))
    ranges = _ranges(model, missing, samples) if missing else {}
    for node, operand in sums:
        wanted = pairs.get(operand) or _closed(operand)
        node.input[:] = [wanted if name == operand else name for name in node.input]
    nodes = []
    for node in graph.node:
        nodes.append(node)
        for name in node.output:
            if name in ranges:
                largest = max(map(abs, ranges[name]))
                nodes += _quantize_and_back(graph, name, (largest / 127 or 1.0, np.int8(0)))
    del graph.node[:]
    graph.node.extend(_in_order(nodes, graph))
    return model


def _fused_sums(graph: onnx.GraphProto) -> list[tuple[NodeProto, str]]:
    """Sums of an 8-bit convolution that nobody else reads and something computed, and the name of the latter."""
    dequantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    readers = Counter(name for node in graph.node for name in node.input)
    computed = {name for node in graph.node for name in node.output} - dequantized
    fused = {
        node.output[0]
        for node in graph.node
        if node.op_type == "Conv" and {*node.input[:2]} <= dequantized and readers[node.output[0]] == 1
    }
    sums = []
    for node in graph.node:
        if node.op_type == "Add" and {*node.input} <= computed and fused & {*node.input}:
            sums.append((node, node.input[1] if node.input[0] in fused else node.input[0]))
    return sums


def _in_order(nodes: list[NodeProto], graph: onnx.GraphProto) -> list[NodeProto]:
    """Nodes sorted so that each comes behind those that it reads, else in the order given."""
    known = {"", *(t.name for t in graph.initializer), *(t.name for t in graph.input)}
    ordered: list[NodeProto] = []
    while nodes:
        later = []
        for node in nodes:
            if known.issuperset(node.input):
                ordered.append(node)
                known.update(node.output)
            else:
                later.append(node)
        nodes = later
    return ordered


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


def _quantize_and_back(graph: onnx.GraphProto, name: str, grid: tuple[float, np.integer[Any]]) -> list[NodeProto]:
    """The two nodes, and their scale and zero point among the graph's tensors."""
    scale, zero_point = grid
    parameters: Mapping[str, NDArray[np.generic]] = {
        f"{name}_scale": np.asarray(scale, np.float32),
        f"{name}_zero_point": np.asarray(zero_point),
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
