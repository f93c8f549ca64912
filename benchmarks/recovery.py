"""The starter pruned to parts of its latency, and recovered without labels: `recovery.py TRAIN.zip VAL.zip FOLDER`.

For each target (0.6x and 0.4x by default) `edgepose prune` is run on the pictures of TRAIN.zip without their labels:
they are unpacked into FOLDER as plain pictures, and people are found by the unpruned model. The command's own output
is kept in FOLDER/<target>.log. PCK@0.2 is then measured on VAL.zip for

    unpruned      the starter in FP32, and in INT8 on the engine
    pruned        as it is cut
    recovered     in FP32
    INT8          the recovered model by our recipe, on the engine

Everything that is finished stays in FOLDER: run it again to go on after the last whole epoch, or with --force to start
anew. The rows are in FOLDER/pruning.json too.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

from edgepose.assets import STARTER_WEIGHTS
from edgepose.calibration.datasets.registry import open_pictures
from edgepose.calibration.validate import validate
from edgepose.converters.checkpoint import Checkpoint, load_checkpoint
from edgepose.converters.convert import convert
from edgepose.converters.training.frames import fp32_estimator
from edgepose.files import canonical_json
from edgepose.machine import machine
from edgepose.models.registry import get_model
from edgepose.runtimes.load import load

MODEL = "transpose-r-t"
INT8 = {"onnxruntime": "onnx-int8", "openvino": "openvino-int8"}


def unpacked(archive: Path, folder: Path) -> Path:
    """The pictures of an archive, and nothing that says where joints are."""
    if not folder.is_dir():
        partial = folder.with_name(f".{folder.name}.partial")
        with zipfile.ZipFile(archive) as file:
            for member in file.namelist():
                if member.endswith(".jpg"):
                    file.extract(member, partial)
        partial.rename(folder)
    return folder


def work_of(out: Path) -> Path:
    """Where the command keeps the model as it was cut."""
    return out.with_name(f"{out.name}.work")


def prune(target: str, frames: Path, out: Path, arguments: argparse.Namespace) -> float:
    """Run the command, or what is left of it; minutes that it took."""
    start = time.perf_counter()
    command = [
        *(sys.executable, "-m", "edgepose", "prune", str(STARTER_WEIGHTS), "--model", MODEL, "-o", str(out)),
        *("--target-latency", target, "--engine", arguments.engine, "--frames", str(frames)),
        *("--count", str(arguments.count), "--epochs", str(arguments.epochs), "--batch", str(arguments.batch)),
        *("--lr", str(arguments.lr), "--threads", str(arguments.threads)),
        *(["--qat"] if arguments.qat else []),
        *(["--resume"] if (work_of(out) / "pruned.pth").is_file() else []),
        "--keep-work",
    ]
    with out.with_suffix(".log").open("ab") as log:
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True)
    return (time.perf_counter() - start) / 60


def pck(model: Any, data: Any, limit: int | None) -> float:
    """PCK@0.2 of a loaded model, points."""
    (row,) = validate({"model": model}, data, baseline="model", limit=limit).rows
    assert row.accuracy is not None
    model.close()
    return row.accuracy.value


def row_of(checkpoint: Checkpoint, frames: Path, folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """PCK@0.2 in FP32 and in INT8, which is calibrated on the same frames."""
    data = open_pictures(arguments.val)
    variant = INT8[arguments.engine]
    bundle = folder / f"{checkpoint.source['file']}.bundle"
    if not bundle.is_dir():
        convert(checkpoint, bundle, ["onnx-fp32", variant], calibration=frames)
    return {
        "fp32": pck(fp32_estimator(checkpoint), data, arguments.limit),
        "int8": pck(load(bundle, variant=variant), data, arguments.limit),
    }


def measure(target: str, frames: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One target."""
    out, row = arguments.folder / f"{target}.pth", get_model(MODEL)
    if arguments.force:
        out.unlink(missing_ok=True)
        shutil.rmtree(work_of(out), ignore_errors=True)
        shutil.rmtree(arguments.folder / f"{out.name}.bundle", ignore_errors=True)
    minutes = None if out.exists() else prune(target, frames, out, arguments)
    recovered = load_checkpoint(out, row)
    told = recovered.source["parent"]
    found = row_of(recovered, frames, arguments.folder, arguments)
    cut = load_checkpoint(work_of(out) / "pruned.pth", row)
    return {
        "target": target,
        "minutes": minutes,
        "latency": told["latency"],
        "agreement": {stage: scores.get("agreement") for stage, scores in told["scores"].items()},
        "pruned": pck(fp32_estimator(cut), open_pictures(arguments.val), arguments.limit),
        "recovered": found["fp32"],
        "int8": found["int8"],
        "frames": told["recovery"]["data"]["trained_on"],
    }


def main() -> None:
    """Each target in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("val", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--targets", nargs="*", default=["0.6x", "0.4x"])
    parser.add_argument("--engine", choices=list(INT8), default="openvino")
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=36)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=int, help="pictures to validate on")
    parser.add_argument("--qat", action="store_true")
    parser.add_argument("--force", action="store_true")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    frames = unpacked(arguments.train, arguments.folder / "frames")
    print(machine())
    unpruned = row_of(load_checkpoint(STARTER_WEIGHTS, get_model(MODEL)), frames, arguments.folder, arguments)
    print(f"unpruned: PCK@0.2 {unpruned['fp32']:.1f} in FP32, {unpruned['int8']:.1f} in INT8", flush=True)
    rows = []
    for target in arguments.targets:
        rows.append(measure(target, frames, arguments))
        print(_line(rows[-1], unpruned), flush=True)
        (arguments.folder / "pruning.json").write_text(
            canonical_json({"machine": machine(), "unpruned": unpruned, "rows": rows}), encoding="utf-8"
        )


def _line(row: dict[str, Any], unpruned: dict[str, float]) -> str:
    latency = row["latency"]
    return (
        f"{row['target']}: {latency['variant']} {latency['base_ms']:.2f} -> {latency['measured_ms']:.2f} ms "
        f"({latency['measured_ms'] / latency['base_ms']:.2f}x, {latency.get('predicted', 0):.2f}x predicted); "
        f"PCK@0.2 {unpruned['fp32']:.1f} unpruned, {row['pruned']:.1f} pruned, {row['recovered']:.1f} recovered on "
        f"{row['frames']} crops without labels, {row['int8']:.1f} in INT8"
    )


if __name__ == "__main__":
    main()
