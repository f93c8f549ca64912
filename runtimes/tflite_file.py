"""What a ``.tflite`` file says about itself, read and extended without any engine: boards need no schema package.

The file is a FlatBuffer (schema version 3, identifier ``TFL3``).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgepose.errors import BundleError
from edgepose.runtimes.flatbuffer import Damaged, Reader, Table
from edgepose.runtimes.tflite_ops import BUILTIN_OPERATORS, CUSTOM, TENSOR_TYPES
from edgepose.types import SPEC_KEY, TensorSpec

__all__ = ["TfliteModel", "TfliteOperator", "TfliteTensor", "read_tflite", "tensor_specs", "with_metadata"]

_IDENTIFIER = b"TFL3"
_LARGEST = 1 << 31  # elements of one tensor, and bytes of one FlatBuffer
_DEEPEST = 16  # axes of one tensor


@dataclass(frozen=True)
class TfliteTensor:
    """One tensor: ``shape`` has None where the file leaves a side free; ``constant`` ones are stored in the file."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    constant: bool


@dataclass(frozen=True)
class TfliteOperator:
    """One node of the graph.

    Attributes:
        name: ``CONV_2D``, or the name of a custom operator.
        custom: Whether it is one.
        version: Of the operator: newer runtimes know higher ones.
        inputs, outputs: Its tensors; optional inputs that are not given are left out.
    """

    name: str
    custom: bool
    version: int
    inputs: tuple[TfliteTensor, ...]
    outputs: tuple[TfliteTensor, ...]

    @property
    def dynamic_range(self) -> bool:
        """Whether it multiplies float activations with integer weights, quantizing the activations as it runs."""
        activations = {tensor.dtype for tensor in self.inputs if not tensor.constant}
        weights = {tensor.dtype for tensor in self.inputs[1:2] if tensor.constant}
        return self.name in _MULTIPLYING and "float32" in activations and bool(weights & {"int8", "int4", "int2"})


_MULTIPLYING = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "BATCH_MATMUL", "CONV_3D", "TRANSPOSE_CONV")


@dataclass(frozen=True)
class TfliteModel:
    """A file's content.

    Attributes:
        inputs, outputs: Of the first graph, under the names of its only signature where it has one.
        operators: Of all graphs, in order.
        metadata: The file's metadata entries.
    """

    inputs: tuple[TfliteTensor, ...]
    outputs: tuple[TfliteTensor, ...]
    operators: tuple[TfliteOperator, ...]
    metadata: Mapping[str, bytes]

    def text(self) -> dict[str, str]:
        """The metadata entries that are UTF-8 text."""
        texts = {}
        for key, value in self.metadata.items():
            try:
                texts[key] = value.decode("utf-8")
            except UnicodeDecodeError:
                continue
        return texts


def read_tflite(path: Path, data: bytes | None = None) -> TfliteModel:
    """Read a model file's tensors, operators and metadata; weights are not copied.

    Args:
        path: The file; named in errors.
        data: Its content where that is at hand.

    Raises:
        BundleError: It is not there, no TFLite model, truncated or damaged.
    """
    try:
        content = path.read_bytes() if data is None else data
        return _Model(content).read()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from None
    except Damaged as error:
        raise BundleError(f"{path}: damaged TFLite file ({error}): copy it again, or convert again") from None


def tensor_specs(model: TfliteModel) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """A model's inputs and outputs.

    Converters name tensors as they like. Where there is one input and one output, they go by the names of the
    specification that the file carries.
    """
    ends = [[TensorSpec(t.name, t.dtype, t.shape) for t in tensors] for tensors in (model.inputs, model.outputs)]
    if len(ends[0]) == len(ends[1]) == 1:
        try:
            data = json.loads(model.metadata[SPEC_KEY])
            names = [str(data[side]["name"]) for side in ("input", "output")]
        except (KeyError, TypeError, ValueError, RecursionError):  # none, or damaged: whoever needs it says so
            names = [end[0].name for end in ends]
        ends = [[replace(end[0], name=name)] for end, name in zip(ends, names, strict=True)]
    return tuple(ends[0]), tuple(ends[1])


