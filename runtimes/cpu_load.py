"""How busy others kept the processor while something was measured: Linux's /proc/stat against this process's time."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CpuLoad", "Moment", "load_between", "moment"]

_IDLE, _STEAL = (3, 4), 7


@dataclass(frozen=True)
class Moment:
    """Seconds: on the clock; busy, of all cores together; stolen by a hypervisor; of this process and its children."""

    clock: float
    busy: float
    stolen: float
    own: float


@dataclass(frozen=True)
class CpuLoad:
    """Cores that others kept busy on average: other processes, and other guests of the same host."""

    others: float
    stolen: float


def moment(root: Path = Path("/")) -> Moment | None:
    """Now; None where the system does not tell."""
    try:
        line = (root / "proc/stat").read_text(encoding="ascii").splitlines()[0]
        ticks = [int(word) for word in line.split()[1:9]]
    except (OSError, ValueError, IndexError):
        return None
    if not line.startswith("cpu ") or len(ticks) <= _STEAL:
        return None
    second = os.sysconf("SC_CLK_TCK")
    used = os.times()
    own = used.user + used.system + used.children_user + used.children_system
    busy = sum(count for i, count in enumerate(ticks) if i not in (*_IDLE, _STEAL))
    return Moment(time.monotonic(), busy / second, ticks[_STEAL] / second, own)


def load_between(before: Moment | None, after: Moment | None) -> CpuLoad | None:
    """What others did between two moments."""
    if before is None or after is None or after.clock <= before.clock:
        return None
    seconds = after.clock - before.clock
    others = (after.busy - before.busy) - (after.own - before.own)
    return CpuLoad(max(0.0, others) / seconds, (after.stolen - before.stolen) / seconds)
