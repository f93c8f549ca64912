"""Energy where a machine measures it: Intel's and AMD's RAPL counters, and the INA power monitors of Jetson boards.

Both tell what the whole package or board draws, idle power included.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

__all__ = ["Meter", "find_meter"]

_TOTAL_RAILS = ("VDD_IN", "POM_5V_IN", "5V_IN")
"""Rails that carry all that a Jetson board draws, by model."""
_SAMPLE_S = 0.02


class Meter(Protocol):
    """Measures energy.

    Attributes:
        name: What it measures.
    """

    name: str

    def joules(self, work: Callable[[], None]) -> float:
        """Energy that the machine takes while some work is done."""
        ...


def find_meter(root: Path = Path("/")) -> Meter | None:
    """The meter of this machine, or None; ``root`` holds ``sys``."""
    zones = tuple(zone for path in sorted((root / "sys/class/powercap").glob("*-rapl:*")) if (zone := _zone(path)))
    if zones:
        return _Rapl(zones)
    rails = [rail for rail in (*_hwmon_rails(root), *_iio_rails(root)) if rail.name in _TOTAL_RAILS]
    return _Ina(rails[0]) if rails else None


@dataclass(frozen=True)
class _Zone:
    """A RAPL counter, microjoules, which begins again after ``wrap``."""

    counter: Path
    wrap: int


def _zone(path: Path) -> _Zone | None:
    """A package's zone that this user may read; the zones inside it (``intel-rapl:0:1``) are counted with it."""
    zone = path / "energy_uj"
    try:
        if not (path / "name").read_text(encoding="ascii").startswith("package"):
            return None
        int(zone.read_text(encoding="ascii"))
        return _Zone(zone, int((path / "max_energy_range_uj").read_text(encoding="ascii")))
    except (OSError, ValueError):
        return None


class _Rapl:
    name = "processor package (RAPL)"

    def __init__(self, zones: tuple[_Zone, ...]) -> None:
        self._zones = zones

    def joules(self, work: Callable[[], None]) -> float:
        before = self._read()
        work()
        gone = [(now - then) % zone.wrap for zone, then, now in zip(self._zones, before, self._read(), strict=True)]
        return sum(gone) / 1e6

    def _read(self) -> list[int]:
        return [int(zone.counter.read_text(encoding="ascii")) for zone in self._zones]


@dataclass(frozen=True)
class _Rail:
    """A power monitor: milliwatts as a product of two files, millivolts and milliamperes, or in one."""

    name: str
    files: tuple[Path, ...]

    def watts(self) -> float:
        numbers = [float(path.read_text(encoding="ascii")) for path in self.files]
        return numbers[0] * numbers[1] / 1e6 if len(numbers) == 2 else numbers[0] / 1e3


def _hwmon_rails(root: Path) -> list[_Rail]:
    """Rails of JetPack 5 and later: hwmon's INA3221."""
    rails = []
    for label in sorted((root / "sys/bus/i2c/drivers/ina3221").glob("*/hwmon/hwmon*/in*_label")):
        number = label.name[len("in") : -len("_label")]
        files = (label.with_name(f"in{number}_input"), label.with_name(f"curr{number}_input"))
        rails += _readable(label, files)
    return rails


def _iio_rails(root: Path) -> list[_Rail]:
    """Rails of JetPack 4: NVIDIA's own INA3221 driver."""
    rails = []
    for label in sorted((root / "sys/bus/i2c/drivers/ina3221x").glob("*/iio:device*/rail_name_*")):
        number = label.name.removeprefix("rail_name_")
        rails += _readable(label, (label.with_name(f"in_power{number}_input"),))
    return rails


def _readable(label: Path, files: tuple[Path, ...]) -> list[_Rail]:
    try:
        rail = _Rail(label.read_text(encoding="ascii").strip(), files)
        rail.watts()
    except (OSError, ValueError):
        return []
    return [rail]


class _Ina:
    """Adds up power that is read now and then in a thread."""

    def __init__(self, rail: _Rail) -> None:
        self.name = f"board, rail {rail.name} (INA)"
        self._rail = rail

    def joules(self, work: Callable[[], None]) -> float:
        done = threading.Event()
        samples: list[tuple[float, float]] = []
        thread = threading.Thread(target=self._sample, args=(done, samples), name="edgepose-power", daemon=True)
        thread.start()
        try:
            work()
        finally:
            done.set()
            thread.join()
        steps = itertools.pairwise(samples)
        return sum((t1 - t0) * (w0 + w1) / 2 for (t0, w0), (t1, w1) in steps)

    def _sample(self, done: threading.Event, samples: list[tuple[float, float]]) -> None:
        while True:
            last = done.is_set()
            samples.append((time.perf_counter(), self._rail.watts()))
            if last:
                return
            done.wait(_SAMPLE_S)
