"""``edgepose doctor``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import click
from rich.markup import escape
from rich.padding import Padding

from edgepose import __version__
from edgepose.board import Board
from edgepose.cli._advise import Advice, advise
from edgepose.cli._console import out, print_table, write_figures
from edgepose.cli._examine import Engine, Report, examine
from edgepose.cli._options import PATH
from edgepose.files import canonical_json
from edgepose.heat import Heat, Zone
from edgepose.host import Host
from edgepose.machine import Cpu, Memory, has_dot_products

__all__ = ["command"]

_GIB = 1 << 30
_HOTTEST = 4


@click.command("doctor")
@click.argument("bundle", type=PATH, required=False)
@click.option("--json", "json_path", metavar="PATH", help="Write it all as JSON; - prints that alone (docs/doctor.md).")
def command(bundle: Path | None, json_path: str | None) -> None:
    """Show what this machine is and has: board, processor, engines, cameras, heat; and what to install.

    With BUNDLE also which of its variants to use here, and why.

    \b
    edgepose doctor
    edgepose doctor bundle
    edgepose doctor --json -
    """
    report = examine(Host())
    advice = advise(bundle, report) if bundle else None
    figures = {**report.to_dict(), "bundle": asdict(advice) if advice else None}
    if json_path == "-":
        sys.stdout.write(canonical_json(figures))
        return
    _print(report)
    if advice:
        _print_advice(advice)
    if json_path:
        write_figures(Path(json_path), figures)


def _print(report: Report) -> None:
    out.print(f"edgepose {__version__}, Python {report.python}")
    _facts("this machine", [*_machine(report), *_heat(report.heat), *_cameras(report)])
    print_table("engines", ("<engine", "<library", "<runs on"), [_engine_row(one) for one in report.engines])
    _facts("engine options (--engine-option NAME=VALUE)", ((one.name, _options(one)) for one in report.engines))
    _facts("to get what is missing", _to_get(report))
    _facts("could not be found out", report.problems.items())


def _facts(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Names and what is known of them; nothing where there are none."""
    known = [(name, text) for name, text in rows if text]
    if known:
        print_table(title, ("<", "<"), known)


def _machine(report: Report) -> Iterator[tuple[str, str]]:
    if report.board:
        yield "board", _board(report.board)
        yield "system", _system(report.board)
    if report.cpu:
        yield "processor", _processor(report.cpu)
        yield "instructions", _instructions(report.cpu)
    if report.memory and report.memory.total:
        yield "memory", _memory(report.memory)
    for accelerator in report.accelerators:
        facts = ", ".join(f"{name} {value}" for name, value in accelerator.details.items())
        yield accelerator.device, f"{accelerator.name} ({facts})" if facts else accelerator.name
    if report.board and not report.accelerators and "GPU and NPU" not in report.problems:
        yield "GPU, NPU", "none found"
    yield (
        "target",
        ", ".join(report.targets)
        and f"{', '.join(report.targets)} (edgepose convert --target {','.join(report.targets)})",
    )


_NAMES = {"l4t": "L4T", "jetpack": "JetPack"}
_KINDS = {"virtual": "virtual machine", "pc": "PC"}


def _board(board: Board) -> str:
    name = board.model or _KINDS.get(board.kind, "unknown")
    details = [f"{_NAMES.get(key, key)} {value}" for key, value in board.details.items()]
    kind = [_KINDS[board.kind]] if board.model and board.kind in _KINDS else []
    inside = [f"in a container ({board.container})"] if board.container else []
    return ", ".join([name, *kind, *details, *inside])


def _system(board: Board) -> str:
    parts = (board.system, f"Linux {board.kernel}" if board.kernel else "", board.machine, board.libc)
    return ", ".join(filter(None, parts))


def _processor(cpu: Cpu) -> str:
    parts = [cpu.name, f"{cpu.cores} core{'s' if cpu.cores > 1 else ''}"]
    if cpu.usable < cpu.cores:
        parts.append(f"{cpu.usable} of them for this process")
    if cpu.quota is not None:
        parts.append(f"its control group grants the time of {cpu.quota:g}")
    if cpu.max_mhz:
        parts.append(f"up to {cpu.max_mhz} MHz")
    return ", ".join(parts)


