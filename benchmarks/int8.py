"""INT8 by our recipes against FP32, PyTorch eager, and NNCF's defaults: `int8.py CALIBRATION [MODEL ...]`.

The weights are made up from each key's name (as in tests/conftest.py), so that anybody measures the same models;
untrained heatmaps have no clear peak, which is the hard case for quantization. Every row of a model is timed in the
same rounds, in turn, batch 1, with the same threads; medians of wall and CPU time of the whole process.

    eager            PyTorch, FP32, as the checkpoint is
    *-fp32, *-int8   edgepose convert: exact rewrites, recipe of the engine
    nncf-default     openvino.convert_model of the model as it is, nncf.quantize(model_type=TRANSFORMER)
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import torch
from numpy.typing import NDArray

from edgepose.calibration.agreement import Comparison
from edgepose.calibration.datasets.registry import open_pictures
from edgepose.calibration.samples import collect
from edgepose.converters.checkpoint import Checkpoint
from edgepose.converters.contract import Deployed
from edgepose.converters.convert import convert
from edgepose.converters.openvino import save_openvino
from edgepose.converters.rewrite import rewrite
from edgepose.machine import machine
from edgepose.models.registry import ModelRow, get_model
from edgepose.runtimes.load import load_file, model_bytes
from edgepose.runtimes.openvino import import_openvino

VARIANTS = ("onnx-fp32", "onnx-int8", "openvino-fp32", "openvino-int8", "tflite-fp32", "tflite-int8")
Crops = NDArray[np.uint8]
Run = Callable[[Crops], NDArray[np.float32]]


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


def rewriting_error(model: torch.nn.Module, crops: Crops) -> tuple[float, float, float]:
    """Largest difference of the rewritten model: in float32, in float64, and of float32 from float64 as it is."""
    image = torch.from_numpy(crops)
    with torch.inference_mode():
        single, rewritten = Deployed(model)(image), Deployed(rewrite(model))(image)
        double = Deployed(model).double()
        exact = double.model((image.permute(0, 3, 1, 2).double() * double.scale) + double.shift)
        other = rewrite(double.model)((image.permute(0, 3, 1, 2).double() * double.scale) + double.shift)
        model.float()
    differences = (single - rewritten, exact - other, single - exact)
    return tuple(float(d.abs().max()) for d in differences)  # type: ignore[return-value]


def nncf_default(model: torch.nn.Module, row: ModelRow, crops: Crops, scratch: Path) -> Any:
    """What anybody gets from torch.onnx.export, openvino.convert_model and nncf.quantize, told only what it must be."""
    example = torch.zeros((1, *row.input_hw, 3), dtype=torch.uint8)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Deployed(model), (example,), scratch / "plain.onnx", dynamo=True, verbose=False,
                          input_names=["image"], output_names=["heatmaps"], external_data=False)  # fmt: skip
        plain = import_openvino().convert_model(scratch / "plain.onnx")
        data = nncf.Dataset(list(crops), lambda crop: crop[None])
        return nncf.quantize(plain, data, subset_size=len(crops), model_type=nncf.ModelType.TRANSFORMER)


def timed(runs: Mapping[str, Run], crops: Crops, rounds: int) -> dict[str, tuple[float, float]]:
    """Median wall and CPU milliseconds of one crop, all in turn."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for i in range(rounds + 3):
        crop = crops[i % len(crops)][None]
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run(crop)
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: tuple(1e3 * np.median(values[3:], axis=0)) for name, values in times.items()}


def measure(name: str, calibration: Path, scratch: Path, arguments: argparse.Namespace) -> None:
    """One model: convert, compare, time, print."""
    row = get_model(name)
    model = row.build()
    model.load_state_dict({key: weight(key, tensor) for key, tensor in model.state_dict().items()})
    chosen = collect(open_pictures(calibration), row.spec, arguments.crops + 32, 0, _never)
    verify, calibrate = chosen.crops[:32], chosen.crops[32:]
    single, double, rounding = rewriting_error(model, verify[:2])
    print(f"\n{name}: rewritten, float32 differs by {single:.1e}, float64 by {double:.1e}; "
          f"as it is, float32 is {rounding:.1e} off float64")  # fmt: skip
    made = convert(
        Checkpoint(model, row, {"made_up": True}),
        scratch / "bundle",
        VARIANTS,
        calibration=calibration,
        calibration_size=arguments.crops,
    )
    default = scratch / "nncf-default.xml"
    save_openvino(nncf_default(model, row, calibrate, scratch), row.spec, default, fp16=False)
    files = {v: next((scratch / "bundle").glob(f"{v}.[oxt]*")) for v in VARIANTS} | {"nncf-default": default}
    estimators = {v: load_file(path, threads=arguments.threads) for v, path in files.items()}
    torch.set_num_threads(arguments.threads)
    deployed = Deployed(model)

    def eager(crop: Crops) -> NDArray[np.float32]:
        with torch.inference_mode():
            return deployed(torch.from_numpy(crop)).numpy()

    runs: dict[str, Run] = {"eager": eager, **{v: estimator.heatmaps for v, estimator in estimators.items()}}
    answers = {v: np.concatenate([run(crop[None]) for crop in verify]) for v, run in runs.items()}
    comparison = Comparison(row.spec, tuple(runs), "eager")
    comparison.add(answers, verify, tuple(map(str, range(len(verify)))))
    agreement = comparison.result()
    times = timed(runs, verify, arguments.rounds)
    print(f"{'':15} {'wall ms':>8} {'CPU ms':>7} {'x eager':>8} {'max abs':>8} {'SNR dB':>7} {'mean OKS':>9} {'MB':>6}")
    for variant, (wall, cpu) in times.items():
        a = agreement[variant]
        snr = f"{a.snr_db:.1f}" if math.isfinite(a.snr_db) else "inf"
        size = f"{model_bytes(files[variant]) / 1e6:6.1f}" if variant in files else ""
        speed = times["eager"][0] / wall
        print(
            f"{variant:15} {wall:8.1f} {cpu:7.1f} {speed:8.2f} {a.max_abs_error:8.1e} {snr:>7} {a.mean_oks:9.4f} {size}"
        )
    ours, theirs = times["openvino-int8"][0], times["nncf-default"][0]
    print(
        f"OpenVINO INT8: {theirs / ours:.2f}x NNCF's defaults, {times['openvino-fp32'][0] / ours:.2f}x OpenVINO FP32; "
        f"onnxruntime INT8: {times['onnx-fp32'][0] / times['onnx-int8'][0]:.2f}x onnxruntime FP32; "
        f"TFLite INT8: {times['tflite-fp32'][0] / times['tflite-int8'][0]:.2f}x TFLite FP32; "
        f"calibrated on {made.calibrated_on} crops, compared on {len(verify)} others",
        flush=True,
    )


def _never(image: Crops) -> tuple[NDArray[np.float64], float, bool]:
    raise SystemExit("give labelled data: nobody has to be searched for")


def main() -> None:
    """Measure each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("calibration", type=Path)
    parser.add_argument(
        "models", nargs="*", default=["transpose-r-a3", "transpose-r-a4", "transpose-h-s", "transpose-h-a4"]
    )
    parser.add_argument("--crops", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    print(machine())
    print(f"torch {torch.__version__}, {arguments.threads} threads, batch 1, {arguments.rounds} rounds")
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as scratch:
            measure(name, arguments.calibration, Path(scratch), arguments)


if __name__ == "__main__":
    main()
