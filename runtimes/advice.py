"""What to install on this very machine for an engine or a device of one: rows of data, the first that fits counts."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from edgepose.host import Host
from edgepose.runtimes.registry import EngineRow
from edgepose.targets import Facts

__all__ = ["how_to_install", "how_to_reach"]


@dataclass(frozen=True)
class _Where:
    facts: Facts
    host: Host

    @property
    def jetson(self) -> bool:
        return self.facts.board.kind == "jetson"

    @property
    def nvidia(self) -> bool:
        return self.facts.has("cuda")

    @property
    def arm32(self) -> bool:
        return self.host.machine.startswith(("armv6", "armv7"))

    @property
    def musl(self) -> bool:
        return not self.host.libc.startswith("glibc")


@dataclass(frozen=True)
class _Row:
    engine: str
    fits: Callable[[_Where], bool]
    advice: str


_NOT_FOR_32_BIT = "has no wheel for 32-bit ARM: use tflite"
_ROWS = (
    _Row("onnxruntime", lambda w: w.arm32, _NOT_FOR_32_BIT),
    _Row("onnxruntime", lambda w: w.musl, "has no wheel for this C library: use a distribution with glibc"),
    _Row(
        "onnxruntime",
        lambda w: w.jetson,
        "NVIDIA's onnxruntime-gpu wheel for JetPack {jetpack}, Python {python}; for the CPU: pip install onnxruntime",
    ),
    _Row("onnxruntime", lambda w: w.nvidia, "pip install onnxruntime-gpu"),
    _Row("openvino", lambda w: w.arm32, _NOT_FOR_32_BIT),
    _Row("openvino", lambda w: w.musl, "has no wheel for this C library: use a distribution with glibc"),
    _Row(
        "tflite",
        lambda w: w.arm32 and w.host.python > (3, 11),
        "tflite-runtime has wheels up to Python 3.11, this is {python}: Debian 12 has 3.11",
    ),
    _Row("tflite", lambda w: w.arm32, "pip install --no-deps tflite-runtime, beside Debian's numpy 1 (docs/boards.md)"),
    _Row(
        "tensorrt",
        lambda w: w.jetson,
        "sudo apt install nvidia-jetpack, which has TensorRT; virtual environment with --system-site-packages",
    ),
    _Row("tensorrt", lambda w: not w.nvidia, "is for NVIDIA GPUs: none here"),
    _Row("torch", lambda w: w.arm32, "has no wheel for 32-bit ARM"),
    _Row("torch", lambda w: w.jetson, "NVIDIA's torch wheel for JetPack {jetpack} and Python {python}"),
    _Row("torch", lambda w: not w.nvidia, "{install} (not needed to run a bundle)"),
)


_REACH = {
    (
        "openvino",
        "gpu",
    ): "Intel's compute runtime (Debian and Ubuntu: intel-opencl-icd), and this user in the group render",
    ("openvino", "npu"): "Intel's NPU driver (linux-npu-driver), and this user in the group render",
    ("tflite", "edgetpu"): "Coral's libedgetpu.so.1, and a file that went through its compiler",
}
"""Driver of a device that is here and that an engine does not offer."""
_CUDA_BUILDS = ("onnxruntime", "torch")


def how_to_reach(engine: EngineRow, offered: Collection[str], facts: Facts, host: Host) -> dict[str, str]:
    """What is missing for an engine to use devices that are here: advice by device."""
    found = {}
    for device in dict.fromkeys(one.device for one in facts.accelerators):
        if device not in engine.devices or device in offered:
            continue
        if device == "cuda" and engine.name in _CUDA_BUILDS:
            found[device] = f"a build with CUDA: {how_to_install(engine, facts, host)}"
        elif (engine.name, device) in _REACH:
            found[device] = _REACH[engine.name, device]
    return found


def how_to_install(engine: EngineRow, facts: Facts, host: Host) -> str:
    """The command or wheel for this machine, or why there is none."""
    where = _Where(facts, host)
    advice = next((row.advice for row in _ROWS if row.engine == engine.name and row.fits(where)), "{install}")
    return advice.format(
        install=engine.install,
        jetpack=facts.board.details.get("jetpack") or "of this Jetson",
        python=".".join(map(str, host.python)),
    )