def _instructions(cpu: Cpu) -> str:
    products = "8-bit dot products" if has_dot_products(cpu.isa) else "no 8-bit dot products"
    return f"{products} ({' '.join(cpu.isa) or 'no known instruction set'})"


def _memory(memory: Memory) -> str:
    limit = f"; its control group allows {memory.limit / _GIB:.1f}" if memory.limit else ""
    return f"{memory.total / _GIB:.1f} GiB, {memory.available / _GIB:.1f} free{limit}"


def _heat(heat: Heat | None) -> Iterator[tuple[str, str]]:
    if heat is None:
        return
    hottest = sorted(heat.zones, key=lambda zone: -zone.celsius)
    more = f", and {len(hottest) - _HOTTEST} cooler" if len(hottest) > _HOTTEST else ""
    yield "temperature", ", ".join(map(_zone, hottest[:_HOTTEST])) + more or "the system shows none"
    clocks = sorted({min(heat.clocks_mhz), max(heat.clocks_mhz)}) if heat.clocks_mhz else []
    now = " to ".join(map(str, clocks)) + " MHz now" if clocks else ""
    yield "clock", ", ".join(filter(None, (now, heat.governor and f"governor {heat.governor}")))
    if heat.zones or heat.clocks_mhz or heat.now:
        yield "held back", "; ".join(heat.now) or "no"
    yield "held back before", "; ".join(heat.earlier)


def _zone(zone: Zone) -> str:
    slows = f" (slows from {zone.slows_at:.0f})" if zone.slows_at else ""
    return f"{zone.name} {zone.celsius:.0f} °C{slows}"


def _cameras(report: Report) -> Iterator[tuple[str, str]]:
    for camera in report.cameras:
        what = camera.problem or ", ".join(camera.formats)
        yield "camera", f"{camera.source}: {camera.name}{f' ({what})' if what else ''}"
    if not report.cameras and "cameras" not in report.problems:
        hidden = " (a container sees those that it was given)" if report.board and report.board.container else ""
        yield "camera", f"none found{hidden}"
    libraries = [f"{name} {'is here' if there else 'is missing'}" for name, there in report.camera_libraries.items()]
    gstreamer = "" if report.gstreamer is None else f" {'with' if report.gstreamer else 'without'} GStreamer"
    yield "camera software", ", ".join([f"OpenCV {report.opencv}{gstreamer}" if report.opencv else "", *libraries])


def _engine_row(engine: Engine) -> tuple[str, str, str]:
    devices = ", ".join(_device(*device) for device in engine.devices.items())
    state = {
        "ready": "; ".join(filter(None, (devices, *engine.remarks))) or "it does not tell",
        "broken": f"broken: {engine.problem}",
        "not asked": engine.problem or "not imported: slow, and there is no GPU for it",
        "missing": "missing",
    }[engine.state]
    return engine.name, engine.library, state


def _options(engine: Engine) -> str:
    """By name with their values, of an engine that is here."""
    known = {} if engine.state == "missing" else engine.options
    return "; ".join(f"{name}={', '.join(values) or '...'}" for name, values in known.items())


def _device(device: str, text: str) -> str:
    text = text.removesuffix("ExecutionProvider")
    return f"{device} ({text})" if text and text.lower() != device else device


def _to_get(report: Report) -> Iterator[tuple[str, str]]:
    for engine in report.engines:
        if engine.state in ("missing", "broken"):
            yield engine.name, f"{'again: ' if engine.state == 'broken' else ''}{engine.install}"
        for device, advice in engine.reach.items():
            yield f"{engine.name} {device}", advice
    for extra, modules in report.missing.items():
        where = ", on a computer, not on a board" if extra == "convert" else ""
        yield extra, f"pip install 'edgepose[{extra}]'{where} ({', '.join(modules)})"


def _print_advice(advice: Advice) -> None:
    print_table(f"{advice.bundle}: {advice.model}", ("<variant", "<runs here on"), list(advice.variants.items()))
    for taken in advice.taken:
        out.print(f"\n[bold]{taken.variant}[/bold]: {escape(taken.command)}", soft_wrap=True)
        out.print(Padding(escape(taken.why), (0, 0, 0, 2)))
    _facts("to know", [("-", note) for note in advice.notes])
