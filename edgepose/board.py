"""What machine this is: board or PC, its system, and whether this is a container on it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgepose.host import Host

__all__ = ["Board", "read_board"]

_JETPACKS = {"32": "4", "34": "5", "35": "5", "36": "6", "38": "7"}
"""Major version of L4T -> of JetPack, where the package that would say it is not installed."""

_CONTAINERS = {"/.dockerenv": "docker", "/run/.containerenv": "podman", "/dev/lxd": "lxd"}
_IN_CGROUP = {"kubepods": "kubernetes", "docker": "docker", "containerd": "containerd", "lxc": "lxc"}


@dataclass(frozen=True)
class Board:
    """A board or PC.

    Attributes:
        kind: ``jetson``, ``raspberrypi``, ``board`` (any other with a device tree), ``pc``, ``virtual`` or ``unknown``.
        model: As the board or its BIOS names it; empty where it does not.
        system: Distribution and its version.
        kernel: Linux's version.
        machine: ``x86_64``, ``aarch64`` or ``armv7l``.
        libc: Name and version.
        container: What this process runs in, or nothing.
        details: What else is known, by name: ``l4t``, ``jetpack``, ``chip``, ``power mode``.
    """

    kind: str
    model: str
    system: str
    kernel: str
    machine: str
    libc: str
    container: str
    details: Mapping[str, str] = field(default_factory=dict)


def read_board(host: Host) -> Board:
    """Look at the device tree, the BIOS's tables and what the distribution says of itself."""
    model = host.text("/proc/device-tree/model") or host.text("/sys/firmware/devicetree/base/model")
    kind = _kind(host, model)
    return Board(
        kind=kind,
        model=model or _dmi(host),
        system=_release(host),
        kernel=host.text("/proc/sys/kernel/osrelease"),
        machine=host.machine,
        libc=host.libc,
        container=_container(host),
        details=_jetson(host) if kind == "jetson" else {},
    )


def _kind(host: Host, model: str) -> str:
    if host.exists("/etc/nv_tegra_release") or "Jetson" in model:
        return "jetson"
    if model.startswith("Raspberry Pi"):
        return "raspberrypi"
    if model:
        return "board"
    if re.search(r"^flags\s*:.* hypervisor\b", host.text("/proc/cpuinfo"), re.MULTILINE):
        return "virtual"
    return "pc" if host.machine in ("x86_64", "AMD64", "i686") else "unknown"


def _dmi(host: Host) -> str:
    """Maker and product, without the places that nobody filled in."""
    parts = [host.text(f"/sys/class/dmi/id/{name}") for name in ("sys_vendor", "product_name")]
    return " ".join(part for part in parts if part and "O.E.M" not in part and not part.startswith("System "))


def _release(host: Host) -> str:
    found = re.search(r'^PRETTY_NAME="?([^"\n]+)', host.text("/etc/os-release"), re.MULTILINE)
    return found[1] if found else ""


def _container(host: Host) -> str:
    for path, name in _CONTAINERS.items():
        if host.exists(path):
            return name
    groups = host.text("/proc/1/cgroup") + host.text("/proc/self/cgroup")
    return next((name for part, name in _IN_CGROUP.items() if part in groups), "")


def _jetson(host: Host) -> dict[str, str]:
    l4t, chip = _l4t(host.text("/etc/nv_tegra_release")), _chip(host)
    facts = {"l4t": l4t, "jetpack": _jetpack(host, l4t), "chip": chip, "power mode": _power_mode(host)}
    return {name: value for name, value in facts.items() if value}


def _l4t(text: str) -> str:
    """``# R36 (release), REVISION: 3.0, GCID: ...`` -> 36.3.0."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return f"{found[1]}.{found[2]}" if found else ""


def _chip(host: Host) -> str:
    names = host.text("/proc/device-tree/compatible").split("\0")
    return next((name.removeprefix("nvidia,") for name in names if name.startswith("nvidia,tegra")), "")


def _jetpack(host: Host, l4t: str) -> str:
    """Its package's version; else what the version of L4T tells."""
    found = re.search(
        r"^Package: nvidia-jetpack\n(?:(?!\n\n)[\s\S])*?^Version: ([\d.]+)",
        host.text("/var/lib/dpkg/status"),
        re.MULTILINE,
    )
    return found[1] if found else _JETPACKS.get(l4t.partition(".")[0], "")


def _power_mode(host: Host) -> str:
    """The tool's name of it; it may need rights that we have not, and then the file that it keeps has the number."""
    try:
        found = re.search(r"NV Power Mode: *(\S+)", host.run(["nvpmodel", "-q"]) or "")
    except OSError:
        found = None
    if found:
        return found[1]
    kept = re.search(r"pmode:0*(\d+)", host.text("/var/lib/nvpmodel/status"))
    return f"number {kept[1]}" if kept else ""
