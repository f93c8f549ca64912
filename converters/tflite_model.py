"""TFLite models as trees of Python objects: read, written, and added to."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgepose.errors import ConversionError
from edgepose.types import ORIGIN_KEY, SPEC_KEY, ModelSpec

__all__ = [
    "add_operator",
    "add_tensor",
    "from_bytes",
    "is_constant",
    "load_tflite",
    "one_line",
    "operator_names",
    "require",
    "save_tflite",
    "to_bytes",
]

_IDENTIFIER = b"TFL3"
_ALIGNMENT = 16  # bytes: what TFLite's own writer keeps for weights


def load_tflite(path: Path) -> Any:
    """Read a model as a tree of Python objects (``ModelT`` of the schema), its weights inside.

    Raises:
        ConversionError: The reader is not installed, or the file is no TFLite model.
    """
    content = path.read_bytes()
    if content[4:8] != _IDENTIFIER:
        raise ConversionError(f"{path}: no TFLite model: convert the checkpoint again")
    return from_bytes(content)


def from_bytes(content: bytes) -> Any:
    """The same of a file's content."""
    model = require("ai_edge_litert.tools.flatbuffer_utils").read_model_from_bytearray(content)
    for buffer in model.buffers:
        buffer.data = None if buffer.data is None else bytes(buffer.data)
    return model


def save_tflite(model: Any, spec: ModelSpec, path: Path, origin: Mapping[str, Any] | None = None) -> None:
    """Write a model with its specification in the metadata; the same model is always the same bytes.

    Raises:
        ConversionError: The schema is not installed.
    """
    schema = require("ai_edge_litert.schema_py_generated")
    texts = {SPEC_KEY: spec.to_json(), ORIGIN_KEY: json.dumps(origin or {}, sort_keys=True)}
    model.metadata = [entry for entry in model.metadata or [] if entry.name.decode() not in texts]
    for name, text in texts.items():
        buffer, entry = schema.BufferT(), schema.MetadataT()
        buffer.data = text.encode()
        entry.name, entry.buffer = name.encode(), len(model.buffers)
        model.buffers.append(buffer)
        model.metadata.append(entry)
    path.write_bytes(to_bytes(_without_unread(model)))


def to_bytes(model: Any) -> bytes:
    """A model as a FlatBuffer with its weights inside, each at a multiple of 16 bytes.

    Raises:
        ConversionError: The FlatBuffer builder is not installed.
    """
    builder = require("flatbuffers").Builder(1 << 20)
    whole = copy.copy(model)
    whole.buffers = [_Buffer(buffer.data) for buffer in model.buffers]
    builder.Finish(whole.Pack(builder), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


class _Buffer:
    """A table with one vector of bytes; the generated writer of the schema would not align it."""

    def __init__(self, data: Any) -> None:
        self._data: bytes = data or b""

    def Pack(self, builder: Any) -> Any:  # noqa: N802 - the schema's name
        """Write the table; gives its offset."""
        data = None
        if self._data:
            builder.StartVector(1, len(self._data), _ALIGNMENT)
            builder.head = builder.head - len(self._data)
            builder.Bytes[builder.Head() : builder.Head() + len(self._data)] = self._data
            data = builder.EndVector()
        builder.StartObject(3)
        if data is not None:
            builder.PrependUOffsetTRelativeSlot(0, data, 0)
        return builder.EndObject()


def _without_unread(model: Any) -> Any:
    """The model with the buffers that a tensor or metadata reads, in a fixed order."""
    readers = [*(tensor for graph in model.subgraphs for tensor in graph.tensors), *(model.metadata or [])]
    kept = {0: 0}  # the empty one comes first
    for reader in readers:
        reader.buffer = kept.setdefault(reader.buffer, len(kept))
    model.buffers = [model.buffers[old] for old in kept]
    return model


def operator_names(model: Any) -> list[str]:
    """``CONV_2D`` and so on, of each operator of the first graph."""
    codes = vars(require("ai_edge_litert.schema_py_generated").BuiltinOperator)
    names = {number: name for name, number in codes.items() if not name.startswith("_")}
    graph = model.subgraphs[0]
    return [names[_code(model.operatorCodes[op.opcodeIndex])] for op in graph.operators]


def _code(code: Any) -> int:
    """Files of old converters have the first number alone."""
    return int(max(code.builtinCode, code.deprecatedBuiltinCode))


def is_constant(model: Any, tensor: int) -> bool:
    """Whether a tensor of the first graph is stored in the file."""
    return bool(model.buffers[model.subgraphs[0].tensors[tensor].buffer].data)


def add_tensor(model: Any, shape: Sequence[int], data: bytes | None = None, dtype: int = 0) -> int:
    """A new tensor of the first graph, constant where there is data; FLOAT32 is type 0. Gives its number."""
    schema = require("ai_edge_litert.schema_py_generated")
    tensor, buffer = schema.TensorT(), schema.BufferT()
    tensor.shape, tensor.type, tensor.hasRank = list(shape), dtype, True
    if data is not None:
        buffer.data = data
        tensor.buffer = len(model.buffers)
        model.buffers.append(buffer)
    model.subgraphs[0].tensors.append(tensor)
    return len(model.subgraphs[0].tensors) - 1


def add_operator(model: Any, name: str, inputs: list[int], output: int, options: Any) -> Any:
    """A new operator of a kind that the model has already, or has not."""
    schema = require("ai_edge_litert.schema_py_generated")
    number = getattr(schema.BuiltinOperator, name)
    codes = [_code(code) for code in model.operatorCodes]
    if number not in codes:
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = number
        code.version = 1
        model.operatorCodes.append(code)
        codes.append(number)
    op = schema.OperatorT()
    op.opcodeIndex, op.inputs, op.outputs = codes.index(number), inputs, [output]
    op.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
    op.builtinOptions = options
    return op


def require(name: str) -> Any:
    """A module of the converter's tools.

    Raises:
        ConversionError: It is not installed, or broken.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConversionError(
            f'TFLite conversion needs litert-torch ({one_line(error)}): pip install "edgepose[convert]"'
        ) from error


def one_line(error: Exception) -> str:
    """Type and message of a library's error, for ours."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
