"""GPUs and NPUs of a machine, by what the system shows of them; whether an engine can use one, the engine says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from edgepose.board import Board
from edgepose.host import Host

__all__ = ["Accelerator", "find_accelerators", "find_nvidia"]

_CHIPS = {
    "tegra264": "Thor (Blackwell)",
    "tegra234": "Orin (Ampere)",
    "tegra194": "Xavier (Volta)",
    "tegra186": "TX2 (Pascal)",
    "tegra210": "Nano or TX1 (Maxwell)",
}
_NODES = {
    "/dev/apex_*": ("edgetpu", "Coral Edge TPU"),
    "/dev/hailo*": ("npu", "Hailo NPU"),
    "/dev/ethosu*": ("npu", "Arm Ethos-U NPU"),
    "/dev/galcore": ("npu", "VeriSilicon GPU or NPU"),
}
_CORAL_USB = {("1a6e", "089a"), ("18d1", "9302")}  # before and after its firmware is loaded
_GPU_MAKERS = {"0x8086": "Intel GPU", "0x1002": "AMD GPU"}
_INTEL = "0x8086"


@dataclass(frozen=True)
class Accelerator:
    """A GPU or NPU.

    Attributes:
        device: How ``--device`` names its kind: ``cuda``, ``gpu``, ``npu`` or ``edgetpu``.
        name: For people.
        details: What else is known, by name: ``driver``, ``memory MiB``, ``compute capability``, ``node``.
    """

    device: str
    name: str
    details: Mapping[str, str] = field(default_factory=dict)


def find_accelerators(host: Host, board: Board) -> tuple[Accelerator, ...]:
    """All but NVIDIA's cards, for which a tool must be asked: :func:`find_nvidia`."""
    return (*_tegra(board), *_drm(host), *_accel(host), *_nodes(host), *_usb(host))


def _tegra(board: Board) -> Iterator[Accelerator]:
    if board.kind == "jetson":
        chip = board.details.get("chip", "")
        yield Accelerator("cuda", f"NVIDIA {_CHIPS.get(chip, chip)}".strip())


_NVIDIA_FIELDS = {
    "name": "",
    "driver_version": "driver",
    "memory.total": "memory MiB",
    "compute_cap": "compute capability",
}


def find_nvidia(host: Host) -> Iterator[Accelerator]:
    """What ``nvidia-smi`` lists; a Jetson's says nothing that the chip's name does not.

    Raises:
        OSError: It is there and fails.
    """
    query = ["nvidia-smi", f"--query-gpu={','.join(_NVIDIA_FIELDS)}", "--format=csv,noheader,nounits"]
    for line in (host.run(query) or "").splitlines():
        values = [part.strip() for part in line.split(",")]
        if len(values) == len(_NVIDIA_FIELDS):
            yield Accelerator("cuda", values[0], dict(zip([*_NVIDIA_FIELDS.values()][1:], values[1:], strict=True)))


def _drm(host: Host) -> Iterator[Accelerator]:
    """Intel's and AMD's GPUs; those that CUDA runs are listed already."""
    for card in host.folders("/sys/class/drm/card[0-9]*"):
        maker = host.text(f"{card}/device/vendor")
        if "-" not in card and maker in _GPU_MAKERS:  # card0-HDMI-A-1 is a connector
            node = next(iter(host.folders(f"{card}/device/drm/renderD*")), "").rpartition("/")[2]
            facts = {"id": host.text(f"{card}/device/device"), "node": f"/dev/dri/{node}" if node else ""}
            yield Accelerator("gpu", _GPU_MAKERS[maker], {key: value for key, value in facts.items() if value})


def _accel(host: Host) -> Iterator[Accelerator]:
    """What the kernel lists as accelerators: Intel's NPU among them."""
    for node in host.folders("/sys/class/accel/accel*"):
        if host.text(f"{node}/device/vendor") == _INTEL:
            yield Accelerator("npu", "Intel NPU", {"node": f"/dev/accel/{node.rpartition('/')[2]}"})


def _nodes(host: Host) -> Iterator[Accelerator]:
    for pattern, (device, name) in _NODES.items():
        for node in host.folders(pattern):
            yield Accelerator(device, name, {"node": node})


def _usb(host: Host) -> Iterator[Accelerator]:
    for device in host.folders("/sys/bus/usb/devices/*"):
        if (host.text(f"{device}/idVendor"), host.text(f"{device}/idProduct")) in _CORAL_USB:
            yield Accelerator("edgetpu", "Coral Edge TPU (USB)")
