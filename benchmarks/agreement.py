"""INT8 against FP32 for published architectures with made-up weights: `agreement.py COCO.json [MODEL ...]`.

The weights depend on nothing but each key's name (as in tests/conftest.py), so that anybody gets the same models.
Untrained weights are the hard case for quantization: their heatmaps have no clear peak. Prints agreement and latency.
"""

from __future__ import annotations

import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import torch

from edgepose.converters.checkpoint import Checkpoint
from edgepose.converters.convert import convert
from edgepose.machine import machine
from edgepose.models.registry import get_model
from edgepose.runtimes.latency import measure_latency
from edgepose.runtimes.load import load


def weight(key: str, tensor: torch.Tensor) -> torch.Tensor:
    """A weight from its key alone."""
    g = np.random.default_rng(zlib.crc32(key.encode()))
    shape = tuple(tensor.shape)
    if key == "pos_embedding" or key.endswith("num_batches_tracked"):
        return tensor
    if key.endswith("running_var") or (len(shape) == 1 and key.endswith("weight")):
        value = g.uniform(0.5, 1.5, shape)
    elif len(shape) >= 2:
        value = g.standard_normal(shape) * np.sqrt(1 / np.prod(shape[1:]))
    else:
        value = 0.1 * g.standard_normal(shape)
    return torch.from_numpy(value.astype(np.float32))


def main(calibration: Path, names: list[str]) -> None:
    """Convert, compare and time each model."""
    print(machine())
    for name in names:
        row = get_model(name)
        model = row.build()
        model.load_state_dict({key: weight(key, tensor) for key, tensor in model.state_dict().items()})
        with tempfile.TemporaryDirectory() as scratch:
            bundle = Path(scratch) / "bundle"
            variants = ["onnx-fp32", "onnx-int8"]
            made = convert(Checkpoint(model, row, {"made_up": True}), bundle, variants, calibration=calibration)
            rows = measure_latency({v: load(bundle, variant=v) for v in variants}, iterations=30, warmup=3)
        a = made.rows[1].agreement
        print(
            f"{name}: ONNX FP32 {made.torch_max_abs_error:.1e} off torch; INT8 calibrated on {made.calibrated_on}, "
            f"compared on {made.verified_on} other crops: mean OKS {a.mean_oks:.4f}, shift {a.mean_shift_px:.2f} px "
            f"(p95 {a.p95_shift_px:.2f}), max abs {a.max_abs_error:.2g}, {a.snr_db:.1f} dB; "
            f"{made.rows[0].megabytes:.1f} -> {made.rows[1].megabytes:.1f} MB; "
            f"{rows[0].infer_ms:.1f} -> {rows[1].infer_ms:.1f} ms ({rows[1].speedup:.2f}x)"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or ["transpose-r-a3", "transpose-h-s"])
