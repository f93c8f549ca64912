"""Which engines are here, and what they really offer: each is imported in a process of its own."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from edgepose.child import ask_python
from edgepose.machine import versions
from edgepose.runtimes.registry import EngineRow, engines

__all__ = ["EngineHere", "devices_of", "take_inventory", "tell_devices"]


@dataclass(frozen=True)
class EngineHere:
    """One engine on this machine.

    Attributes:
        name: Its row's.
        state: ``ready``, ``missing``, ``broken``, or ``not asked``: it is there, and was not or could not be imported.
        library: Package and version, or nothing.
        devices: Device -> what the library says of it. Empty where it was not asked, or does not tell.
        problem: Why it is broken, or could not be asked, in one line.
    """

    name: str
    state: str
    library: str = ""
    devices: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""


def take_inventory(skip: Collection[str] = ()) -> dict[str, EngineHere]:
    """All engines by name; those to skip are not imported. About as long as the slowest of them takes.

    Raises:
        EngineUnavailable: Two engines have one name.
    """
    rows = engines()
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda row: _look_at(row, ask=row.name not in skip), rows.values())
        return dict(zip(rows, found, strict=True))


def _look_at(row: EngineRow, *, ask: bool) -> EngineHere:
    if not row.installed:
        return EngineHere(row.name, "missing")
    library = _library(row)
    if not ask:
        return EngineHere(row.name, "not asked", library)
    try:
        answer, problem = ask_python(f"from {__name__} import tell_devices; tell_devices({row.name!r})")
    except OSError as error:
        return EngineHere(
            row.name, "not asked", library, problem=f"cannot be imported apart ({error.strerror or error})"
        )
    try:
        devices = json.loads(answer)
    except ValueError:
        devices, problem = {}, problem or "answers nothing"
    return EngineHere(row.name, "broken" if problem else "ready", library, {} if problem else devices, problem)


def _library(row: EngineRow) -> str:
    """Package and version; the wheels for GPUs come under a name of their own."""
    there = [name.replace("_", "-") for name in row.libraries if importlib.util.find_spec(name) is not None]
    known = versions([package for name in there[:1] for package in (name, f"{name}-gpu")])
    return next((f"{package} {number}" for package, number in known.items()), next(iter(there), ""))


def devices_of(name: str) -> dict[str, str]:
    """Devices that an engine offers here, with what it says of each: its class tells (``devices_here``).

    Of a class that does not, the library is imported all the same, to see that it can be.
    """
    row = engines()[name]
    module, _, attribute = row.target.partition(":")
    factory: Any = getattr(importlib.import_module(module), attribute)
    if hasattr(factory, "devices_here"):
        return dict(factory.devices_here())
    for library in [name for name in row.libraries if importlib.util.find_spec(name) is not None][:1]:
        importlib.import_module(library)
    return {}


def tell_devices(name: str) -> None:
    """The other process's part: print them as JSON, on a line of their own."""
    sys.stdout.write(f"\n{json.dumps(devices_of(name))}\n")
