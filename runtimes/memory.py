"""Memory that a model takes: of a fresh process, so that nothing else is counted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from edgepose.errors import EngineError

__all__ = ["Memory", "peak_memory"]

_PROBE = """
import json, sys
import numpy as np
from pathlib import Path
from edgepose.runtimes.load import load_model
path, engine, device, threads, batch, options = sys.argv[1:]
options = json.loads(options)
model = load_model(path, engine, device, threads=int(threads) or None, self_test=False, options=options)
tensor = model.spec.input
for _ in range(3):
    model.infer(np.zeros((int(batch), *tensor.shape[1:]), tensor.dtype))
gpu = getattr(model.engine, "gpu_memory_mib", None)
try:
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
except OSError:
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps([peak, gpu() if gpu else None]))
"""


@dataclass(frozen=True)
class Memory:
    """MiB: peak resident memory of the process, and what it took on the GPU where the engine tells."""

    rss_mib: float
    gpu_mib: float | None


def peak_memory(
    path: Path,
    engine: str,
    device: str,
    threads: int | None,
    batch: int = 1,
    options: Mapping[str, str] = MappingProxyType({}),
) -> Memory:
    """Memory of a fresh process that loads a model and runs it three times.

    An engine tells of the GPU by a method ``gpu_memory_mib() -> float | None``.

    Raises:
        EngineError: The process failed.
    """
    arguments = [str(path), engine, device, str(threads or 0), str(batch), json.dumps(dict(options))]
    done = subprocess.run([sys.executable, "-c", _PROBE, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise EngineError(f"{path}: the process that measures memory failed ({reason})")
    rss, gpu = json.loads(done.stdout.strip().splitlines()[-1])
    return Memory(float(rss), None if gpu is None else float(gpu))
