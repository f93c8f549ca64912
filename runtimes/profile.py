"""The time of each operator, in one form for every engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

__all__ = ["OpTime", "ProfilingEngine", "op_times"]


@dataclass(frozen=True)
class OpTime:
    """An operator of the graph that an engine really runs.

    Attributes:
        name: As the engine names it: after optimisation, so that one may stand for several of the file's.
        kind: What it computes: ``MatMul``, ``Convolution``.
        where: Device, execution provider or kernel.
        ms: Mean over the runs.
        share: Of the time of all operators, 0 to 1.
    """

    name: str
    kind: str
    where: str
    ms: float
    share: float


@runtime_checkable
class ProfilingEngine(Protocol):
    """An engine that can say how long each operator takes; others have no such method."""

    def profile(self, feeds: Mapping[str, NDArray[Any]], runs: int) -> list[OpTime]:
        """Run one batch so many times, after a run that is not counted.

        Profiling costs time itself: shares are meant, not totals.

        Raises:
            EngineError: The engine failed.
        """
        ...


def op_times(seconds: Mapping[tuple[str, str, str], float], runs: int) -> list[OpTime]:
    """Rows of (name, kind, where) -> seconds over all runs, slowest first; operators that took no time are left out."""
    total = sum(seconds.values())
    rows = [
        OpTime(name, kind, where, 1e3 * spent / runs, spent / total)
        for (name, kind, where), spent in seconds.items()
        if spent > 0
    ]
    return sorted(rows, key=lambda row: (-row.ms, row.name))
