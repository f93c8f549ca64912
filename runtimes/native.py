"""The benchmark tools that engines ship, run beside our own measurement with the same settings on the same file."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgepose.types import TensorSpec

__all__ = ["TOOLS", "Job", "Native", "Tool", "compare_with_tool", "find_tool"]

_OURS = """
import json, sys, time
from pathlib import Path
import numpy as np
from edgepose.runtimes.load import load_model
path, engine, device, threads, batch, seconds, options = sys.argv[1:]
model = load_model(path, engine, device, threads=int(threads) or None, self_test=False, options=json.loads(options))
tensor = model.spec.input
shape = (8, int(batch), *tensor.shape[1:])
random = np.random.default_rng(0)
image = np.dtype(tensor.dtype) == np.uint8
inputs = random.integers(0, 256, shape, np.uint8) if image else random.random(shape).astype(tensor.dtype)
times, end = [], time.perf_counter() + float(seconds)
while time.perf_counter() < end or len(times) < 8:
    start = time.perf_counter()
    model.engine.run({tensor.name: inputs[len(times) % 8]})
    times.append(1e3 * (time.perf_counter() - start))
print(np.median(times[3:]))
"""
_ROUNDS, _SECONDS = 5, 2.0
_UNITS = {"us": 1e-3, "ms": 1.0}


@dataclass(frozen=True)
class Job:
    """What is timed: a file on an engine, threads and batch; ``runs`` come to about ``seconds``."""

    path: Path
    engine: str
    device: str
    threads: int | None
    batch: int
    tensor: TensorSpec
    runs: int = 100
    seconds: float = _SECONDS
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the input, batch first."""
        return (self.batch, *(int(side or 0) for side in self.tensor.shape[1:]))

    @property
    def cores(self) -> int:
        """Threads, or one for each core that this process may use."""
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.threads or usable


@dataclass(frozen=True)
class Tool:
    """A benchmark tool.

    Attributes:
        name: Of the program.
        engine: Whose it is.
        devices: Devices that it is asked to run on.
        arguments: Those of a job.
        pattern: Finds the median in what it prints, and its unit where that varies.
        to_ms: What a median without a unit is in milliseconds.
        most_batch: Largest batch that it can be told.
    """

    name: str
    engine: str
    devices: tuple[str, ...]
    arguments: Callable[[Job], list[str]]
    pattern: str
    to_ms: float = 1.0
    most_batch: int = 1024

    def median_ms(self, text: str) -> float | None:
        """The median that it printed; None where there is none."""
        found = re.search(self.pattern, text)
        if not found:
            return None
        return float(found[1]) * (_UNITS[found[2]] if found.re.groups > 1 else self.to_ms)


@dataclass(frozen=True)
class Native:
    """Medians side by side, milliseconds; ``note`` says why there are none.

    ``ratio`` is the median of ours / the tool's over the rounds: a slow minute slows both of a round.
    """

    tool: str | None
    tool_ms: float | None
    ours_ms: float | None
    ratio: float | None
    note: str | None = None


def _openvino(job: Job) -> list[str]:
    shape = f"[{','.join(map(str, job.shape))}]"
    fixed = ["-hint", "none", "-nstreams", "1", "-api", "sync", "-shape", shape, "-t", str(max(1, round(job.seconds)))]
    threads = ["-nthreads", str(job.threads)] if job.threads else []
    cpu = ["-infer_precision", "f32", "-pin", "NO", *threads] if job.device == "cpu" else []
    return ["-m", str(job.path), "-d", job.device.upper(), *fixed, *cpu]


def _onnxruntime(job: Job) -> list[str]:
    free = ["-I", "-f", f"N:{job.batch}"]  # random inputs; our batch dimension is named N
    return ["-e", job.device, *free, "-x", str(job.cores), "-r", str(job.runs), str(job.path)]


def _litert(job: Job) -> list[str]:
    return [f"--model={job.path}", f"--num_threads={job.cores}", f"--num_runs={job.runs}", "--warmup_runs=10"]


def _tflite(job: Job) -> list[str]:
    return [f"--graph={job.path}", f"--num_threads={job.cores}", f"--num_runs={job.runs}", "--warmup_runs=10"]


