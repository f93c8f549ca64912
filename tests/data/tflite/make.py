"""Makes the models of this folder: python make.py FOLDER. Needs litert-torch 0.10.0 and ai-edge-quantizer 0.10.0.

Run where these are installed, which need not be where edgepose is.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import flatbuffers
import litert_torch
import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_quantizer import qtyping, quantizer

SIDE, JOINTS, WIDTH = 32, 14, 8


class Tiny(torch.nn.Module):
    """uint8 (1, 32, 32, 3) -> heatmaps (1, 14, 8, 8): convolution, linear layer with softmax, convolution."""

    def __init__(self, *, mixed: bool = True) -> None:
        super().__init__()
        self.mixed = mixed
        self.stem = torch.nn.Conv2d(3, WIDTH, 4, stride=4)
        self.mix = torch.nn.Linear(WIDTH, WIDTH)
        self.head = torch.nn.Conv2d(WIDTH, JOINTS, 1)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        x = torch.relu(self.stem((image.float() / 255).permute(0, 3, 1, 2)))
        if self.mixed:
            tokens = x.flatten(2).transpose(1, 2)
            tokens = tokens + torch.softmax(self.mix(tokens), dim=-1)
            x = tokens.transpose(1, 2).reshape(x.shape)
        return {"heatmaps": self.head(x)}


def crop(seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (1, SIDE, SIDE, 3), dtype=np.uint8)


def export(path: Path, *, mixed: bool = True) -> None:
    """The float model, and torch's answer for crop 0."""
    torch.manual_seed(0)
    model, image = Tiny(mixed=mixed).eval(), torch.from_numpy(crop(0))
    litert_torch.convert(model, sample_kwargs={"image": image}).export(str(path))
    with torch.no_grad():
        np.savez(path.with_suffix(".npz"), image=image.numpy(), heatmaps=model(image)["heatmaps"].numpy())


def quantize(source: Path, path: Path, *, static: bool) -> None:
    """Convolutions and the linear layer in INT8, the rest in float."""
    tool = quantizer.Quantizer(str(source))
    for name in (qtyping.TFLOperationName.CONV_2D, qtyping.TFLOperationName.FULLY_CONNECTED):
        if static:
            tool.add_static_config(regex=".*", operation_name=name, activation_num_bits=8, weight_num_bits=8)
        else:
            tool.add_dynamic_config(regex=".*", operation_name=name, num_bits=8)
    crops = {"serving_default": [{"image": crop(i)} for i in range(8)]}
    tool.quantize(tool.calibrate(crops) if static else None).export_model(str(path), overwrite=True)


def edit(source: Path, path: Path, change: Any) -> None:
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(source.read_bytes(), 0))
    change(model)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))


def free_batch(model: Any) -> None:
    """litert-torch writes no free batch for this model."""
    for tensor in model.subgraphs[0].tensors:
        data = model.buffers[tensor.buffer].data
        if len(tensor.shape) == 4 and tensor.shape[0] == 1 and (data is None or not len(data)):
            tensor.shapeSignature = [-1, *tensor.shape[1:]]


def newer(model: Any) -> None:
    for code in model.operatorCodes:
        if code.builtinCode == schema.BuiltinOperator.SOFTMAX:
            code.version = 99


def custom(model: Any) -> None:
    for operator in model.subgraphs[0].operators:
        code = model.operatorCodes[operator.opcodeIndex]
        if code.builtinCode == schema.BuiltinOperator.SOFTMAX:
            code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
            code.customCode = b"edgetpu-custom-op"
            operator.builtinOptions, operator.builtinOptionsType = None, 0


if __name__ == "__main__":
    out = Path(sys.argv[1])
    export(out / "fp32.tflite")
    quantize(out / "fp32.tflite", out / "int8.tflite", static=True)
    quantize(out / "fp32.tflite", out / "dynamic.tflite", static=False)
    export(out / "batch.tflite", mixed=False)
    edit(out / "batch.tflite", out / "batch.tflite", free_batch)
    edit(out / "fp32.tflite", out / "newer.tflite", newer)
    edit(out / "fp32.tflite", out / "custom.tflite", custom)
