"""Torch module -> one self-contained TFLite file that carries its specification.

Before the export the module is laid out as TFLite wants it (:func:`channels_last`): tokens are read from (N, h, w, d)
maps without a transpose, and max pooling pads with zeros, which XNNPACK and INT8 have and minus infinity not. After it
the tensors are named anew, because the exporter's names hold class paths of the exporting program: layers with weights
by their torch module, ``global_encoder.layers.0.linear1/FULLY_CONNECTED``, and everything else by its place.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import os
import sys
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgepose.converters.contract import deployed, example_input
from edgepose.converters.rewrite import FusedEncoder, separate
from edgepose.converters.tflite_model import (
    add_operator,
    add_tensor,
    is_constant,
    load_tflite,
    one_line,
    operator_names,
    require,
    save_tflite,
)
from edgepose.errors import ConversionError
from edgepose.types import ModelSpec

__all__ = ["WEIGHTED", "channels_last", "export_tflite", "quiet", "tflite_layers", "weighted_layers"]

WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
"""Operators that multiply with constant weights."""

_SIGNATURE = "serving_default"
_LARGE = 1 << 15  # elements of a table that is worth storing in two parts


def export_tflite(model: nn.Module, spec: ModelSpec, path: Path, origin: Mapping[str, Any] | None = None) -> None:
    """Export a model behind the I/O contract in FP32, for one person.

    Args:
        model: A 2D model, which takes normalised (1, 3, H, W) float32, or a lifting model; with the rewrites of
            ``rewrite.py`` done. It stays as it is.
        spec: Written into the file's metadata.
        path: The ``.tflite`` to write.
        origin: Where the model comes from, as JSON values; written beside the specification.

    Raises:
        ConversionError: litert-torch is not installed, or cannot convert the model.
    """
    module = deployed(channels_last(model), spec)
    example = example_input(spec, 1)
    with quiet():
        litert_torch = require("litert_torch")
        try:
            converter = litert_torch.signature(_SIGNATURE, module, sample_kwargs={spec.input.name: example})
            with tempfile.TemporaryDirectory(prefix="edgepose-") as scratch:
                file = Path(scratch) / "model.tflite"
                converter.convert().export(str(file))
                exported = load_tflite(file)
        except Exception as error:  # the converter's errors have no common base but Exception
            raise ConversionError(
                f"{spec.name}: litert-torch cannot convert it ({one_line(error)}): "
                "use the versions of constraints.txt, and please report this"
            ) from error
    _separate_tables(exported)
    _add_biases(exported)
    _rename(exported, module.get_submodule("model"), spec)
    save_tflite(exported, spec, path, origin)


def tflite_layers(model: Any) -> list[str]:
    """Names of what may be quantized, in the order of the graph: layers with weights but the last, and products.

    A product is that of queries with keys where there is a single head, which the converter writes as FULLY_CONNECTED.
    """
    graph, last = model.subgraphs[0], weighted_layers(model)[-1:]
    outputs = [
        op.outputs[0] for op, name in zip(graph.operators, operator_names(model), strict=True) if name in WEIGHTED
    ]
    return [name for name in (graph.tensors[tensor].name.decode() for tensor in outputs) if name not in last]


def weighted_layers(model: Any) -> list[str]:
    """Names of the layers with weights, in the order of the graph; the last one gives the heatmaps."""
    graph = model.subgraphs[0]
    return [
        graph.tensors[op.outputs[0]].name.decode()
        for op, name in zip(graph.operators, operator_names(model), strict=True)
        if name in WEIGHTED and is_constant(model, op.inputs[1])
    ]


def _rename(model: Any, module: nn.Module, spec: ModelSpec) -> None:
    """Name every tensor, and the ends of the signature by the contract."""
    graph, names = model.subgraphs[0], operator_names(model)
    for i, tensor in enumerate(graph.tensors):
        tensor.name = f"constant_{i}".encode()
    for i, (op, name) in enumerate(zip(graph.operators, names, strict=True)):
        for output in op.outputs:
            graph.tensors[output].name = f"{name}_{i}".encode()
    for number, name in _layer_names(model, names, module).items():
        graph.tensors[graph.operators[number].outputs[0]].name = name.encode()
    ends = ((graph.inputs, spec.input.name, "inputs"), (graph.outputs, spec.output.name, "outputs"))
    for (tensor,), end, side in ends:
        graph.tensors[tensor].name = end.encode()
        for signature in model.signatureDefs or []:
            for row in getattr(signature, side):
                row.name = end.encode()


def _add_biases(model: Any) -> None:
    """Give linear layers without a bias one of zeros: in INT8 tflite-runtime 2.14 crashes without on ARM."""
    graph = model.subgraphs[0]
    for op, name in zip(graph.operators, operator_names(model), strict=True):
        if name == "FULLY_CONNECTED" and (len(op.inputs) < 3 or op.inputs[2] < 0):
            count = graph.tensors[op.inputs[1]].shape[0]
            bias = add_tensor(model, (count,), np.zeros(count, np.float32).tobytes())
            op.inputs = [*op.inputs[:2], bias]


def _separate_tables(model: Any) -> None:
    """Store a large constant summand that is a sum over rows and columns as that sum: the position in attention.

    The converter folds such sums; the files would carry the tables in full, which are larger than the layers.
    """
    schema, graph = require("ai_edge_litert.schema_py_generated"), model.subgraphs[0]
    made = []
    for op, name in zip(graph.operators, operator_names(model), strict=True):
        if name == "ADD" and is_constant(model, op.inputs[1]) and (parts := _parts(model, graph.tensors[op.inputs[1]])):
            flat = op.inputs[1]
            shape = graph.tensors[flat].shape
            ends = [add_tensor(model, array.shape, array.tobytes()) for array in parts]
            whole = add_tensor(model, np.broadcast_shapes(*(array.shape for array in parts)))
            sides = add_tensor(model, (len(shape),), np.array(shape, np.int32).tobytes(), schema.TensorType.INT32)
            options = schema.ReshapeOptionsT()
            options.newShape = list(shape)
            made.append(add_operator(model, "ADD", ends, whole, schema.AddOptionsT()))
            made.append(add_operator(model, "RESHAPE", [whole, sides], flat, options))
            graph.tensors[flat].buffer = 0  # the empty one: it is computed now
    graph.operators = made + graph.operators


def _parts(model: Any, tensor: Any) -> list[NDArray[np.float32]] | None:
    """Rows (h, 1, d) and columns (1, w, d) of a float table (..., h * w, d), where it is large and has such parts."""
    shape = list(tensor.shape)
    if len(shape) < 2 or math.prod(shape[:-2]) != 1 or math.prod(shape) < _LARGE:
        return None
    table = np.frombuffer(model.buffers[tensor.buffer].data, np.float32).reshape(shape[-2:])
    parts = separate(torch.from_numpy(table.copy()))
    return None if parts is None else [_array(part.contiguous()) for part in parts]


def _layer_names(model: Any, names: list[str], module: nn.Module) -> dict[int, str]:
    """Number of an operator -> ``<torch module>/<operator>``, for those with weights.

    A layer is known by its weights. Those into which the converter multiplied something (the gain of a LayerNorm) are
    told by their shape, in the order of the graph. Groups of one convolution are operators of their own: ``_2`` and so
    on.
    """
    graph = model.subgraphs[0]
    exact, shapes = _weights_of(module)
    found: dict[int, str] = {}
    unknown: list[tuple[int, tuple[int, ...]]] = []
    for i, (op, name) in enumerate(zip(graph.operators, names, strict=True)):
        if name not in WEIGHTED or not is_constant(model, op.inputs[1]):
            continue
        tensor = graph.tensors[op.inputs[1]]
        weight = model.buffers[tensor.buffer].data
        if weight in exact:
            found[i] = exact[weight]
        else:
            unknown.append((i, tuple(tensor.shape)))
    taken = set(found.values())
    for i, shape in unknown:
        left = [layer for layer in shapes[shape] if layer not in taken]
        if left:
            found[i] = left[0]
            taken.add(left[0])
    return _numbered({i: f"{found.get(i, 'contract')}/{names[i]}" for i in sorted({*found, *(i for i, _ in unknown)})})


def _weights_of(module: nn.Module) -> tuple[dict[bytes, str], dict[tuple[int, ...], list[str]]]:
    """Layers by the bytes of their weights as TFLite stores them, and by the shape of those."""
    exact: dict[bytes, str] = {}
    shapes: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, layer in module.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            weight = layer.weight.detach()
            weight = weight.permute(0, 2, 3, 1) if isinstance(layer, nn.Conv2d) else weight
            for part in weight.chunk(getattr(layer, "groups", 1)):
                exact.setdefault(_array(part).tobytes(), name)
            shapes[tuple(weight.shape)].append(name)
    return exact, shapes


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(tensor.float().numpy())


def _numbered(names: Mapping[int, str]) -> dict[int, str]:
    """The same with ``_2`` and so on behind names that come again."""
    seen: dict[str, int] = defaultdict(int)
    unique = {}
    for key, name in names.items():
        seen[name] += 1
        unique[key] = name if seen[name] == 1 else f"{name}_{seen[name]}"
    return unique


def channels_last(model: nn.Module) -> nn.Module:
    """A copy of a rewritten model, laid out for TFLite: the same answers."""
    laid_out = copy.deepcopy(model).eval()
    for parent in list(laid_out.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, FusedEncoder):
                setattr(parent, name, _ChannelsLastEncoder(child))
            elif isinstance(child, nn.MaxPool2d) and isinstance(getattr(parent, "relu", None), nn.ReLU):
                setattr(parent, name, _ZeroPaddedPool(child))
    return laid_out


class _ChannelsLastEncoder(nn.Module):
    """An encoder whose tokens are the pixels of a (N, h, w, d) map, in place."""

    def __init__(self, encoder: FusedEncoder) -> None:
        super().__init__()
        self.layers = encoder.layers

    def forward(self, features: Tensor, position: Tensor) -> Tensor:
        """Features (N, d, h, w) -> (N, d, h, w)."""
        n, d, h, w = features.shape
        tokens: Tensor = self.layers(features.permute(0, 2, 3, 1).reshape(n, h * w, d))
        return tokens.reshape(n, h, w, d).permute(0, 3, 1, 2)


class _ZeroPaddedPool(nn.Module):
    """Max pooling of what a ReLU gave: zeros never win where minus infinity would not."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        assert isinstance(pool.padding, int)
        self.padding = (pool.padding,) * 4
        self.pool = nn.MaxPool2d(pool.kernel_size, pool.stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h / stride, w / stride)."""
        pooled: Tensor = self.pool(nn.functional.pad(x, self.padding))
        return pooled


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings and chatter of Python and C++ libraries off the terminal, and their logging as it was."""
    level = logging.root.manager.disable
    with warnings.catch_warnings(), tempfile.TemporaryFile() as sink, contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        stack.callback(logging.disable, level)
        stack.callback(logging.root.setLevel, logging.root.level)
        for number, stream in ((1, sys.stdout), (2, sys.stderr)):
            stream.flush()
            saved = os.dup(number)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, number)
            stack.callback(stream.flush)
            os.dup2(sink.fileno(), number)
        yield
