"""Benchmark documents as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from edgepose.calibration.report.markdown import escaped, line
from edgepose.calibration.report.wording import DASH, number
from edgepose.runtimes.words import caveats, measured_words, row_name

__all__ = ["CSV_FIELDS", "benchmark_csv", "benchmark_markdown"]

CSV_FIELDS = (
    *("variant", "engine", "device", "threads", "batch", "mode", "in_flight", "iterations", "steady"),
    *("pre_ms", "infer_ms", "infer_low_ms", "infer_high_ms", "p95_ms", "p95_low_ms", "p95_high_ms", "p99_ms"),
    *("cpu_ms", "decode_ms", "fps", "fps_low", "fps_high", "speedup", "baseline", "drift", "drifted"),
    *("mb", "rss_mib", "gpu_mib", "energy_mj", "failed"),
)


def benchmark_csv(data: Mapping[str, Any]) -> str:
    """One line per row, and one per variant that did not run with the reason in ``failed``; unknown is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_FIELDS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(data["rows"])
    writer.writerows({"variant": name, "failed": reason} for name, reason in data["failed"].items())
    return text.getvalue()


def benchmark_markdown(data: Mapping[str, Any]) -> str:
    """What was measured, and the tables."""
    head = ["variant", "engine", "p50 ms", "95 % sure", "p95 ms", "p99 ms", "x FP32", "CPU ms", "FPS", "MB", "RSS MiB"]
    rows = [_cells(row) for row in data["rows"]]
    rows += [
        [escaped(name), f"**did not run**: {escaped(reason)}", *[DASH] * (len(head) - 2)]
        for name, reason in data["failed"].items()
    ]
    parts = [f"**{escaped(measured_words(data))}**", _table(head, rows)]
    notes = list(caveats(data))
    parts += ["\n".join(f"- {escaped(note)}" for note in notes)] if notes else []
    parts += [_end_to_end(data["end_to_end"])] if data.get("end_to_end") else []
    parts += [_profile(name, ops) for name, ops in (data.get("profiles") or {}).items()]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 2) -> str:
    rule = [":--"] * texts + ["--:"] * (len(head) - texts)
    return "\n".join(line(cells) for cells in [head, rule, *rows])


def _cells(row: Mapping[str, Any]) -> list[str]:
    low, high = row.get("infer_low_ms"), row.get("infer_high_ms")
    sure = DASH if low is None or high is None else f"{number(low)} to {number(high)}"
    figures = [number(row.get(key)) for key in ("p95_ms", "p99_ms", "speedup", "cpu_ms")]
    rest = [number(row.get("fps"), 1), number(row.get("mb")), number(row.get("rss_mib"), 0)]
    where = escaped(f"{row['engine']} {row['device']}")
    return [escaped(row_name(row)), where, number(row["infer_ms"]), sure, *figures, *rest]


def _end_to_end(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(stage for row in rows for stage in row["stages_ms"]))
    head = ["variant", "source", "frames", "FPS", *(f"{escaped(name)}, p50 / p95 ms" for name in names)]
    lines = []
    for row in rows:
        times = [row["stages_ms"].get(name) for name in names]
        shown = [f"{number(t['p50'], 1)} / {number(t['p95'], 1)}" if t else DASH for t in times]
        lines.append(
            [escaped(row_name(row)), escaped(row["source"]), str(row["frames"]), number(row["fps"], 1), *shown]
        )
    return "**Whole pipeline**\n\n" + _table(head, lines)


def _profile(name: str, ops: Sequence[Mapping[str, Any]]) -> str:
    head = ["name", "kind", "where", "ms", "share"]
    rows = [
        [*(escaped(op[key]) for key in head[:3]), number(op["ms"], 3), f"{number(100 * op['share'], 1)} %"]
        for op in ops[:20]
    ]
    return f"**Operators of {escaped(name)}** (the slowest of {len(ops)})\n\n" + _table(head, rows, 3)