def _trtexec(job: Job) -> list[str]:
    flag = "--onnx" if job.path.suffix == ".onnx" else "--loadEngine"
    shape = f"--shapes={job.tensor.name}:{'x'.join(map(str, job.shape))}"
    return [f"{flag}={job.path}", shape, f"--duration={job.seconds:g}", "--useCudaGraph", "--noDataTransfers"]


TOOLS = (
    Tool("benchmark_app", "openvino", ("cpu", "gpu", "npu"), _openvino, r"Median:\s*([\d.]+) (us|ms)"),
    Tool("onnxruntime_perf_test", "onnxruntime", ("cpu", "cuda"), _onnxruntime, r"P50 Latency:\s*([\d.e-]+)", 1e3),
    Tool("benchmark_model", "tflite", ("cpu",), _tflite, r"\bmedian=([\d.]+)", 1e-3, most_batch=1),
    Tool("litert-benchmark", "tflite", ("cpu",), _litert, r"Inference \(median\):\s*([\d.]+) ms", most_batch=1),
    Tool("trtexec", "tensorrt", ("cuda",), _trtexec, r"GPU Compute Time:.*? median = ([\d.]+) ms"),
)
"""The first that is here and fits is taken."""


def find_tool(name: str) -> Path | None:
    """A program on the path, or beside the Python that runs this, where packages put theirs."""
    beside = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    return Path(found) if found else beside if beside.is_file() else None


def compare_with_tool(
    job: Job, rounds: int = _ROUNDS, progress: Callable[[int, int], None] = lambda done, total: None
) -> Native:
    """Run the engine's own tool and our engine in turn, each in fresh processes, and give the medians of both."""
    known = [tool for tool in TOOLS if tool.engine == job.engine and job.device in tool.devices]
    here = [(tool, path) for tool in known if (path := find_tool(tool.name))]
    fitting = [pair for pair in here if job.batch <= pair[0].most_batch]
    if not fitting:
        return Native(None, None, None, None, _why_none(job, known, bool(here)))
    tool, path = fitting[0]
    pairs = []
    for done in range(rounds):
        progress(done, rounds)
        ours, theirs = _ours(job), _theirs(tool, path, job)
        for found in (ours, theirs):
            if isinstance(found, str):
                return Native(None, None, None, None, found)
        pairs.append((ours, theirs))
    progress(rounds, rounds)
    times = np.array(pairs, float)
    ours_ms, tool_ms = (float(ms) for ms in np.median(times, axis=0))
    return Native(tool.name, tool_ms, ours_ms, float(np.median(times[:, 0] / times[:, 1])))


def _why_none(job: Job, known: list[Tool], here: bool) -> str:
    if here:
        return f"no tool of {job.engine} here is told a batch of {job.batch}"
    names = " or ".join(tool.name for tool in known)
    return f"{names} is not on the path" if names else f"{job.engine} has no tool for {job.device}"


def _ours(job: Job) -> float | str:
    threads, batch = str(job.threads or 0), str(job.batch)
    options = json.dumps(dict(job.options))
    arguments = [str(job.path), job.engine, job.device, threads, batch, str(job.seconds), options]
    return _figure([sys.executable, "-c", _OURS, *arguments], _ours_ms)


def _ours_ms(text: str) -> float | None:
    found = re.search(r"([\d.]+)\s*\Z", text)
    return float(found[1]) if found else None


def _theirs(tool: Tool, path: Path, job: Job) -> float | str:
    return _figure([str(path), *tool.arguments(job)], tool.median_ms)


def _figure(command: list[str], read: Callable[[str], float | None]) -> float | str:
    """The milliseconds that a program prints; else why there are none."""
    name = Path(command[0]).name
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, errors="replace")
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{name} did not end well ({type(error).__name__})"
    text = done.stdout + done.stderr
    found = read(text)
    if done.returncode or found is None:
        last = next((line for line in reversed(text.splitlines()) if line.strip()), f"exit code {done.returncode}")
        return f"{name} failed ({' '.join(last.split())[:160]})"
    return found