def with_metadata(data: bytes, entries: Mapping[str, bytes]) -> bytes:
    """A copy of a model with metadata entries added; those of the same name are replaced.

    FlatBuffer offsets only point forward, so what is new goes in front: a root table, the two vectors that grow, and
    the entries. The old content follows at a multiple of 16 bytes, which keeps buffers aligned. The front of an earlier
    call is taken off first: the same model and entries are always the same bytes.

    Args:
        data: The content of a ``.tflite`` file.
        entries: Name -> content.

    Raises:
        BundleError: The content is no TFLite model, damaged, of a newer schema, or too large.
    """
    try:
        base, wanted = _without_front(bytes(data))
        wanted.update(entries)
        front = _Front(_Model(base), {name: wanted[name] for name in sorted(wanted)}).content()
        return front + _moved(base, len(front))
    except Damaged as error:
        raise BundleError(f"metadata cannot be attached to this TFLite model ({error}): convert again") from None


# Slots of the schema's tables that are read here.
_VERSION, _OPCODES, _GRAPHS, _DESCRIPTION, _BUFFERS, _LEGACY, _METADATA, _SIGNATURES = range(8)
_ROOT_SLOTS = 10  # two more are vectors of buffers in other files


class _Model:
    """The root table and what hangs on it."""

    def __init__(self, data: bytes) -> None:
        if len(data) < 8 or data[4:8] != _IDENTIFIER:
            raise Damaged("no TFLite model" if data else "it is empty")
        self.reader = Reader(data)
        self.root = Table(self.reader, self.reader.target(0))
        self.buffers = self.root.tables(_BUFFERS)
        self.metadata = self.root.tables(_METADATA)

    def read(self) -> TfliteModel:
        stored = [end - start for start, end in map(self._place, self.buffers)]
        graphs = self.root.tables(_GRAPHS)
        if not graphs:
            raise Damaged("it has no graph")
        codes = [_operator_code(table) for table in self.root.tables(_OPCODES)]
        tensors = [[_tensor(table, stored) for table in graph.tables(0)] for graph in graphs]
        operators = [
            _operator(table, codes, mine)
            for graph, mine in zip(graphs, tensors, strict=True)
            for table in graph.tables(3)
        ]
        names = self._signature_names()
        ends = [[_named(i, tensors[0], names[side]) for i in graphs[0].integers(1 + side)] for side in (0, 1)]
        return TfliteModel(tuple(ends[0]), tuple(ends[1]), tuple(operators), self.entries())

    def _place(self, buffer: Table) -> tuple[int, int]:
        """Where a buffer's bytes start and end: in a vector, or, where the file says so, behind the FlatBuffer."""
        start, size = buffer.number(1, "Q"), buffer.number(2, "Q")
        if start <= 1:
            start, size = buffer.vector(0, 1)
        if start + size > len(self.reader.data):
            raise Damaged(f"truncated: {size:,} bytes of weights at byte {start:,} of {len(self.reader.data):,}")
        return start, start + size

    def entries(self) -> dict[str, bytes]:
        """Metadata by name; the first of a name counts."""
        found: dict[str, bytes] = {}
        for table in self.metadata:
            index = table.number(1, "I")
            if index >= len(self.buffers):
                raise Damaged(f"metadata in buffer {index} of {len(self.buffers)}")
            start, end = self._place(self.buffers[index])
            self.reader.spend((end - start) // 4)
            found.setdefault(table.text(0), self.reader.data[start:end])
        return found

    def _signature_names(self) -> tuple[dict[int, str], dict[int, str]]:
        """Tensor index -> name, of inputs and of outputs."""
        signatures = self.root.tables(_SIGNATURES)
        if len(signatures) != 1 or signatures[0].number(4, "I") != 0:
            return {}, {}
        inputs, outputs = ({t.number(1, "I"): t.text(0) for t in signatures[0].tables(side)} for side in (0, 1))
        return inputs, outputs


def _operator_code(table: Table) -> tuple[str, bool, int]:
    """Name, whether it is custom, and version."""
    code = max(table.number(0, "b"), table.number(3, "i"))  # files of old converters have the first alone
    custom = code == CUSTOM
    known = BUILTIN_OPERATORS[code] if 0 <= code < len(BUILTIN_OPERATORS) else f"operator {code}"
    return (table.text(1) or "unnamed") if custom else known, custom, table.number(2, "i", 1)


def _tensor(table: Table, stored: Sequence[int]) -> TfliteTensor:
    shape, signature = table.integers(0), table.integers(7)
    kind, buffer = table.number(1, "b"), table.number(2, "I")
    name = table.text(3)
    if len(shape) > _DEEPEST or min(shape, default=0) < 0 or math.prod(shape) >= _LARGEST:
        raise Damaged(f"tensor {name[:80]!r} has the shape {shape[:_DEEPEST]}")
    if buffer >= len(stored):
        raise Damaged(f"tensor {name[:80]!r} is in buffer {buffer} of {len(stored)}")
    quantization = table.table(4)
    if quantization is not None:
        for slot, item in ((0, 4), (1, 4), (2, 4), (3, 8)):
            quantization.vector(slot, item)
    free = [i < len(signature) and signature[i] < 0 for i in range(len(shape))]
    return TfliteTensor(
        name=name,
        dtype=TENSOR_TYPES[kind] if 0 <= kind < len(TENSOR_TYPES) else f"type {kind}",
        shape=tuple(None if f else side for side, f in zip(shape, free, strict=True)),
        constant=bool(stored[buffer]) or bool(table.number(10, "I")),
    )


def _operator(table: Table, codes: Sequence[tuple[str, bool, int]], tensors: Sequence[TfliteTensor]) -> TfliteOperator:
    code = table.number(0, "I")
    if code >= len(codes):
        raise Damaged(f"operator code {code} of {len(codes)}")
    for slot in (4, 12):  # built-in options: not read, but an engine will
        table.table(slot)
    table.vector(5, 1)
    ends = [[_named(i, tensors, {}) for i in table.integers(slot) if i != -1] for slot in (1, 2)]
    return TfliteOperator(*codes[code], tuple(ends[0]), tuple(ends[1]))


def _named(index: int, tensors: Sequence[TfliteTensor], names: Mapping[int, str]) -> TfliteTensor:
    if not 0 <= index < len(tensors):
        raise Damaged(f"tensor {index} of {len(tensors)}")
    tensor = tensors[index]
    return TfliteTensor(names[index], tensor.dtype, tensor.shape, tensor.constant) if index in names else tensor


# The front that with_metadata writes: header, mark, its own length; then tables, vectors and entries.
_MARK = b"EDGEPOSE"
_MARKED = 8 + len(_MARK) + 4


def _without_front(data: bytes) -> tuple[bytes, dict[str, bytes]]:
    """The model before metadata was attached by :func:`with_metadata`, and what was attached."""
    model = _Model(data)
    if data[8 : 8 + len(_MARK)] != _MARK or len(data) < _MARKED:
        return data, {}
    length = model.reader.number("I", 8 + len(_MARK))
    if length < _MARKED or length % 16 or data[length + 4 : length + 8] != _IDENTIFIER:
        return data, {}
    base = _moved(data[length:], -length)
    before = _Model(base).entries()
    return base, {name: value for name, value in model.entries().items() if before.get(name) != value}


def _moved(data: bytes, by: int) -> bytes:
    """A model that is going to lie elsewhere in its file: weights behind the FlatBuffer are found from its start."""
    changed, model = bytearray(data), _Model(data)
    operators = [table for graph in model.root.tables(_GRAPHS) for table in graph.tables(3)]
    for table, slot in [*((buffer, 1) for buffer in model.buffers), *((operator, 9) for operator in operators)]:
        field, start = table.field(slot), table.number(slot, "Q")
        if field is not None and start > 1:
            if not 1 < start + by < _LARGEST:
                raise Damaged(f"weights at byte {start:,}")
            struct.pack_into("<Q", changed, field, start + by)
    return bytes(changed)


class _Front:
    """New root table, vectors and entries, to be put in front of a model."""

    def __init__(self, model: _Model, entries: Mapping[str, bytes]) -> None:
        self._model = model
        self._out = bytearray(struct.pack("<I4s8sI", 0, _IDENTIFIER, _MARK, 0))
        self._old: list[tuple[int, int]] = []  # (where an offset is, what it points at in the old content)
        if len(model.root.slots) > _ROOT_SLOTS:
            raise Damaged("it was made by a newer schema")
        fields = self._root()
        kept = [table.at for table in model.metadata if table.text(0) not in entries]
        count = len(model.buffers)
        buffers = self._vector(fields[_BUFFERS], [table.at for table in model.buffers], len(entries))
        metadata = self._vector(fields[_METADATA], kept, len(entries))
        for i, (name, content) in enumerate(entries.items()):
            self._metadata(metadata[i], name.encode("utf-8"), count + i)
            self._buffer(buffers[i], content)
        self._align(16)

    def content(self) -> bytes:
        """The front, with every offset into the old content set."""
        length = len(self._out)
        struct.pack_into("<I", self._out, 8 + len(_MARK), length)
        for at, target in self._old:
            struct.pack_into("<I", self._out, at, length + target - at)
        if length + len(self._model.reader.data) >= _LARGEST:
            raise Damaged("2 GiB are too large for a FlatBuffer")
        return bytes(self._out)

    def _root(self) -> dict[int, int]:
        """The root table; gives the place of each field."""
        root = self._model.root
        slots = [s for s in range(_ROOT_SLOTS) if s in (_BUFFERS, _METADATA) or root.field(s) is not None]
        self._align(4)
        vtable = len(self._out)
        offsets = [4 + 4 * slots.index(s) if s in slots else 0 for s in range(_ROOT_SLOTS)]
        self._out += struct.pack(f"<{2 + _ROOT_SLOTS}H", 4 + 2 * _ROOT_SLOTS, 4 + 4 * len(slots), *offsets)
        self._align(4)
        at = len(self._out)
        struct.pack_into("<I", self._out, 0, at)
        self._out += struct.pack("<i", at - vtable) + bytes(4 * len(slots))
        places = {slot: at + offsets[slot] for slot in slots}
        for slot, place in places.items():
            field = root.field(slot)
            if slot == _VERSION:
                struct.pack_into("<I", self._out, place, root.number(_VERSION, "I"))
            elif slot not in (_BUFFERS, _METADATA) and field is not None:
                self._old.append((place, self._model.reader.target(field)))
        return places

    def _vector(self, field: int, old: Sequence[int], new: int) -> list[int]:
        """A vector of offsets at the old tables and room for new ones: gives the places of those."""
        self._align(4)
        self._point(field)
        self._out += struct.pack("<I", len(old) + new)
        start = len(self._out)
        self._old += [(start + 4 * i, target) for i, target in enumerate(old)]
        self._out += bytes(4 * (len(old) + new))
        return [start + 4 * (len(old) + i) for i in range(new)]

    def _metadata(self, place: int, name: bytes, buffer: int) -> None:
        """A table of a name and the number of a buffer, with its vtable before it."""
        self._align(4)
        self._out += struct.pack("<4H", 8, 12, 4, 8)
        self._point(place)
        self._out += struct.pack("<iII", 8, 8, buffer)
        self._out += struct.pack("<I", len(name)) + name + b"\0"

    def _buffer(self, place: int, content: bytes) -> None:
        """A table of one vector of bytes, which starts at a multiple of 16."""
        self._align(4)
        self._out += struct.pack("<4H", 6, 8, 4, 0)
        self._point(place)
        self._out += struct.pack("<iI", 8, 0)
        field = len(self._out) - 4
        self._out += bytes(-(len(self._out) + 4) % 16)
        self._point(field)
        self._out += struct.pack("<I", len(content)) + content

    def _point(self, place: int) -> None:
        """Let an offset point at what is written next."""
        struct.pack_into("<I", self._out, place, len(self._out) - place)

    def _align(self, size: int) -> None:
        self._out += bytes(-len(self._out) % size)
