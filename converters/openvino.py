"""FP32 ONNX -> OpenVINO IR that carries its specification: an ``.xml`` with its ``.bin``."""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgepose.converters.rewrite import separate
from edgepose.errors import ConversionError
from edgepose.runtimes.openvino import import_openvino
from edgepose.types import ORIGIN_KEY, SPEC_KEY, ModelSpec

__all__ = ["convert_openvino", "export_openvino", "load_openvino", "save_openvino"]

_LEFT_OUT = ("conversion_parameters", "framework")  # a file name, and the ONNX metadata once more
_LARGE = 1 << 15
_NUMBERED = re.compile(r"(?<![A-Za-z0-9_])([A-Z][A-Za-z]*)_(\d+)")  # OpenVINO's own names, such as Convert_859


def export_openvino(
    onnx_path: Path, spec: ModelSpec, path: Path, origin: Mapping[str, Any] | None = None, *, fp16: bool
) -> None:
    """Convert an FP32 ONNX file, with its free batch dimension.

    Args:
        onnx_path: What :func:`edgepose.converters.onnx.export_onnx` wrote.
        spec: Written into the file.
        path: The ``.xml`` to write; the ``.bin`` comes beside it.
        origin: Where the model comes from, as JSON values; written beside the specification.
        fp16: Store float weights in 16 bits.

    Raises:
        ConversionError: OpenVINO cannot convert it, or the file cannot be written.
        ImportError: OpenVINO is not installed.
    """
    save_openvino(convert_openvino(onnx_path), spec, path, origin, fp16=fp16)


def convert_openvino(onnx_path: Path) -> Any:
    """An FP32 ONNX file as an ``openvino.Model``, with its free batch dimension, and constants folded.

    ``openvino.convert_model`` would fuse attention into one operation as well: engines that gain from it do so when
    they compile, and a quantizer needs to see its parts.

    Raises:
        ConversionError: OpenVINO cannot convert it.
        ImportError: OpenVINO is not installed.
    """
    try:
        model = _core().read_model(onnx_path)
        passes = importlib.import_module("openvino.passes")
        manager = passes.Manager()
        manager.register_pass(passes.ConstantFolding())
        manager.run_passes(model)
        return model
    except ImportError:
        raise
    except Exception as error:  # OpenVINO raises many types, with no common base but Exception
        raise ConversionError(f"{onnx_path.name}: OpenVINO cannot convert it ({error})") from error


def save_openvino(
    model: Any, spec: ModelSpec, path: Path, origin: Mapping[str, Any] | None = None, *, fp16: bool
) -> None:
    """Write a model with its specification; the same model is always the same bytes.

    Nodes that OpenVINO or NNCF named by a counter of the process are numbered anew, in the model itself as well.

    Raises:
        ConversionError: The file cannot be written.
        ImportError: OpenVINO is not installed.
    """
    _separate_tables(model)
    _renumber(model)
    for key in _LEFT_OUT:
        if model.has_rt_info([key]):
            del model.rt_info[key]
    model.set_rt_info(spec.to_json(), [SPEC_KEY])
    model.set_rt_info(json.dumps(origin or {}, sort_keys=True), [ORIGIN_KEY])
    try:
        import_openvino().save_model(model, path, compress_to_fp16=fp16)
    except RuntimeError as error:
        raise ConversionError(f"{path}: OpenVINO cannot write it ({error})") from error


def load_openvino(path: Path) -> Any:
    """Read a model (``openvino.Model``) that :func:`save_openvino` wrote, to quantize it or to save it again.

    Raises:
        ImportError: OpenVINO is not installed.
    """
    return _core().read_model(path)


def _core() -> Any:
    core = import_openvino().Core()
    core.set_property({"ENABLE_MMAP": False})  # or writing the file again would change the weights of this model
    return core


def _separate_tables(model: Any) -> None:
    """Store a large constant that is a sum over rows and columns as that sum: the position in attention, mostly.

    OpenVINO folds such sums when it converts a model, and again when it compiles one; in between they cost space.
    """
    ops = import_openvino().opset13
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type().get_type_name() != "f32":
            continue
        shape = list(node.get_output_shape(0))
        if len(shape) < 2 or math.prod(shape[:-2]) != 1 or math.prod(shape) < _LARGE or shape[-2] < shape[-1] // 8:
            continue
        tables = separate(torch.from_numpy(np.array(node.get_data()).reshape(shape[-2:])))
        if tables is not None:
            whole = ops.add(*(ops.constant(np.ascontiguousarray(table.numpy())) for table in tables))
            target = ops.reshape(whole, np.array(shape, np.int64), False)
            target.set_friendly_name(node.get_friendly_name())
            for reader in node.output(0).get_target_inputs():
                reader.replace_source_output(target.output(0))


def _renumber(model: Any) -> None:
    """Name nodes by their place in the graph where a counter named them: Convert_859 becomes Convert_0."""
    numbers: dict[str, int] = {}
    for op in model.get_ordered_ops():
        name = op.get_friendly_name()
        op.set_friendly_name(_NUMBERED.sub(lambda m: f"{m[1]}_{numbers.setdefault(m[0], len(numbers))}", name))
