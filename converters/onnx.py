"""Torch module -> one self-contained ONNX file that carries its specification."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxscript.optimizer
import torch
from torch import nn

from edgepose.converters.contract import deployed, example_input
from edgepose.errors import ConversionError
from edgepose.types import ORIGIN_KEY, SPEC_KEY, ModelSpec

__all__ = ["OPSET", "describe_difference", "export_onnx", "load_onnx", "save_onnx"]

OPSET = 18
"""Lowest opset with a real LayerNormalization that exporter and engines agree on."""

_FOLD_BYTES = 1 << 30


def export_onnx(
    model: nn.Module, spec: ModelSpec, path: Path, origin: Mapping[str, Any] | None = None
) -> onnx.ModelProto:
    """Export a pose model behind the I/O contract, with a free batch dimension.

    Constant subgraphs (weight slices and transposes) are folded, so that a quantizer sees plain weights. Stack
    traces and module names are stripped: they hold paths of the exporting machine, and cost size.

    Args:
        model: A 2D model, which takes normalised (N, 3, H, W) float32; or a lifting model.
        spec: Written into the file's metadata.
        path: File to write.
        origin: Where the model comes from, as JSON values; written beside the specification.

    Raises:
        ConversionError: torch.onnx cannot export it.
    """
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _quiet("torch.onnx", "onnxscript"):
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                deployed(model, spec),
                (example_input(spec, 2),),
                dynamo=True,
                external_data=False,
                opset_version=OPSET,
                input_names=[spec.input.name],
                output_names=[spec.output.name],
                dynamic_shapes={spec.input.name: {0: torch.export.Dim("N")}},
                optimize=False,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ConversionError(f"{spec.name}: torch.onnx cannot export it ({error})") from error
        assert program is not None
        onnxscript.optimizer.optimize_ir(
            program.model, input_size_limit=_FOLD_BYTES, output_size_limit=_FOLD_BYTES, should_fold=_unless_larger
        )
    proto = _stripped(_with_plain_shapes(program.model_proto))
    save_onnx(proto, spec, path, origin)
    return proto


def save_onnx(proto: onnx.ModelProto, spec: ModelSpec, path: Path, origin: Mapping[str, Any] | None = None) -> None:
    """Write a model with its specification in the metadata; the same model is always the same bytes."""
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, {SPEC_KEY: spec.to_json(), ORIGIN_KEY: json.dumps(origin or {}, sort_keys=True)})
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString(deterministic=True))


def load_onnx(path: Path) -> onnx.ModelProto:
    """Read a model that :func:`save_onnx` wrote."""
    return onnx.load(path)


def describe_difference(was: Path, now: Path) -> str:
    """In a few words, where two models that differ as files differ as graphs."""
    old, new = load_onnx(was), load_onnx(now)
    if [node.op_type for node in old.graph.node] != [node.op_type for node in new.graph.node]:
        return f"the graph: {len(old.graph.node)} nodes then, {len(new.graph.node)} now"
    tensors = {tensor.name: tensor.SerializeToString() for tensor in old.graph.initializer}
    changed = [t.name for t in new.graph.initializer if tensors.get(t.name) != t.SerializeToString()]
    if changed:
        return f"{len(changed)} of {len(tensors)} tensors"
    return "metadata alone (where it is from, or versions)"


def _with_plain_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with [-1, 768, 256] where the exporter computes [N, 768, 256] from the shape of the input."""
    graph = proto.graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    batch = {name for node in graph.node if node.op_type == "Shape" for name in node.output}
    reshaped = {node.input[1] for node in graph.node if node.op_type == "Reshape"}
    for node in list(graph.node):
        rest = [constants.get(name) for name in node.input[1:]]
        if node.op_type != "Concat" or node.output[0] not in reshaped or node.input[0] not in batch:
            continue
        if all(dims is not None and dims.min() >= 0 for dims in rest):
            shape = np.concatenate([[-1], *rest]).astype(np.int64)
            graph.initializer.append(onnx.numpy_helper.from_array(shape, node.output[0]))
            graph.node.remove(node)
    read = {name for node in graph.node for name in node.input}
    for node in [node for node in graph.node if node.op_type == "Shape" and node.output[0] not in read]:
        graph.node.remove(node)
    unread = [tensor for tensor in graph.initializer if tensor.name not in read]
    for tensor in unread:
        graph.initializer.remove(tensor)
    return proto


def _stripped(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model without what differs from machine to machine, its nodes named by the module that they come from."""
    graph = proto.graph
    taken: Counter[str] = Counter()
    for node in graph.node:
        name = f"{_module_of(node)}/{node.op_type}"
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"
    holders = [graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer]
    for holder in holders:
        holder.doc_string = ""
        del holder.metadata_props[:]
    return proto


def _unless_larger(node: Any) -> bool | None:
    """Sums of small tables that make a large one are left to the engine, which folds them when it loads the model."""
    return False if node.op_type == "Add" and node.outputs[0].dtype == onnx.TensorProto.FLOAT else None


def _module_of(node: onnx.NodeProto) -> str:
    """For instance ``global_encoder.layers.0.linear1``, from the exporter's notes."""
    notes = {note.key: note.value for note in node.metadata_props}
    try:
        scopes = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]"))
    except (SyntaxError, ValueError):
        scopes = []
    modules = [str(scope) for scope in scopes[:-1] if str(scope).startswith("model.")]
    return modules[-1].removeprefix("model.") if modules else "contract"


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Keep library chatter (torchvision is not installed, ...) off the terminal."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
