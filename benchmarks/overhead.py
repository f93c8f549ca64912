"""What our OpenVINO engine costs over OpenVINO's own benchmark_app: `overhead.py MODEL.xml [--threads 2] [--rounds 5]`.

Same IR, batch 1, one stream (latency mode), f32 hint, the same threads; both run in turn, each in its own process, and
give their median. benchmark_app keeps its input in the request; our engine is handed a new array in every call, and
gives one back.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from edgepose.machine import machine

_OURS = """
import sys, time
import numpy as np
from edgepose.runtimes.load import load_file
estimator = load_file(__import__("pathlib").Path(sys.argv[1]), threads=int(sys.argv[2]), options={"mode": "latency"})
width, height = estimator.spec.input_wh
crops = np.random.default_rng(0).integers(0, 256, (8, 1, height, width, 3), dtype=np.uint8)
times, end = [], time.perf_counter() + float(sys.argv[3])
while time.perf_counter() < end:
    start = time.perf_counter()
    estimator.engine.run({"image": crops[len(times) % 8]})
    times.append(1e3 * (time.perf_counter() - start))
print(np.median(times[3:]), height, width)
"""


def ours(model: Path, threads: int, seconds: float) -> tuple[float, str]:
    """Median milliseconds of our engine, and the shape of its input."""
    arguments = [sys.executable, "-c", _OURS, str(model), str(threads), str(seconds)]
    text = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    median, height, width = text.split()
    return float(median), f"[1,{height},{width},3]"


def theirs(model: Path, shape: str, threads: int, seconds: float) -> float:
    """Median milliseconds that benchmark_app prints."""
    tool = Path(sys.executable).with_name("benchmark_app")
    arguments = [str(tool), "-m", str(model), "-d", "CPU", "-hint", "none", "-nstreams", "1", "-api", "sync"]
    arguments += ["-shape", shape, "-nthreads", str(threads), "-infer_precision", "f32", "-t", str(round(seconds))]
    text = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    found = re.search(r"Median:\s*([\d.]+) ms", text)
    assert found is not None, text
    return float(found[1])


def main() -> None:
    """Measure in turn, and print the medians of the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    print(machine())
    for model in arguments.models:
        times = []
        for _ in range(arguments.rounds):
            mine, shape = ours(model, arguments.threads, arguments.seconds)
            times.append((mine, theirs(model, shape, arguments.threads, arguments.seconds)))
        mine, app = np.median(times, axis=0)
        print(f"{model.name}: engine {mine:.2f} ms, benchmark_app {app:.2f} ms: {100 * (mine / app - 1):+.1f} %")


if __name__ == "__main__":
    main()
