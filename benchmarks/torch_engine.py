"""What torch's attention and each precision cost and save on this CPU: ratios of CPU time, and errors.

    python benchmarks/torch_engine.py transpose-r-t transpose-r-a4 transpose-h-s

One thread, random weights, one crop, the least CPU time of several rounds that alternate, so that
other load matters little.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgepose.converters.contract import deployed
from edgepose.converters.rewrite import rewrite
from edgepose.converters.torch_program import export_torch
from edgepose.machine import machine
from edgepose.models.registry import get_model
from edgepose.runtimes.torch import TorchEngine

_ROUNDS = 5


def _least_cpu_ms(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(_ROUNDS):
        for name, run in runs.items():
            before = time.process_time()
            run()
            best[name] = min(best[name], 1000 * (time.process_time() - before))
    return best


def _measure(name: str) -> None:
    torch.manual_seed(0)
    row = get_model(name)
    model = row.build()
    image = np.random.default_rng(0).integers(0, 256, (1, *row.spec.input.shape[1:]), dtype=np.uint8)
    rewritten, tensor = deployed(rewrite(model), row.spec), torch.from_numpy(image)
    runs = {"scores written down": lambda: rewritten(tensor).numpy()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt2"
        export_torch(rewrite(model), row.spec, path)
        for precision in ("fp32", "bf16", "fp16"):
            runs[precision] = _runner(TorchEngine(path, "cpu", 1, precision=precision), image)
    with torch.inference_mode():
        truth = deployed(model, row.spec)(tensor).numpy()
        least = _least_cpu_ms(runs)
        for key, milliseconds in least.items():
            off = np.linalg.norm(runs[key]() - truth) / np.linalg.norm(truth)
            ratio = milliseconds / least["scores written down"]
            print(f"{name:16} {key:20} {milliseconds:8.1f} ms CPU  {ratio:6.2f} of the first  off {off:.1e}")


def _runner(engine: TorchEngine, image: Any) -> Callable[[], Any]:
    return lambda: engine.run({"image": image})["heatmaps"]


def main(models: list[str]) -> None:
    torch.set_num_threads(1)
    for name in models:
        _measure(name)
    print(machine())


if __name__ == "__main__":
    main(sys.argv[1:] or ["transpose-r-t"])
