"""What a figure was measured on, and what a file was made with."""

from __future__ import annotations

import math
import os
import platform
import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from edgepose.host import Host

__all__ = [
    "DOT_PRODUCTS",
    "RUNTIME_PACKAGES",
    "Cpu",
    "Memory",
    "has_dot_products",
    "instruction_sets",
    "machine",
    "read_cpu",
    "read_memory",
    "versions",
]

RUNTIME_PACKAGES = (
    "edgepose",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "ai-edge-litert",
    "tflite-runtime",
    "torch",
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
    """Board, CPU, its instruction sets that matter, cores, system and the versions that matter at run time."""
    return {
        "cpu": ", ".join(filter(None, (Host().text("/proc/device-tree/model"), _cpu_name(Host())))),
        "isa": instruction_sets(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "versions": versions(),
    }


_ISA = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8"),
    *("neon", "asimd", "asimddp", "i8mm", "sve", "sme"),
)
"""Instruction sets that decide how fast INT8 is, by Linux's names."""

DOT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})
"""Those that multiply and add 8-bit numbers in one step; without any, INT8 may be slower than FP32."""


def instruction_sets(host: Host | None = None) -> list[str]:
    """Instruction sets of this processor that decide how fast INT8 is, by Linux's names; none elsewhere."""
    lines = (host or Host()).text("/proc/cpuinfo").splitlines()
    flags = {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()}
    return [name for name in _ISA if name in flags]


def has_dot_products(isa: Collection[str]) -> bool:
    """Whether a processor with these instruction sets has 8-bit dot products."""
    return not DOT_PRODUCTS.isdisjoint(isa)


@dataclass(frozen=True)
class Cpu:
    """A processor, and how much of it this process gets.

    Attributes:
        name: As it names itself.
        isa: See :func:`instruction_sets`.
        cores: Cores of the machine that are switched on, hyper-threads counted.
        usable: Cores that this process may run on.
        quota: Cores' worth of time that its control group grants, or None where nothing limits it.
        max_mhz: Highest clock, or None where the system does not tell.
    """

    name: str
    isa: tuple[str, ...]
    cores: int
    usable: int
    quota: float | None
    max_mhz: int | None


@dataclass(frozen=True)
class Memory:
    """Memory in bytes: of the machine, free for use, and what the control group allows (None: all)."""

    total: int
    available: int
    limit: int | None


def read_cpu(host: Host) -> Cpu:
    """Look at ``/proc/cpuinfo``, this process's affinity and its control group."""
    cores = len(re.findall(r"^processor\s*:", host.text("/proc/cpuinfo"), re.MULTILINE)) or 1
    clocks = [host.number(f"{p}/cpuinfo_max_freq") for p in host.folders("/sys/devices/system/cpu/cpufreq/policy*")]
    return Cpu(
        name=_cpu_name(host),
        isa=tuple(instruction_sets(host)),
        cores=cores,
        usable=_usable(host) or cores,
        quota=_quota(host),
        max_mhz=max((clock // 1000 for clock in clocks if clock), default=None),
    )


def read_memory(host: Host) -> Memory:
    """Look at ``/proc/meminfo`` and the control group."""
    facts = dict(re.findall(r"^(\w+):\s+(\d+) kB", host.text("/proc/meminfo"), re.MULTILINE))
    total = int(facts.get("MemTotal", 0)) * 1024
    names = ("memory.max", "memory.limit_in_bytes")
    limits = [value for group in _groups(host, "memory") for name in names if (value := host.number(f"{group}/{name}"))]
    limit = min(limits, default=total)
    return Memory(total, int(facts.get("MemAvailable", 0)) * 1024, limit if limit < total else None)


_ARM_CORES = {
    **{0xC07: "Cortex-A7", 0xC08: "Cortex-A8", 0xC09: "Cortex-A9", 0xC0F: "Cortex-A15"},
    **{0xD03: "Cortex-A53", 0xD04: "Cortex-A35", 0xD05: "Cortex-A55", 0xD07: "Cortex-A57", 0xD08: "Cortex-A72"},
    **{0xD09: "Cortex-A73", 0xD0A: "Cortex-A75", 0xD0B: "Cortex-A76", 0xD0C: "Neoverse-N1", 0xD40: "Neoverse-V1"},
    **{0xD41: "Cortex-A78", 0xD42: "Cortex-A78AE", 0xD44: "Cortex-X1", 0xD46: "Cortex-A510", 0xD47: "Cortex-A710"},
    **{0xD49: "Neoverse-N2", 0xD4F: "Neoverse-V2", 0xD80: "Cortex-A520", 0xD81: "Cortex-A720"},
}
"""Arm's part numbers, as its reference manuals give them (MIDR_EL1)."""

_ARM_LTD, _NVIDIA = 0x41, 0x4E


def _cpu_name(host: Host) -> str:
    text = host.text("/proc/cpuinfo")
    parts = re.findall(r"^CPU implementer\s*: (\w+)[\s\S]*?^CPU part\s*: (\w+)", text, re.MULTILINE)
    if parts:
        counts = Counter(_arm_core(int(maker, 16), int(part, 16)) for maker, part in parts)
        return " + ".join(f"{count} x {name}" for name, count in counts.items())
    found = re.search(r"^model name\s*: (.+)", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or host.machine


def _arm_core(maker: int, part: int) -> str:
    if (maker, part) == (_NVIDIA, 0x004):
        return "NVIDIA Carmel"
    return _ARM_CORES.get(part, f"Arm part {part:#x}") if maker == _ARM_LTD else f"maker {maker:#x} part {part:#x}"


def _usable(host: Host) -> int:
    """Cores in a list such as ``0-3,8``."""
    found = re.search(r"^Cpus_allowed_list:\s*(\S+)", host.text("/proc/self/status"), re.MULTILINE)
    ends = [part.partition("-") for part in found[1].split(",")] if found else []
    return sum(int(last or first) - int(first) + 1 for first, _, last in ends)


def _quota(host: Host) -> float | None:
    """The smallest of the control group's and its parents': version 2's ``200000 100000``, or version 1's two files."""
    quotas = []
    for group in _groups(host, "cpu"):
        limit, _, period = host.text(f"{group}/cpu.max").partition(" ")
        if limit.isdecimal() and period.isdecimal():
            quotas.append(int(limit) / int(period))
        used, each = host.number(f"{group}/cpu.cfs_quota_us"), host.number(f"{group}/cpu.cfs_period_us")
        if used and each and used > 0:
            quotas.append(used / each)
    smallest = min(quotas, default=math.inf)
    return smallest if math.isfinite(smallest) else None


def _groups(host: Host, controller: str) -> list[str]:
    """Folders of this process's control group and its parents, for both versions."""
    found = []
    for line in host.text("/proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers or controller in controllers.split(","):
            names = [part for part in path.split("/") if part and part != ".."]
            root = f"/sys/fs/cgroup/{controller}" if controllers else "/sys/fs/cgroup"
            found += ["/".join([root, *names[:depth]]) for depth in range(len(names) + 1)]
    return found
