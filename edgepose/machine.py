"""What a figure was measured on, and what a file was made with."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["RUNTIME_PACKAGES", "machine", "versions"]

RUNTIME_PACKAGES = (
    "edgepose",
    "onnxruntime",
    "onnxruntime-gpu",
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
    """CPU, cores, operating system and the versions that matter at run time."""
    return {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.platform(), "versions": versions()}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.machine()
