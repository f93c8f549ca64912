"""How each variant of a bundle is made from an FP32 model that torch exports: one row per format and precision."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray
from torch import nn

from edgepose.bundle import parse_variant
from edgepose.converters.onnx import OPSET, export_onnx, load_onnx, save_onnx
from edgepose.converters.quantize import linear_layers, quantize
from edgepose.converters.recipes import Recipe
from edgepose.errors import ConversionError
from edgepose.types import ModelSpec

__all__ = ["CALIBRATED", "ONNX_TOOLS", "VARIANTS", "Export", "Job", "VariantRow", "get_variant"]

CALIBRATED = ("int8", "int8-16x8")
"""Precisions that need calibration."""

ONNX_TOOLS = ("torch", "onnx", "onnxscript", "nncf", "openvino")

Export = Callable[[nn.Module, ModelSpec, Path, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Job:
    """One variant to make.

    Attributes:
        source: The file of the FP32 model that it is made from: see ``VariantRow.source``.
        path: The file to write; a second one with its weights may come beside it.
        spec: Goes into the file.
        origin: Where the model comes from; goes into the file.
        recipe: How to quantize.
        samples: (N, ...) inputs of the model to calibrate with.
        progress: Told how many samples have passed through the model.
    """

    source: Path
    path: Path
    spec: ModelSpec
    origin: Mapping[str, Any]
    recipe: Recipe
    samples: NDArray[Any]
    progress: Callable[[int], None] = lambda samples: None


@dataclass(frozen=True)
class VariantRow:
    """One kind of artifact.

    Attributes:
        name: ``<format>-<precision>``.
        make: Writes it.
        engine: Which engine's recipe it is quantized by.
        suffixes: Of its files; the first is the one to load.
        exporter: For the manifest: how it is made.
        tools: The packages whose versions decide what comes out.
        source: The FP32 variant that it is made from, its own name included.
        export: Of a source: writes it from a rewritten torch module, a specification and an origin.
        read: The float model that is quantized, out of its source.
        layers: Names of the layers of what ``read`` gives that may stay in float.
    """

    name: str
    make: Callable[[Job], None]
    engine: str
    suffixes: tuple[str, ...]
    exporter: Mapping[str, Any]
    tools: tuple[str, ...] = ONNX_TOOLS
    source: str = "onnx-fp32"
    export: Export | None = None
    read: Callable[[Path], Any] = load_onnx
    layers: Callable[[Any], list[str]] = linear_layers

    @property
    def calibrated(self) -> bool:
        """Whether it needs samples to calibrate with."""
        return parse_variant(self.name)[1] in CALIBRATED

    @property
    def files(self) -> tuple[str, ...]:
        """File names in the bundle."""
        return tuple(self.name + suffix for suffix in self.suffixes)

    def recipe(self, recipe: Recipe) -> dict[str, Any]:
        """For the manifest: everything about how it was made."""
        return {**self.exporter, **({"quantizer": recipe.to_dict()} if self.calibrated else {})}


def _same(job: Job) -> None:
    """The source itself, which carries the same origin."""
    shutil.copyfile(job.source, job.path)


def _export_onnx(model: nn.Module, spec: ModelSpec, path: Path, origin: Mapping[str, Any]) -> None:
    export_onnx(model, spec, path, origin)


def _export_tflite(model: nn.Module, spec: ModelSpec, path: Path, origin: Mapping[str, Any]) -> None:
    from edgepose.converters.tflite import export_tflite

    export_tflite(model, spec, path, origin)


def _export_torch(model: nn.Module, spec: ModelSpec, path: Path, origin: Mapping[str, Any]) -> None:
    from edgepose.converters.torch_program import export_torch

    export_torch(model, spec, path, origin)


def _onnx_int8(job: Job) -> None:
    quantized = quantize(load_onnx(job.source), job.samples, job.recipe, job.progress)
    save_onnx(quantized, job.spec, job.path, job.origin)


def _onnx_fp16(job: Job) -> None:
    from edgepose.converters.half import half_precision

    save_onnx(half_precision(load_onnx(job.source)), job.spec, job.path, job.origin)


def _tensorrt_int8(job: Job) -> None:
    """8 bits where the recipe says so, float16 in between: TensorRT 10 and newer compute in the types of the file."""
    from edgepose.converters.half import half_precision

    quantized = quantize(load_onnx(job.source), job.samples, job.recipe, job.progress)
    save_onnx(half_precision(quantized), job.spec, job.path, job.origin)


def _openvino_float(fp16: bool) -> Callable[[Job], None]:
    def make(job: Job) -> None:
        from edgepose.converters.openvino import export_openvino

        export_openvino(job.source, job.spec, job.path, job.origin, fp16=fp16)

    return make


def _openvino_int8(job: Job) -> None:
    from edgepose.converters.openvino import save_openvino

    quantized = quantize(_openvino_model(job.source), job.samples, job.recipe, job.progress)
    save_openvino(quantized, job.spec, job.path, job.origin, fp16=True)


def _openvino_model(source: Path) -> Any:
    from edgepose.converters.openvino import convert_openvino

    return convert_openvino(source)


def _tflite_fp16(job: Job) -> None:
    from edgepose.converters.tflite_model import load_tflite, save_tflite
    from edgepose.converters.tflite_quantize import half_precision

    save_tflite(half_precision(load_tflite(job.source)), job.spec, job.path, job.origin)


def _tflite_int8(activation_bits: int) -> Callable[[Job], None]:
    def make(job: Job) -> None:
        from edgepose.converters.tflite_model import load_tflite, save_tflite
        from edgepose.converters.tflite_quantize import quantize_tflite

        quantized = quantize_tflite(
            load_tflite(job.source), job.samples, job.recipe, job.progress, activation_bits=activation_bits
        )
        save_tflite(quantized, job.spec, job.path, job.origin)

    return make


def _tflite_model(source: Path) -> Any:
    from edgepose.converters.tflite_model import load_tflite

    return load_tflite(source)


def _tflite_layers(model: Any) -> list[str]:
    from edgepose.converters.tflite import tflite_layers

    return tflite_layers(model)


_ONNX = {"exporter": "torch.onnx dynamo, rewritten", "opset": OPSET}
_ONNX_FP16 = {**_ONNX, "converter": "float16 inside"}
_OPENVINO = {**_ONNX, "converter": "openvino.Core.read_model"}
_IR = (".xml", ".bin")
_TFLITE = VariantRow(
    name="tflite-fp32",
    make=_same,
    engine="tflite",
    suffixes=(".tflite",),
    exporter={"exporter": "litert-torch, rewritten"},
    tools=("torch", "litert-torch", "litert-converter", "ai-edge-quantizer", "ai-edge-litert"),
    source="tflite-fp32",
    export=_export_tflite,
    read=_tflite_model,
    layers=_tflite_layers,
)
_TORCH = VariantRow(
    name="torch-fp32",
    make=_same,
    engine="torch",
    suffixes=(".pt2",),
    exporter={"exporter": "torch.export, rewritten"},
    tools=("torch",),
    source="torch-fp32",
    export=_export_torch,
)

VARIANTS: Mapping[str, VariantRow] = MappingProxyType(
    {
        row.name: row
        for row in (
            VariantRow("onnx-fp32", _same, "onnxruntime", (".onnx",), _ONNX, export=_export_onnx),
            VariantRow("onnx-int8", _onnx_int8, "onnxruntime", (".onnx",), _ONNX),
            VariantRow("onnx-fp16", _onnx_fp16, "onnxruntime", (".onnx",), _ONNX_FP16),
            VariantRow("tensorrt-fp16", _onnx_fp16, "tensorrt", (".onnx",), _ONNX_FP16),
            VariantRow("tensorrt-int8", _tensorrt_int8, "tensorrt", (".onnx",), _ONNX_FP16),
            VariantRow("openvino-fp32", _openvino_float(False), "openvino", _IR, _OPENVINO, read=_openvino_model),
            VariantRow("openvino-fp16", _openvino_float(True), "openvino", _IR, _OPENVINO, read=_openvino_model),
            VariantRow("openvino-int8", _openvino_int8, "openvino", _IR, _OPENVINO, read=_openvino_model),
            _TFLITE,
            replace(_TFLITE, name="tflite-fp16", make=_tflite_fp16, export=None),
            replace(_TFLITE, name="tflite-int8", make=_tflite_int8(8), export=None),
            replace(_TFLITE, name="tflite-int8-16x8", make=_tflite_int8(16), export=None),
            _TORCH,
        )
    }
)


def get_variant(name: str) -> VariantRow:
    """Look a variant up by name.

    Raises:
        BundleError: The name does not follow the grammar.
        ConversionError: This version cannot make it.
    """
    parse_variant(name)
    if name not in VARIANTS:
        raise ConversionError(f"{name}: this version converts to {', '.join(VARIANTS)}")
    return VARIANTS[name]
