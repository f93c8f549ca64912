"""What a ``.pt2`` file of edgepose holds, read with the standard library and numpy: nothing in it is ever executed.

The file is a torch.export archive (a zip of JSON and raw weights), which ``torch.export.load`` reads as well. But that
loader is not for untrusted files: it unpickles sample inputs, constants, and weights that say so, evaluates shapes as
Python expressions, looks operators up as any attribute of ``torch``, and loads compiled code. Here a file may hold
nothing but the members that edgepose writes, and a program nothing but the operators in :data:`OPERATORS`.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.errors import BundleError
from edgepose.types import TensorSpec

__all__ = ["OPERATORS", "Dtype", "Node", "Program", "Ref", "read_pt2"]

OPERATORS = frozenset(
    {
        *("add.Tensor", "mul.Tensor", "rsub.Scalar", "sub.Tensor", "clamp.default", "gelu.default", "relu.default"),
        *("cat.default", "chunk.default", "flatten.using_ints", "permute.default", "reshape.default", "slice.Tensor"),
        *("squeeze.dim", "stack.default", "sym_size.int", "to.dtype", "transpose.int", "unsqueeze.default"),
        *("conv2d.default", "linear.default", "matmul.default", "max_pool2d.default", "upsample_nearest2d.vec"),
        *("layer_norm.default", "scaled_dot_product_attention.default", "softmax.int"),
    }
)
"""The operators of torch's ``aten`` that a program may use. Each computes tensors from tensors; none sees memory or
files. A model that needs another one adds it here."""

_SKIPPED = ("_assert_tensor_metadata.default",)  # checks that hold for the device of the export alone
_PREFIX = "torch.ops.aten."
_MEMBER = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)|models/model\.json"
    r"|data/weights/(model_weights_config\.json|weight_\d+)|data/constants/(model_constants_config\.json|tensor_\d+)"
    r"|data/sample_inputs/model\.pt|extra/[\w.]+"
)
_SAMPLES = "data/sample_inputs/model.pt"
_DTYPES = {1: "uint8", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 12: "bool"}
_MAJOR = 8  # of the schema of the JSON
_DAMAGED = (
    *(AttributeError, EOFError, IndexError, KeyError, NotImplementedError, OverflowError, RecursionError, RuntimeError),
    *(TypeError, ValueError, zipfile.BadZipFile, zlib.error),
)


@dataclass(frozen=True)
class Ref:
    """The value that an input, a weight or an earlier node has under this name."""

    name: str


@dataclass(frozen=True)
class Dtype:
    """A data type as an argument, by numpy's name."""

    name: str


@dataclass(frozen=True)
class Node:
    """One call.

    Attributes:
        operator: One of :data:`OPERATORS`.
        args, kwargs: Numbers, None, :class:`Ref`, :class:`Dtype`, and lists of them.
        outputs: Names of what it gives.
        several: Whether the call gives a list, even of one.
    """

    operator: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[str, ...]
    several: bool


@dataclass(frozen=True)
class Program:
    """A model: every node uses what is above it alone.

    Attributes:
        inputs, outputs: Under the names that nodes use; None is a free side.
        weights: By the names that nodes use.
        nodes: In order.
        metadata: Texts that the file carries, the specification among them.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: Mapping[str, NDArray[Any]]
    nodes: tuple[Node, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_pt2(path: Path) -> Program:
    """Read a file that :func:`edgepose.converters.torch_program.export_torch` wrote.

    Raises:
        BundleError: It is not there, damaged, or holds what edgepose does not write, code among it.
    """
    try:
        members = _members(path.read_bytes())
        return _program(members)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from None
    except _Refused as error:
        raise BundleError(
            f"{path}: {error}, and only what edgepose writes is loaded: make it with edgepose convert --to torch"
        ) from None
    except _DAMAGED as error:
        what = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise BundleError(f"{path}: damaged .pt2 file ({what}): copy it again, or convert again") from None


class _Refused(Exception):
    """The file is whole, but holds what is not looked at."""


def _members(content: bytes) -> dict[str, bytes]:
    """The archive's files by name, without the folder that they are all in.

    Files are stored, not compressed, so that together they cannot be larger than the archive.
    """
    members: dict[str, bytes] = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        rows = archive.infolist()
        if sum(row.file_size for row in rows) > len(content):
            raise ValueError("its files overlap, or are compressed")
        for row in rows:
            name = row.filename.partition("/")[2]
            if not _MEMBER.fullmatch(name) or name in members:
                raise _Refused(f"holds {row.filename[:100]!r}")
            members[name] = archive.read(row)
    if members.get(_SAMPLES):
        raise _Refused("holds pickled sample inputs")
    return members


def _program(members: Mapping[str, bytes]) -> Program:
    if members["byteorder"] != b"little":
        raise ValueError("weights are not little-endian")
    model = json.loads(members["models/model.json"])
    if model["schema_version"]["major"] != _MAJOR:
        raise _Refused(f"has schema version {model['schema_version']['major']}, not {_MAJOR}")
    graph, signature = model["graph_module"]["graph"], model["graph_module"]["signature"]
    weights, inputs = _inputs(signature, {**_tensors(members, "weights"), **_tensors(members, "constants")})
    outputs = [_only(_only(spec, "user_output")["arg"], "as_tensor")["name"] for spec in signature["output_specs"]]
    nodes = tuple(_node(row) for row in graph["nodes"] if row["target"].removeprefix(_PREFIX) not in _SKIPPED)
    _check_order(nodes, [*weights, *inputs], outputs)
    values = graph["tensor_values"]
    return Program(
        inputs=tuple(_spec(name, values[name]) for name in inputs),
        outputs=tuple(_spec(name, values[name]) for name in outputs),
        weights=weights,
        nodes=nodes,
        metadata={
            name.removeprefix("extra/"): data.decode() for name, data in members.items() if name.startswith("extra/")
        },
    )


def _inputs(
    signature: Mapping[str, Any], stored: Mapping[str, NDArray[Any]]
) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Weights by the name that nodes use, and names of the inputs proper."""
    weights, inputs = {}, []
    for spec in signature["input_specs"]:
        [(kind, row)] = spec.items()
        if kind == "user_input":
            inputs.append(_only(row["arg"], "as_tensor")["name"])
        elif kind in ("parameter", "buffer", "tensor_constant"):
            weights[row["arg"]["name"]] = stored[row[f"{kind}_name"]]
        else:
            raise _Refused(f"has an input of the kind {kind[:40]!r}")
    return weights, inputs


