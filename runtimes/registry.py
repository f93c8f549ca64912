"""Engines as rows of data. An engine's library is imported inside its class, on first use."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from edgepose.errors import EngineUnavailable
from edgepose.types import Engine

__all__ = ["ENTRY_POINT_GROUP", "EngineRow", "LoadableEngine", "engines", "open_engine", "row_for"]

_log = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "edgepose.runtimes"
"""Third parties publish an :class:`EngineRow` under this entry-point group."""


@dataclass(frozen=True)
class EngineRow:
    """One engine.

    Attributes:
        name: Public name.
        suffixes: File suffixes of the models it runs.
        target: ``"module:Class"``; the class takes ``(path, device, threads)``.
        devices: Device names it understands; one that ends in ``:PATH`` takes any path there.
        install: What to install where its library is missing.
        options: What else it can be told: by name, the values it knows, or none where any text may be right. The class
            takes them as keywords, as text.
        libraries: Modules of which one must be installed; none named, and it counts as installed.
        formats: Of the variants of a bundle those that are made for it, the best first.
    """

    name: str
    suffixes: tuple[str, ...]
    target: str
    devices: tuple[str, ...]
    install: str
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    libraries: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()

    @property
    def installed(self) -> bool:
        """Whether its library is there; nothing is imported to find out."""
        return not self.libraries or any(importlib.util.find_spec(name) is not None for name in self.libraries)

    def has_device(self, device: str) -> bool:
        """Whether a device, ``auto`` among them, is one that it understands."""
        prefixes = tuple(name.removesuffix("PATH") for name in self.devices if name.endswith(":PATH"))
        return device in ("auto", *self.devices) or (device.startswith(prefixes) and device not in prefixes)

    def check(self, options: Mapping[str, str]) -> None:
        """Whether it has these options.

        Raises:
            EngineUnavailable: It has not, or not with such a value.
        """
        for name, value in options.items():
            if name not in self.options:
                known = ", ".join(self.options) or "none"
                raise EngineUnavailable(f"{self.name} has no option {name!r}: it has {known}")
            if self.options[name] and value not in self.options[name]:
                raise EngineUnavailable(f"{self.name} has no {name} {value!r}: choose {', '.join(self.options[name])}")


class LoadableEngine(Protocol):
    """The constructor of an engine."""

    def __call__(self, path: Path, device: str, threads: int | None) -> Engine:
        """Load a model file.

        Raises:
            EngineUnavailable: The library or the device is not there.
            EngineError: The file cannot be loaded.
        """
        ...


_SWITCH = ("off", "on")
_BUILT_IN = (
    EngineRow(
        name="onnxruntime",
        suffixes=(".onnx",),
        target="edgepose.runtimes.onnxruntime:OnnxRuntimeEngine",
        devices=("cpu", "cuda", "tensorrt"),
        install="pip install onnxruntime",
        options={"fp16": _SWITCH, "int8": _SWITCH, "max_batch": (), "workspace_mib": ()},
        libraries=("onnxruntime",),
        formats=("onnx",),
    ),
    EngineRow(
        name="openvino",
        suffixes=(".xml",),
        target="edgepose.runtimes.openvino:OpenVinoEngine",
        devices=("cpu", "gpu", "npu", "vpu"),
        install="pip install 'edgepose[openvino]'",
        options={"mode": ("latency", "throughput")},
        libraries=("openvino",),
        formats=("openvino",),
    ),
    EngineRow(
        name="tflite",
        suffixes=(".tflite",),
        target="edgepose.runtimes.tflite:TfliteEngine",
        devices=("cpu", "gpu", "npu", "edgetpu", "delegate:PATH"),
        install="pip install 'edgepose[tflite]'",
        libraries=("ai_edge_litert", "tflite_runtime"),
        formats=("tflite",),
    ),
    EngineRow(  # behind onnxruntime, which runs the same files: this one has to be asked for
        name="tensorrt",
        suffixes=(".onnx",),
        target="edgepose.runtimes.tensorrt:TensorRtEngine",
        devices=("cuda",),
        install="pip install tensorrt (Jetson: sudo apt install python3-libnvinfer, and a venv with "
        "--system-site-packages)",
        options={"max_batch": (), "workspace_mib": (), "cuda_graphs": _SWITCH},
        libraries=("tensorrt",),
        formats=("tensorrt", "onnx"),
    ),
    EngineRow(
        name="torch",
        suffixes=(".pt2",),
        target="edgepose.runtimes.torch:TorchEngine",
        devices=("cpu", "cuda"),
        install="pip install 'edgepose[torch]'",
        options={
            "precision": ("fp32", "tf32", "fp16", "bf16"),
            "compile": ("off", "on", "ahead"),
            "channels_last": _SWITCH,
            "cuda_graphs": _SWITCH,
        },
        libraries=("torch",),
        formats=("torch",),
    ),
)


def engines() -> Mapping[str, EngineRow]:
    """All engines by name: ours, then third parties'.

    Raises:
        EngineUnavailable: A third party's row takes a name that is in use.
    """
    rows: dict[str, EngineRow] = {}
    for row in (*_BUILT_IN, *_third_party()):
        if row.name in rows:
            raise EngineUnavailable(f"two engines are named {row.name!r} ({rows[row.name].target}, {row.target})")
        rows[row.name] = row
    return MappingProxyType(rows)


def _third_party() -> Iterator[EngineRow]:
    """Rows of other packages; a broken one is logged and left out, so that it does not take ours with it."""
    for point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            row = point.load()
        except Exception as error:  # somebody else's import may raise anything
            _log.warning("engine %s of another package cannot be imported: %s", point.name, error)
            continue
        if isinstance(row, EngineRow):
            yield row
        else:
            _log.warning("engine %s of another package is no EngineRow but %r", point.name, row)


def open_engine(
    path: Path,
    name: str | None,
    device: str,
    threads: int | None,
    options: Mapping[str, str] = MappingProxyType({}),
) -> Engine:
    """Load a model file with the named engine, or with the first that knows its suffix.

    ``options`` are those of the engine's row.

    Raises:
        EngineUnavailable: No such engine, device or option, or its library is not installed.
        EngineError: The engine cannot load the file.
    """
    row = row_for(path, name)
    if threads is not None and not (isinstance(threads, int) and 1 <= threads <= 256):
        raise EngineUnavailable(f"threads: expected a whole number from 1 to 256, got {threads!r}")
    if not row.has_device(device):
        raise EngineUnavailable(f"{row.name} has no device {device!r}: choose auto, {', '.join(row.devices)}")
    row.check(options)
    module, _, attribute = row.target.partition(":")
    try:
        factory: Any = getattr(importlib.import_module(module), attribute)
        engine: Engine = factory(path, device, threads, **options)
    except ImportError as error:
        raise EngineUnavailable(f"{row.name} is needed for {path.name} and not here ({error}): {row.install}") from None
    return engine


def row_for(path: Path, name: str | None) -> EngineRow:
    """The engine of that name, or the first that knows the file's suffix.

    Raises:
        EngineUnavailable: There is none, or it does not run such files.
    """
    rows = engines()
    if name is None:
        fitting = [row for row in rows.values() if path.suffix.lower() in row.suffixes]
        if not fitting:
            known = ", ".join(sorted({s for row in rows.values() for s in row.suffixes}))
            raise EngineUnavailable(f"{path}: no engine runs {path.suffix or 'such'} files; known: {known}")
        return fitting[0]
    if name not in rows:
        raise EngineUnavailable(f"unknown engine {name!r}; known: {', '.join(rows)}")
    if path.suffix.lower() not in rows[name].suffixes:
        raise EngineUnavailable(f"{path}: {name} runs {', '.join(rows[name].suffixes)} files")
    return rows[name]
