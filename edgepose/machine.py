"""What a figure was measured on, and what a file was made with."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["RUNTIME_PACKAGES", "instruction_sets", "machine", "versions"]

RUNTIME_PACKAGES = (
    "edgepose",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "ai-edge-litert",
    "tflite-runtime",
    "tensorrt",
    "numpy",
    "opencv-python-headless",
    "opencv-python",
)
"""Distributions that matter at run time; several names where a package comes under several."""


def versions(names: Iterable[str] = RUNTIME_PACKAGES) -> dict[str, str]:
    """Versions of the named distributions that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """CPU, its instruction sets that matter, cores, operating system and the versions that matter at run time."""
    return {
        "cpu": _cpu(),
        "isa": instruction_sets(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "versions": versions(),
    }


_ISA = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8"),
    *("asimd", "asimddp", "i8mm", "sve", "sme"),
)
"""Instruction sets that decide how fast INT8 is, by Linux's names."""


def instruction_sets() -> list[str]:
    """Instruction sets of this processor that decide how fast INT8 is, by Linux's names; none elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    flags = {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()}
    return [name for name in _ISA if name in flags]


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.machine()