def _tensors(members: Mapping[str, bytes], folder: str) -> dict[str, NDArray[Any]]:
    """The tensors of one folder, each an array of its own, by their torch names."""
    config = json.loads(members[f"data/{folder}/model_{folder}_config.json"])["config"]
    return {name: _tensor(members, folder, row) for name, row in config.items()}


def _tensor(members: Mapping[str, bytes], folder: str, row: Mapping[str, Any]) -> NDArray[Any]:
    if row["use_pickle"]:
        raise _Refused("holds pickled weights")
    meta = row["tensor_meta"]
    shape, strides = ([_only(side, "as_int") for side in meta[key]] for key in ("sizes", "strides"))
    dtype, start = np.dtype(_DTYPES[meta["dtype"]]), _only(meta["storage_offset"], "as_int")
    packed = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    if any(have != want for have, want, side in zip(strides, packed, shape, strict=True) if side != 1) or start < 0:
        raise ValueError(f"{row['path_name']} is not contiguous")
    data = members[f"data/{folder}/{row['path_name']}"]
    array = np.frombuffer(data, dtype, count=math.prod(shape), offset=start * dtype.itemsize)
    return np.array(array.reshape(shape))


def _node(row: Mapping[str, Any]) -> Node:
    operator = row["target"].removeprefix(_PREFIX)
    if not row["target"].startswith(_PREFIX) or operator not in OPERATORS:
        raise _Refused(f"calls {row['target'][:100]!r}")
    named = [(given["kind"], given["name"], _value(given["arg"])) for given in row["inputs"]]
    [(kind, given)] = row["outputs"][0].items()
    results = given if kind == "as_tensors" else [given]
    return Node(
        operator=operator,
        args=tuple(value for kind, _, value in named if kind == 1),
        kwargs={name: value for kind, name, value in named if kind != 1},
        outputs=tuple(result["as_name" if kind == "as_sym_int" else "name"] for result in results),
        several=kind == "as_tensors",
    )


def _value(argument: Mapping[str, Any]) -> Any:
    [(kind, value)] = argument.items()
    made: Any = None
    if kind in ("as_int", "as_float", "as_bool"):
        made = _number(value)
    elif kind == "as_tensor":
        made = Ref(value["name"])
    elif kind == "as_sym_int":
        made = Ref(value["as_name"]) if "as_name" in value else _number(value["as_int"])
    elif kind in ("as_ints", "as_floats", "as_bools", "as_tensors", "as_sym_ints"):
        made = [_value({kind[:-1]: one}) for one in value]
    elif kind == "as_scalar_type":
        made = Dtype(_DTYPES[value])
    elif kind == "as_string" and value in ("none", "tanh"):  # gelu's
        made = value
    elif kind != "as_none":
        raise _Refused(f"has an argument of the kind {kind[:40]!r}")
    return made


def _number(value: Any) -> int | float | bool:
    if not isinstance(value, (int, float)):
        raise TypeError(f"{str(value)[:40]!r} is no number")
    return value


def _only(row: Mapping[str, Any], kind: str) -> Any:
    """The value of a tagged union that must be of one kind."""
    [(found, value)] = row.items()
    if found != kind:
        raise ValueError(f"{found[:40]} where {kind} was expected")
    return value


def _spec(name: str, meta: Mapping[str, Any]) -> TensorSpec:
    shape = tuple(_number(side["as_int"]) if "as_int" in side else None for side in meta["sizes"])
    return TensorSpec(name, _DTYPES[meta["dtype"]], tuple(None if side is None else int(side) for side in shape))


def _check_order(nodes: tuple[Node, ...], given: list[str], outputs: list[str]) -> None:
    """Whether every name is made once, and before it is used."""
    known = set(given)
    if len(known) != len(given):
        raise ValueError("two inputs have one name")
    for node in nodes:
        for name in _names((node.args, *node.kwargs.values())):
            if name not in known:
                raise ValueError(f"{name!r} is used before it is made")
        if known & set(node.outputs):
            raise ValueError(f"{node.outputs[0]!r} is made twice")
        known |= set(node.outputs)
    if missing := set(outputs) - known:
        raise ValueError(f"{missing.pop()!r} is never made")


def _names(value: Any) -> list[str]:
    if isinstance(value, Ref):
        return [value.name]
    return [name for one in value for name in _names(one)] if isinstance(value, (list, tuple)) else []
