"""Clock speed, temperature and throttling as Linux tells them under /sys; where it does not, nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["Climate", "climate"]

_PI_THROTTLED = 0b1110
"""Bits of a Raspberry Pi's state now: frequency capped, throttled, soft temperature limit."""
_LOWEST_C, _HIGHEST_C = 1.0, 150.0


@dataclass(frozen=True)
class Climate:
    """One moment.

    Attributes:
        frequency_mhz: Mean clock of the cores.
        temperature_c: That of the hottest zone.
        throttles: How often cores were throttled so far.
        throttled: Whether the board says that it is throttled now.
    """

    frequency_mhz: float | None
    temperature_c: float | None
    throttles: int | None
    throttled: bool | None


def climate(root: Path = Path("/")) -> Climate:
    """Read it; ``root`` holds ``sys``."""
    cores = root / "sys/devices/system/cpu"
    clocks = _numbers(cores.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    zones = [n / 1e3 for n in _numbers((root / "sys/class/thermal").glob("thermal_zone*/temp"))]
    warm = [c for c in zones if _LOWEST_C <= c <= _HIGHEST_C]
    counts = _numbers(cores.glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))
    states = _numbers((root / "sys/devices/platform/soc").glob("soc:firmware/get_throttled"), base=16)
    return Climate(
        float(np.mean(clocks)) / 1e3 if clocks else None,
        max(warm) if warm else None,
        sum(counts) if counts else None,
        bool(states[0] & _PI_THROTTLED) if states else None,
    )


def _numbers(paths: Iterable[Path], base: int = 10) -> list[int]:
    """The whole numbers in files; those that cannot be read are left out."""
    found = []
    for path in sorted(paths):
        try:
            found.append(int(path.read_text(encoding="ascii").strip(), base))
        except (OSError, ValueError):
            continue
    return found
