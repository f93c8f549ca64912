"""What pruning saves on an engine: pooled keys and values, and plans for a latency, predicted and measured.

    python benchmarks/pruning.py pooling --model transpose-h-s --random
    python benchmarks/pruning.py plans --model transpose-r-t --checkpoint edgepose/assets/transpose-r-t-lspet.pth

Latencies are medians of interleaved rounds, as shares of the unpruned model's in the same run. Samples are crops of
``--pictures``, by default of the sample clip, or noise where weights are random.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgepose.assets import SAMPLE_CLIP
from edgepose.calibration.datasets.registry import open_pictures
from edgepose.converters.checkpoint import Checkpoint, build_random, load_checkpoint
from edgepose.converters.onnx import export_onnx
from edgepose.converters.pruning import Plan, knowledge, prune
from edgepose.converters.pruning_latency import Measure, engine_latency
from edgepose.converters.pruning_plan import possible_changes, reach, try_changes
from edgepose.converters.rewrite import rewrite
from edgepose.converters.samples import crop_samples, noise_samples
from edgepose.errors import PruningError
from edgepose.machine import machine
from edgepose.models.registry import get_model
from edgepose.runtimes.load import load_file


def samples_of(checkpoint: Checkpoint, pictures: Path) -> NDArray[Any]:
    if checkpoint.source["random"]:
        return noise_samples(checkpoint.row.spec, 0).verify
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fp32.onnx"
        export_onnx(rewrite(checkpoint.model), checkpoint.row.spec, path)
        found = crop_samples(open_pictures(pictures), load_file(path), 16, 0, lambda stage, done, total: None)
    return found.calibrate


def pooling(checkpoint: Checkpoint, measure: Measure) -> None:
    models = {f"kv_pool {factor}": prune(checkpoint, Plan(kv_pool=factor)) for factor in (2, 4)}
    latency = measure({"as it is": checkpoint, **models})
    for name, milliseconds in latency.items():
        print(f"{name:10} {milliseconds:8.1f} ms {latency['as it is'] / milliseconds:6.2f}x faster")


def plans(checkpoint: Checkpoint, samples: NDArray[Any], measure: Measure, targets: list[float]) -> None:
    start, known = time.perf_counter(), knowledge(checkpoint, "l2", samples)
    tried = try_changes(checkpoint, possible_changes(checkpoint, samples), samples, measure, known)
    print(f"{len(tried)} changes measured in {time.perf_counter() - start:.0f} s")
    for change in tried:
        print(f"  {change.label:40} saves {change.saves:6.1%}, changes the answers by {change.error:.2f}")
    print(f"{'target':>6} {'predicted':>9} {'measured':>9} {'off':>6}  the first time; then what was taken")
    for target in targets:
        try:
            planned = reach(checkpoint, tried, target, measure, known)
        except PruningError as error:
            print(f"{target:6.2f} {error}")
            continue
        predicted, measured = planned.attempts[0]
        labels = "; ".join(change.label for change in planned.changes)
        off = abs(predicted / measured - 1)
        print(f"{target:6.2f} {predicted:9.2f} {measured:9.2f} {off:6.1%}  {planned.measured:.2f}: {labels}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pooling", "plans"))
    parser.add_argument("--model", default="transpose-r-t")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--pictures", type=Path, default=SAMPLE_CLIP)
    parser.add_argument("--variant", default="openvino-int8")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--targets", default="0.8,0.7,0.6,0.5,0.4")
    given = parser.parse_args()
    if bool(given.checkpoint) == given.random:
        parser.error("give either --checkpoint or --random")
    row = get_model(given.model)
    checkpoint = load_checkpoint(given.checkpoint, row) if given.checkpoint else build_random(row, 0)
    samples = samples_of(checkpoint, given.pictures)
    print(json.dumps({"machine": machine(), "model": row.name, "variant": given.variant, "threads": given.threads}))
    measure = engine_latency(given.variant, samples, threads=given.threads)
    if given.what == "pooling":
        pooling(checkpoint, measure)
    else:
        plans(checkpoint, samples, measure, [float(target) for target in given.targets.split(",")])


if __name__ == "__main__":
    main()
