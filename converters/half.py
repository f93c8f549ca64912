"""FP32 ONNX -> typed FP16: float16 inside, the I/O contract unchanged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgepose.errors import ConversionError

__all__ = ["half_precision"]

_OPSET = 19
"""The first in which quantized tensors have float16 scales."""

_FLOAT32 = ("LayerNormalization",)
"""Computed in float32: sums of squares over a feature axis leave float16's range."""

_FLOAT32_INPUTS = {"Resize": (1, 2)}
"""Inputs that have to be float32, by operator: a region and scales."""

_LARGEST = float(np.finfo(np.float16).max)


def half_precision(model: onnx.ModelProto) -> onnx.ModelProto:
    """Make every float32 tensor inside float16; inputs and outputs keep their types.

    Types are written out in the graph, with Cast nodes where they change: what strongly typed engines (TensorRT 10
    and newer) compile as it stands. A uint8 picture is cast before anything else touches it: TensorRT lets unsigned
    inputs into no other layer.

    Args:
        model: FP32, perhaps with QuantizeLinear and DequantizeLinear nodes; it is changed. No subgraphs.

    Returns:
        The model.

    Raises:
        ConversionError: A weight is beyond float16's range, or the graph has float32 where this does not reach.
    """
    graph = model.graph
    model.opset_import[0].version = max(model.opset_import[0].version, _OPSET)
    del graph.value_info[:]
    _cast_pictures_first(graph)
    kept = [node for node in graph.node if node.op_type in _FLOAT32]
    _halve_initializers(graph)
    for node in graph.node:
        _halve_attributes(node)
    _cast_around(graph, kept)
    _cast_ends(graph)
    try:
        onnx.checker.check_model(model)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ConversionError(f"this graph cannot be made float16 ({str(error).splitlines()[0]})") from None
    return model


def _cast_pictures_first(graph: onnx.GraphProto) -> None:
    """Cast a picture before it is transposed, where the graph does it the other way round."""
    for given in graph.input:
        moves = [node for node in graph.node if given.name in node.input]
        casts = [node for move in moves for node in graph.node if move.output[0] in node.input]
        if [n.op_type for n in moves + casts] != ["Transpose", "Cast"]:
            continue
        (move,), (cast,) = moves, casts
        between = f"{given.name}_cast"
        move.output[0], move.input[0] = cast.output[0], between
        cast.input[0], cast.output[0] = given.name, between
        order = [cast if node is move else move if node is cast else node for node in graph.node]
        nodes = [_copy(node) for node in order]
        del graph.node[:]
        graph.node.extend(nodes)


def _copy(node: NodeProto) -> NodeProto:
    copied = NodeProto()
    copied.CopyFrom(node)
    return copied


def _halve_initializers(graph: onnx.GraphProto) -> None:
    """Weights to float16, except those that are read as float32; one that is read as both is there twice."""
    whole: set[str] = set()
    half: set[str] = set()
    for node in graph.node:
        for index, name in enumerate(node.input):
            (whole if _stays(node, index) else half).add(name)
    for tensor in [t for t in graph.initializer if t.data_type == TensorProto.FLOAT and t.name in half]:
        if tensor.name in whole:
            graph.initializer.add().CopyFrom(tensor)
            graph.initializer[-1].name = f"{tensor.name}_float32"
            for node in graph.node:
                for index, name in enumerate(node.input):
                    if name == tensor.name and _stays(node, index):
                        node.input[index] = f"{name}_float32"
        tensor.CopyFrom(_halved(tensor))


def _stays(node: NodeProto, index: int) -> bool:
    """Whether an input is float32."""
    return node.op_type in _FLOAT32 or index in _FLOAT32_INPUTS.get(node.op_type, ())


def _halved(tensor: TensorProto) -> TensorProto:
    """A tensor as float16.

    Raises:
        ConversionError: It holds values that float16 has not.
    """
    values = numpy_helper.to_array(tensor)
    if np.abs(values).max(initial=0) > _LARGEST:
        raise ConversionError(
            f"{tensor.name}: holds {np.abs(values).max():.3g}, float16 ends at {_LARGEST:.0f}: use FP32, or bfloat16"
        )
    return numpy_helper.from_array(values.astype(np.float16), tensor.name)


def _halve_attributes(node: NodeProto) -> None:
    """Casts to float32 become casts to float16, and constants in nodes too."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(_halved(attribute.t))


def _cast_around(graph: onnx.GraphProto, kept: list[NodeProto]) -> None:
    """Casts before and behind the nodes that stay in float32."""
    weights = {tensor.name for tensor in graph.initializer}
    names = {node.name for node in kept}
    nodes = [n for node in graph.node for n in (_between_casts(node, weights) if node.name in names else [_copy(node)])]
    del graph.node[:]
    graph.node.extend(nodes)


def _between_casts(node: NodeProto, weights: set[str]) -> Iterator[NodeProto]:
    inside = _copy(node)
    for index, name in enumerate(node.input):
        if name and name not in weights:
            inside.input[index] = f"{node.name}/in_{index}"
            yield _cast(name, inside.input[index], TensorProto.FLOAT)
    inside.output[0] = f"{node.name}/out"
    yield inside
    yield _cast(inside.output[0], node.output[0], TensorProto.FLOAT16)


def _cast_ends(graph: onnx.GraphProto) -> None:
    """Casts behind float32 inputs and before float32 outputs of the graph."""
    renamed: dict[str, str] = defaultdict(str)
    first, last = [], []
    for given in graph.input:
        if given.type.tensor_type.elem_type == TensorProto.FLOAT:
            renamed[given.name] = f"{given.name}_half"
            first.append(_cast(given.name, renamed[given.name], TensorProto.FLOAT16))
    for answer in graph.output:
        if answer.type.tensor_type.elem_type == TensorProto.FLOAT:
            renamed[answer.name] = f"{answer.name}_half"
            last.append(_cast(renamed[answer.name], answer.name, TensorProto.FLOAT))
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    nodes = [*first, *map(_copy, graph.node), *last]
    del graph.node[:]
    graph.node.extend(nodes)


def _cast(name: str, to: str, kind: int) -> NodeProto:
    return helper.make_node("Cast", [name], [to], name=f"{to}/Cast", to=kind)
