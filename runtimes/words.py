"""What a benchmark document says, in words: the same for terminal, Markdown and the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edgepose.runtimes.placement import stray_words

__all__ = ["caveats", "conditions_words", "measured_words", "plural", "row_name"]

_BUSY_SHARE = 0.05
_SLOWER_CLOCK = 0.9


def row_name(row: Mapping[str, Any]) -> str:
    """The variant, with threads and batch where they were chosen."""
    extra = [plural(row["threads"], "thread")] if row.get("threads") else []
    extra += [f"batch {row['batch']}"] if row.get("batch", 1) != 1 else []
    return f"{row['variant']} ({', '.join(extra)})" if extra else str(row["variant"])


def measured_words(data: Mapping[str, Any]) -> str:
    """What was measured, how, and on what: one line."""
    settings, machine = data["settings"], data["machine"]
    length = (
        f"{settings['duration_s']:g} s per variant"
        if settings.get("duration_s")
        else f"{settings.get('iterations')} timed runs per variant"
    )
    threads = [number or "automatic" for number in settings.get("threads") or [None]]
    batch = "/".join(str(size) for size in settings.get("batch") or [1])
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    what = "requests in flight together" if settings.get("mode") == "throughput" else "variants in turn"
    return (
        f"{data['model']}: {settings.get('mode', 'latency')}, {length}, {what}, batch {batch}, "
        f"{plural(threads, 'thread')}; {machine['cpu']}, {machine['cores']} cores; {versions}"
    )


def plural(numbers: Any, noun: str) -> str:
    """``1 thread``, ``2 threads``, ``1/2 threads``."""
    text = "/".join(map(str, numbers)) if isinstance(numbers, list) else str(numbers)
    return f"{text} {noun}" + ("" if text == "1" else "s")


def caveats(data: Mapping[str, Any]) -> Iterator[str]:
    """All that a reader of the figures must know: rows that changed, and what disturbed the measurement."""
    placed = [(row["variant"], row.get("device", "cpu"), row.get("placement") or {}) for row in data["rows"]]
    yield from dict.fromkeys(words for one in placed if (words := stray_words(*one)))
    for row in data["rows"]:
        if row.get("drifted"):
            yield _drift_words(row)
        if row.get("steady") is False:
            yield f"{row_name(row)}: its times had not settled when warming up ended: try --warmup 200"
    yield from conditions_words(data)
    yield from data.get("remarks") or ()


def _drift_words(row: Mapping[str, Any]) -> str:
    """That a variant became slower or faster while it was measured."""
    change = float(row["drift"])
    return (
        f"{row_name(row)}: the last third of its runs was {100 * abs(change):.0f} % "
        f"{'slower' if change > 0 else 'faster'} than the first: the clock speed or the load changed"
    )


def conditions_words(data: Mapping[str, Any]) -> Iterator[str]:
    """What disturbed the measurement: other processes, a hypervisor, throttling."""
    found: Mapping[str, Any] = data.get("conditions") or {}
    cores = data["machine"].get("cores") or 1
    for key, who in (("other_cores", "other processes"), ("stolen_cores", "other guests of this host")):
        used = found.get(key)
        if used is not None and used > _BUSY_SHARE * cores:
            yield f"{who} kept {used:.1f} of {cores} cores busy during the run: times are longer than they need be"
    before, after = found.get("frequency_mhz") or (None, None)
    if before and after and after < _SLOWER_CLOCK * before:
        yield f"the clock fell from {before:.0f} to {after:.0f} MHz during the run: let it cool, or fix the clock"
    if found.get("throttled"):
        yield "the processor was throttled during the run: cool it, or give it a better supply, and measure again"
