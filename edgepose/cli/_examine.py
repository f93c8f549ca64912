"""What ``edgepose doctor`` finds out. A probe that fails takes no other with it: what went wrong is in the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from edgepose import __version__
from edgepose.accelerators import Accelerator, find_accelerators, find_nvidia
from edgepose.board import Board, read_board
from edgepose.camera_list import AskFormats, Camera, find_cameras
from edgepose.child import ask_python
from edgepose.heat import Heat, gpus_held_back, read_heat
from edgepose.host import Host
from edgepose.machine import Cpu, Memory, read_cpu, read_memory
from edgepose.targets import Facts, targets_of

if TYPE_CHECKING:
    from edgepose.runtimes.inventory import EngineHere

__all__ = ["EXTRAS", "SCHEMA", "Engine", "Report", "examine"]

SCHEMA = 1
"""Of the JSON: docs/doctor.md."""

_T = TypeVar("_T")

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "serve": ("aiohttp",),
    "mqtt": ("paho",),
    "convert": ("torch", "onnx", "onnxscript", "nncf", "openvino", "litert_torch", "ai_edge_quantizer"),
    "validate": ("faster_coco_eval", "scipy"),
}
"""Extra -> modules that must be there for it."""

_SLOW = {"torch": "cuda"}
"""Engines that take over a second to import -> the device without which that would tell nothing new."""

_OPENCV = """
import cv2, json
print(json.dumps([cv2.__version__, cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER)]))
"""


@dataclass(frozen=True)
class Engine:
    """An engine: see :class:`edgepose.runtimes.inventory.EngineHere`; its options, and how to install it.

    ``devices`` are those whose hardware is here too; ``remarks`` say which it was built for beside them, and ``reach``
    what is missing for those whose hardware is here and which it does not offer.
    """

    name: str
    state: str
    library: str
    devices: Mapping[str, str]
    options: Mapping[str, tuple[str, ...]]
    problem: str
    install: str
    remarks: tuple[str, ...] = ()
    reach: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """All that was found out; ``problems`` are those of the probes, by name."""

    board: Board | None
    cpu: Cpu | None
    memory: Memory | None
    accelerators: tuple[Accelerator, ...]
    targets: tuple[str, ...]
    engines: tuple[Engine, ...]
    opencv: str
    gstreamer: bool | None
    cameras: tuple[Camera, ...]
    camera_libraries: Mapping[str, bool]
    heat: Heat | None
    missing: Mapping[str, tuple[str, ...]]
    python: str
    problems: Mapping[str, str] = field(default_factory=dict)

    @property
    def facts(self) -> Facts | None:
        """What decides about targets."""
        return Facts(self.board, self.cpu, self.accelerators) if self.board and self.cpu else None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"schema": SCHEMA, "edgepose": __version__, **asdict(self)}


class _Probes:
    """Asks, and notes what fails."""

    def __init__(self) -> None:
        self.problems: dict[str, str] = {}

    def ask(self, name: str, probe: Callable[[], _T]) -> _T | None:
        try:
            return probe()
        except Exception as error:  # a probe reads what others wrote; the report must not depend on any of them
            self.problems[name] = " ".join(str(error).split())[:300] or type(error).__name__
            return None


def examine(host: Host, formats: AskFormats | None = None) -> Report:
    """Look at a machine; engines and Python packages are always this one's. ``formats`` asks a camera for its own."""
    probes = _Probes()
    board = probes.ask("board", lambda: read_board(host))
    cpu = probes.ask("processor", lambda: read_cpu(host))
    accelerators = (probes.ask("GPU and NPU", lambda: find_accelerators(host, board)) if board else None) or ()
    held_back: tuple[str, ...] = ()
    if board and board.kind != "jetson":
        accelerators += probes.ask("NVIDIA GPU", lambda: tuple(find_nvidia(host))) or ()
        if any(one.device == "cuda" for one in accelerators):
            held_back = probes.ask("NVIDIA GPU's clock", lambda: tuple(gpus_held_back(host))) or ()
    facts = Facts(board, cpu, accelerators) if board and cpu else None
    with ThreadPoolExecutor(2) as pool:  # these wait for processes of their own
        inventory = pool.submit(_take_inventory, accelerators)
        opencv = pool.submit(_opencv)
        memory = probes.ask("memory", lambda: read_memory(host))
        heat = probes.ask("heat", lambda: read_heat(host, board)) if board else None
        cameras = probes.ask("cameras", lambda: find_cameras(host, board, formats)) if board else None
        here = probes.ask("engines", inventory.result)
        version, gstreamer = probes.ask("OpenCV", opencv.result) or ("", None)
    return Report(
        board=board,
        cpu=cpu,
        memory=memory,
        accelerators=accelerators,
        targets=tuple(row.name for row in targets_of(facts)) if facts else (),
        engines=_engines(here, facts, host) if here else (),
        opencv=version,
        gstreamer=gstreamer,
        cameras=cameras or (),
        camera_libraries=probes.ask("camera libraries", lambda: _camera_libraries(host, board)) or {},
        heat=heat and replace(heat, now=heat.now + held_back),
        missing={extra: gone for extra, names in EXTRAS.items() if (gone := _missing(names))},
        python=".".join(map(str, host.python)),
        problems=probes.problems,
    )


def _take_inventory(accelerators: tuple[Accelerator, ...]) -> dict[str, EngineHere]:
    from edgepose.runtimes.inventory import take_inventory

    devices = {one.device for one in accelerators}
    return take_inventory([name for name, device in _SLOW.items() if device not in devices])


def _engines(here: Mapping[str, EngineHere], facts: Facts | None, host: Host) -> tuple[Engine, ...]:
    from edgepose.runtimes.advice import how_to_install, how_to_reach
    from edgepose.runtimes.registry import engines

    rows = engines()
    return tuple(
        Engine(
            name=one.name,
            state=one.state,
            library=one.library,
            devices={device: text for device, text in one.devices.items() if not _no_hardware(device, facts)},
            options=dict(rows[one.name].options),
            problem=one.problem,
            install=how_to_install(rows[one.name], facts, host) if facts else rows[one.name].install,
            remarks=tuple(
                f"is built for {device}, and none is found" for device in one.devices if _no_hardware(device, facts)
            ),
            reach=how_to_reach(rows[one.name], one.devices, facts, host) if facts and one.state == "ready" else {},
        )
        for one in here.values()
    )


def _no_hardware(device: str, facts: Facts | None) -> bool:
    """Whether a device that a library was built for cannot be here; what OpenVINO lists it has found itself."""
    return device in ("cuda", "tensorrt") and facts is not None and not facts.has("cuda")


def _opencv() -> tuple[str, bool | None]:
    """Version, and whether GStreamer is built in.

    Raises:
        OSError: It cannot be imported.
    """
    answer, problem = ask_python(_OPENCV)
    if problem:
        raise OSError(problem)
    version, gstreamer = json.loads(answer)
    return str(version), bool(gstreamer)


def _camera_libraries(host: Host, board: Board | None) -> dict[str, bool]:
    """Those that this kind of board has cameras behind."""
    if board and board.kind == "raspberrypi":
        return {
            "picamera2": find_spec("picamera2") is not None,
            "libcamera": bool(host.folders("/usr/lib/*/libcamera.so*")),
        }
    if board and board.kind == "jetson":
        return {"argus": bool(host.folders("/usr/lib/aarch64-linux-gnu/*/libnvargus*.so*"))}
    return {}


def _missing(modules: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in modules if find_spec(name) is None)
