"""Torch module -> one self-contained torch.export file (``.pt2``) that carries its specification.

The file runs wherever torch runs, without this package's model code. It holds no pickle: no sample inputs, and weights
as raw bytes; see ``runtimes/pt2_file.py``, which reads it.
"""

from __future__ import annotations

import copy
import io
import json
import operator
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.nn import functional

from edgepose.converters.contract import deployed, example_input
from edgepose.converters.rewrite import FusedAttention, FusedEncoder
from edgepose.errors import ConversionError
from edgepose.runtimes.pt2_file import OPERATORS
from edgepose.types import ORIGIN_KEY, SPEC_KEY, ModelSpec

__all__ = ["export_torch"]

_DEVICE_CHECK = torch.ops.aten._assert_tensor_metadata.default


def export_torch(model: nn.Module, spec: ModelSpec, path: Path, origin: Mapping[str, Any] | None = None) -> None:
    """Export a model behind the I/O contract in FP32, with a free batch dimension; the same model, the same bytes.

    Args:
        model: A 2D model, which takes normalised (N, 3, H, W) float32, or a lifting model. It stays as it is.
        spec: Written into the file.
        path: The ``.pt2`` to write.
        origin: Where the model comes from, as JSON values; written beside the specification.

    Raises:
        ConversionError: torch.export cannot export it, or it needs an operator that the engine does not allow.
    """
    batch = {spec.input.name: {0: torch.export.Dim("N")}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(
                deployed(_prepared(model), spec), (example_input(spec, 2),), dynamic_shapes=batch, strict=False
            )
        except Exception as error:  # the exporter's errors have no common base but Exception
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConversionError(f"{spec.name}: torch.export cannot export it ({reason})") from error
    _clean(program, spec)
    texts = {SPEC_KEY: spec.to_json(), ORIGIN_KEY: json.dumps(origin or {}, sort_keys=True)}
    archive = io.BytesIO()  # and not the path, whose name would be the archive's folder
    torch.export.save(program, archive, extra_files=texts)
    path.write_bytes(archive.getvalue())


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Torch's own attention, which never writes the T x T scores down: docs/torch.md says what that saves."""
    if q.ndim == 4:
        return functional.scaled_dot_product_attention(q, k, v, scale=1.0)
    q, k, v = (x.unsqueeze(1) for x in (q, k, v))  # its fast kernels want an axis of heads
    return functional.scaled_dot_product_attention(q, k, v, scale=1.0).squeeze(1)


def _prepared(model: nn.Module) -> nn.Module:
    """A copy with torch's attention, and without weights that nothing reads; others in memory of their own."""
    lean = copy.deepcopy(model)
    for parent in lean.modules():
        if isinstance(parent, FusedAttention):
            parent.attend = _attend  # type: ignore[method-assign]
        if any(isinstance(child, FusedEncoder) for child in parent.children()):
            setattr(parent, "pos_embedding", None)  # noqa: B010 - nn.Module's own attribute types are narrower
    for tensor in (*lean.parameters(), *lean.buffers()):
        tensor.requires_grad_(False)
        tensor.data = tensor.detach().clone(memory_format=torch.contiguous_format)
    return lean


def _clean(program: ExportedProgram, spec: ModelSpec) -> None:
    """Take out what is of the exporting machine, device or process, and name the output by the contract."""
    program.example_inputs = None  # or they would be pickled
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target == _DEVICE_CHECK:
            graph.erase_node(node)
            continue
        _check(node, spec)
        modules = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
        node.meta = {key: node.meta[key] for key in ("val",) if key in node.meta}
        if any(modules):  # the innermost, for whoever wants to know where time goes
            node.meta["nn_module_stack"] = {modules[-1]: (modules[-1], "torch.nn.Module")}
    (answer,) = graph.output_node().args[0]
    program.graph_signature.replace_all_uses(answer.name, spec.output.name)
    answer.name = spec.output.name
    program.graph_module.recompile()


def _check(node: fx.Node, spec: ModelSpec) -> None:
    """Whether the engine will run a node.

    Raises:
        ConversionError: It will not.
    """
    name = str(node.target).removeprefix("aten.")
    if node.op == "call_function" and node.target != operator.getitem and name not in OPERATORS:
        raise ConversionError(f"{spec.name}: uses {node.target}, which is not in OPERATORS of runtimes/pt2_file.py")
