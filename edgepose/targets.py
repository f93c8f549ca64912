"""Targets as rows of data: what to convert for a board, and how to run it there. ``edgepose targets`` lists them.

A target is another machine than the one that converts, so it names the recipe: nothing is guessed from this machine.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from edgepose.accelerators import Accelerator
from edgepose.board import Board
from edgepose.errors import ConversionError
from edgepose.machine import Cpu, has_dot_products

__all__ = ["TARGETS", "Facts", "Target", "get_target", "targets_of"]


@dataclass(frozen=True)
class Facts:
    """What decides which target a machine is."""

    board: Board
    cpu: Cpu
    accelerators: Sequence[Accelerator] = ()

    def has(self, device: str, name: str = "") -> bool:
        """Whether there is such an accelerator."""
        return any(one.device == device and name in one.name for one in self.accelerators)


@dataclass(frozen=True)
class Target:
    """One kind of machine.

    Attributes:
        name: For ``--target``.
        summary: Which machines.
        variants: What to convert to; the first is the one to run there, until ``edgepose bench`` there says otherwise.
        engine: What runs it.
        device: On which of the engine's devices.
        is_this: Whether a machine is one.
        recipes: How to quantize, by name, one for each engine; lifting models take its ``-lift``, where there is one.
        options: The engine's own, by name.
        install: What to type there.
        note: What else to know.
    """

    name: str
    summary: str
    variants: tuple[str, ...]
    engine: str
    device: str
    is_this: Callable[[Facts], bool]
    recipes: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    install: str = "pip install edgepose"
    note: str = ""

    def command(self, bundle: str, task: str = "pose2d") -> str:
        """What to type there to run a bundle; for a lifting model the 2D bundle in front of it is to be filled in."""
        if task == "lift3d":
            lifter = ["--lift", bundle, "--lift-variant", self.variants[0], "--lift-device", self.device]
            return f"edgepose run BUNDLE2D {shlex.join(lifter)} --source 0"
        parts = [bundle, "--variant", self.variants[0], "--engine", self.engine, "--device", self.device]
        options = [part for name, value in self.options.items() for part in ("--engine-option", f"{name}={value}")]
        return f"edgepose run {shlex.join([*parts, *options])} --source 0"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        plain = ("name", "summary", "engine", "device", "install", "note")
        return {
            **{name: getattr(self, name) for name in plain},
            "variants": list(self.variants),
            "recipes": list(self.recipes),
            "options": dict(self.options),
        }


def _jetson(*names: str) -> Callable[[Facts], bool]:
    def fits(facts: Facts) -> bool:
        return facts.board.kind == "jetson" and any(name in facts.board.model for name in names)

    return fits


def _raspberry(*generations: str) -> Callable[[Facts], bool]:
    def fits(facts: Facts) -> bool:
        words = facts.board.model.split()
        return facts.board.kind == "raspberrypi" and _is(facts, "aarch64") and not set(words).isdisjoint(generations)

    return fits


def _is(facts: Facts, *machines: str) -> bool:
    return facts.board.machine in machines


def _x86(dot_products: bool) -> Callable[[Facts], bool]:
    return lambda facts: _is(facts, "x86_64", "AMD64") and has_dot_products(facts.cpu.isa) == dot_products


def _other_arm64(facts: Facts) -> bool:
    known = ("raspberrypi4", "raspberrypi5", "jetson-orin", "jetson-xavier", "jetson-nano")
    return _is(facts, "aarch64", "arm64") and not any(TARGETS[name].is_this(facts) for name in known)


_ARM_VARIANTS = ("tflite-int8", "tflite-fp32", "onnx-int8", "onnx-fp32")
_ARM_RECIPES = ("tflite-xnnpack", "onnxruntime-arm")
_GPU_VARIANTS = ("tensorrt-fp16", "tensorrt-int8", "onnx-fp16", "onnx-fp32")
_TFLITE = "pip install 'edgepose[tflite]'"
_OPENVINO = "pip install 'edgepose[openvino]'"
_SYSTEM_TENSORRT = (
    "sudo apt install nvidia-jetpack; python3 -m venv --system-site-packages ~/edgepose; "
    "~/edgepose/bin/pip install edgepose"
)

_ROWS = (
    Target(
        "jetson-orin",
        "Jetson Orin (JetPack 6): Ampere GPU",
        (*_GPU_VARIANTS, "torch-fp32"),
        "tensorrt",
        "cuda",
        _jetson("Orin"),
        ("tensorrt-qdq",),
        install=_SYSTEM_TENSORRT,
        note="TensorRT comes with JetPack and builds its engine at the first run; torch-fp32, to compare with, needs "
        "NVIDIA's torch wheel for this JetPack",
    ),
    Target(
        "jetson-xavier",
        "Jetson Xavier (JetPack 5): Volta GPU",
        _GPU_VARIANTS,
        "tensorrt",
        "cuda",
        _jetson("Xavier"),
        ("tensorrt-qdq",),
        install=_SYSTEM_TENSORRT,
        note="JetPack 5 brings TensorRT 8.5 for Python 3.8, and edgepose needs 3.10: use a container with both, "
        "or the CPU as target arm64",
    ),
    Target(
        "jetson-nano",
        "Jetson Nano, TX1, TX2 (JetPack 4): CPU alone",
        _ARM_VARIANTS,
        "tflite",
        "cpu",
        lambda facts: _jetson("Nano", "TX1", "TX2")(facts) and not _jetson("Orin", "Xavier")(facts),
        _ARM_RECIPES,
        install=f"Python 3.10, then {_TFLITE}",
        note="JetPack 4 is its last, with TensorRT 8.2 for Python 3.6, which edgepose does not run on; the CPU has no "
        "8-bit dot products",
    ),
    Target(
        "raspberrypi5",
        "Raspberry Pi 5, 500, Compute Module 5 (64-bit): 8-bit dot products",
        _ARM_VARIANTS,
        "tflite",
        "cpu",
        _raspberry("5", "500"),
        _ARM_RECIPES,
        install=_TFLITE,
    ),
    Target(
        "raspberrypi4",
        "Raspberry Pi 4, 3, 400, Zero 2 (64-bit): no dot products",
        _ARM_VARIANTS,
        "tflite",
        "cpu",
        _raspberry("4", "3", "400", "2"),
        _ARM_RECIPES,
        install=_TFLITE,
        note="OpenVINO's INT8 does not run there",
    ),
    Target(
        "raspberrypi-32bit",
        "Raspberry Pi OS 32-bit and other armhf: tflite-runtime",
        ("tflite-int8", "tflite-fp32"),
        "tflite",
        "cpu",
        lambda facts: _is(facts, "armv7l", "armv6l"),
        ("tflite-xnnpack",),
        install="docs/boards.md: tflite-runtime, with Debian's numpy and OpenCV",
        note="Python 3.10 or 3.11; dynamic-range files are refused there",
    ),
    Target(
        "arm64",
        "any other 64-bit ARM with glibc 2.27 or newer",
        _ARM_VARIANTS,
        "tflite",
        "cpu",
        _other_arm64,
        _ARM_RECIPES,
        install=_TFLITE,
    ),
    Target(
        "intel-cpu",
        "x86-64 with VNNI or AMX: Intel since about 2020, AMD since Zen 4",
        ("openvino-int8", "openvino-fp32"),
        "openvino",
        "cpu",
        _x86(dot_products=True),
        ("openvino-vnni",),
        install=_OPENVINO,
    ),
    Target(
        "intel-cpu-old",
        "x86-64 with AVX2 alone: its 8-bit sums saturate, so weights get 7 bits",
        ("openvino-int8", "openvino-fp32"),
        "openvino",
        "cpu",
        _x86(dot_products=False),
        ("openvino-avx2",),
        install=_OPENVINO,
        note="INT8 gains little without VNNI: edgepose bench there decides",
    ),
    Target(
        "intel-gpu",
        "Intel GPU, built in or a card",
        ("openvino-fp16", "openvino-int8", "openvino-fp32"),
        "openvino",
        "gpu",
        lambda facts: facts.has("gpu", "Intel"),
        ("openvino-vnni",),
        install=f"Intel's compute runtime for the GPU; {_OPENVINO}",
        note="never tried on a device",
    ),
    Target(
        "intel-npu",
        "Intel NPU of a Core Ultra: fixed shapes, batch 1",
        ("openvino-int8", "openvino-fp16"),
        "openvino",
        "npu",
        lambda facts: facts.has("npu", "Intel"),
        ("openvino-vnni",),
        install=f"Intel's NPU driver; {_OPENVINO}",
        note="never tried on a device",
    ),
    Target(
        "cuda",
        "a computer or server with an NVIDIA GPU",
        (*_GPU_VARIANTS, "torch-fp32"),
        "tensorrt",
        "cuda",
        lambda facts: facts.board.kind != "jetson" and facts.has("cuda"),
        ("tensorrt-qdq",),
        install="pip install 'edgepose[tensorrt]'",
        note="the ONNX variants run with onnxruntime-gpu, torch-fp32 with torch: edgepose bench compares them",
    ),
)

TARGETS: Mapping[str, Target] = MappingProxyType({row.name: row for row in _ROWS})


def get_target(name: str) -> Target:
    """Look a target up by name.

    Raises:
        ConversionError: None has that name.
    """
    if name not in TARGETS:
        raise ConversionError(f"unknown target {name!r}; known: {', '.join(TARGETS)}")
    return TARGETS[name]


def targets_of(facts: Facts) -> tuple[Target, ...]:
    """Which targets a machine is: none, or several where it has a GPU or an NPU beside its CPU."""
    return tuple(row for row in TARGETS.values() if row.is_this(facts))
