"""A benchmark against an earlier one: which rows became slower beyond doubt, and whether the two may be compared."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepose.errors import EdgePoseError
from edgepose.runtimes.statistics import Estimate, ratio_interval
from edgepose.runtimes.words import conditions_words, row_name

__all__ = ["Comparison", "RowChange", "check_machine", "compare", "read_benchmark"]

_KEYS = ("variant", "engine", "device", "threads", "batch", "mode", "in_flight")
_MACHINE = ("cpu", "cores", "isa")
_LARGEST = 64 * 2**20


@dataclass(frozen=True)
class RowChange:
    """One row against the same one of the earlier benchmark.

    Attributes:
        name: Variant, with threads and batch where they were chosen.
        before, after: Median milliseconds; in throughput mode milliseconds per person.
        ratio: after / before: above 1 it became slower.
        low, high: Where the ratio lies with 95 % confidence; None where one of the two had too few runs to tell.
        state: ``slower``: by more than allowed, beyond doubt. ``unsure``: by more, but it may be chance. ``missing``:
            it ran then, and not now. ``faster``: beyond doubt. ``same``: none of these.
    """

    name: str
    before: float
    after: float | None
    ratio: float | None
    low: float | None
    high: float | None
    state: str


@dataclass(frozen=True)
class Comparison:
    """All rows that both have; ``remarks`` say what else differs, ``new`` names rows that only the later has."""

    rows: tuple[RowChange, ...]
    remarks: tuple[str, ...]
    new: tuple[str, ...]
    max_slowdown: float

    @property
    def failed(self) -> tuple[RowChange, ...]:
        """Rows that a build must not pass with."""
        return tuple(row for row in self.rows if row.state in ("slower", "missing"))


def read_benchmark(path: Path) -> dict[str, Any]:
    """The document that ``edgepose bench --json`` wrote.

    Raises:
        EdgePoseError: It is not there, or no such document.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError("it is too large")
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != 1:
            raise ValueError(f"schema {data['schema']!r}, and this edgepose reads 1")
        for row in data["rows"]:
            _estimate(row), _key(row)
        if not isinstance(data["machine"]["versions"], dict) or not data["rows"]:
            raise ValueError("it has no rows")
    except OSError as error:
        raise EdgePoseError(f"{path}: cannot be read ({error.strerror}): give a file that --json wrote") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())[:120]
        raise EdgePoseError(f"{path}: is no benchmark of edgepose ({reason}): give a file that --json wrote") from None
    found: dict[str, Any] = data
    return found


def compare(before: Mapping[str, Any], after: Mapping[str, Any], max_slowdown: float) -> Comparison:
    """Judge each row of the later benchmark by the earlier one's.

    Args:
        before, after: Documents.
        max_slowdown: What is allowed: 0.1 is ten percent. A row fails only where the whole 95 % interval of its ratio
            lies beyond.

    Raises:
        EdgePoseError: They are of different machines or models, or have no row in common.
    """
    check_machine(before, after["machine"])
    if before["model"] != after["model"]:
        raise EdgePoseError(f"the earlier benchmark is of {before['model']}, this one of {after['model']}")
    then = {_key(row): row for row in before["rows"]}
    now = {_key(row): row for row in after["rows"]}
    rows = [_change(row, now.get(key), max_slowdown) for key, row in then.items() if _asked(row, after)]
    if not rows:
        raise EdgePoseError(
            "the two benchmarks have no row in common: measure the same variants with the same --threads, --batch and "
            "--mode"
        )
    new = tuple(row_name(row) for key, row in now.items() if key not in then)
    return Comparison(tuple(rows), tuple(_differences(before, after)), new, max_slowdown)


def check_machine(before: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse a benchmark of another processor than ``here``: see :func:`edgepose.machine.machine`.

    Raises:
        EdgePoseError: It is.
    """
    for what in _MACHINE:
        one, other = before["machine"].get(what), here.get(what)
        if one != other:
            raise EdgePoseError(
                f"the earlier benchmark is of another machine ({what}: {_text(one)} then, {_text(other)} now): "
                "times of two machines say nothing about a change; measure both on one"
            )


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """What may explain a change."""
    one, other = before["machine"]["versions"], after["machine"]["versions"]
    for name in sorted(one.keys() | other.keys()):
        if one.get(name) != other.get(name):
            yield f"{name} was {one.get(name, 'not there')}, and is {other.get(name, 'not there')} now"
    if before["machine"].get("system") != after["machine"].get("system"):
        yield "the operating system is another than then"
    for data, when in ((before, "then"), (after, "now")):
        yield from (f"{when}: {text}" for text in conditions_words(data))


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in _KEYS)


def _asked(row: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether the later benchmark was to measure it: what was left out by choice is not missing."""
    variants = {name.partition(" (")[0] for name in after["failed"]} | {r["variant"] for r in after["rows"]}
    settings = after["settings"]
    return (
        row["variant"] in variants
        and row["batch"] in settings["batch"]
        and (row.get("mode", "latency") == "throughput" or row["threads"] in settings["threads"])
        and row.get("mode", "latency") == settings["mode"]
    )


def _estimate(row: Mapping[str, Any]) -> Estimate:
    """Milliseconds that a person, or a call, takes: more is slower in both modes."""
    if row.get("mode") == "throughput":
        return Estimate(_positive(1e3 / _positive(row["fps"])), _inverse(row["fps_high"]), _inverse(row["fps_low"]))
    low, high = row["infer_low_ms"], row["infer_high_ms"]
    known = [None if limit is None else _positive(limit) for limit in (low, high)]
    return Estimate(_positive(row["infer_ms"]), *known)


def _inverse(fps: Any) -> float | None:
    return None if fps is None else 1e3 / _positive(fps)


def _positive(value: Any) -> float:
    number = float(value)
    if not (number > 0 and math.isfinite(number)):
        raise ValueError(f"a time of {value!r}")
    return number


def _change(before: Mapping[str, Any], after: Mapping[str, Any] | None, max_slowdown: float) -> RowChange:
    old = _estimate(before)
    if after is None:
        return RowChange(row_name(before), old.value, None, None, None, None, "missing")
    new = _estimate(after)
    ratio, limits = new.value / old.value, ratio_interval(new, old)
    low, high = limits or (None, None)
    if low is not None and low > 1 + max_slowdown:
        state = "slower"
    elif ratio > 1 + max_slowdown:
        state = "unsure"
    else:
        state = "faster" if high is not None and high < 1 else "same"
    return RowChange(row_name(before), old.value, new.value, ratio, low, high, state)
