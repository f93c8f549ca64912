"""Benchmark documents (docs/bench.md) as tables on the terminal: of this machine, or of several hosts side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepose.cli._console import out, print_table, remark
from edgepose.runtimes.words import caveats, measured_words, row_name

if TYPE_CHECKING:
    from edgepose.runtimes.compare import Comparison

__all__ = ["print_benchmark", "print_comparison"]

Row = Mapping[str, Any]
Document = Mapping[str, Any]
_HERE = ("", "here")
_OPS_SHOWN = 12


def print_benchmark(results: Mapping[str, Document]) -> None:
    """Print the tables of one or several benchmarks.

    Args:
        results: Host -> its document, ``""`` or ``here`` for this machine. With several hosts, or one that is not this
            machine, a column names them.
    """
    named = len(results) > 1 or not set(results) <= set(_HERE)
    for host, data in results.items():
        where = f"{host or 'here'}: " if named else ""
        out.print(where + measured_words(data), style="dim", soft_wrap=True, markup=False)
    rows = [(host or "here", row) for host, data in results.items() for row in data["rows"]]
    failed = [(host or "here", name) for host, data in results.items() for name in data["failed"]]
    _print_latency(results, rows, failed, named)
    for host, data in results.items():
        for name, reason in data["failed"].items():
            remark(f"{_at(host, named)}{name} did not run: {reason}")
    _print_stages(rows, named)
    _print_end_to_end(results, named)
    _print_native(rows, named)
    _print_profiles(results, named)
    for host, data in results.items():
        for text in caveats(data):
            remark(_at(host, named) + text)


def _at(host: str, named: bool) -> str:
    return f"{host or 'here'}: " if named else ""


@dataclass(frozen=True)
class _Column:
    """A column, and its cell of a row; one that has no value in any row is left out."""

    title: str
    cell: Callable[[str, Row], object]
    always: bool = False


def _figure(key: str, digits: int = 2) -> Callable[[str, Row], object]:
    def cell(host: str, row: Row) -> object:
        value = row.get(key)
        return None if value is None else f"{value:.{digits}f}"

    return cell


def _interval(host: str, row: Row) -> object:
    low, high = row.get("infer_low_ms"), row.get("infer_high_ms")
    return None if low is None or high is None else f"{low:.2f} to {high:.2f}"


def _fps_interval(host: str, row: Row) -> object:
    low, high = row.get("fps_low"), row.get("fps_high")
    return None if low is None or high is None else f"{low:.1f} to {high:.1f}"


def _engine(host: str, row: Row) -> object:
    return f"{row['engine']} {row['device']}"


def _identity(rows: Sequence[tuple[str, Row]], named: bool) -> list[_Column]:
    """Columns that say which row it is: those that tell rows apart."""
    columns = [_Column("<variant", lambda host, row: row["variant"], True), _Column("<engine", _engine, True)]
    for key in ("threads", "batch"):
        if len({row.get(key) for _, row in rows}) > 1:
            columns.append(_Column(key, lambda host, row, key=key: row.get(key) or "auto"))  # type: ignore[misc]
    return [_Column("<host", lambda host, row: host, True), *columns] if named else columns


def _print_latency(
    results: Mapping[str, Document], rows: Sequence[tuple[str, Row]], failed: Sequence[tuple[str, str]], named: bool
) -> None:
    throughput = any(row.get("mode") == "throughput" for _, row in rows)
    columns = [
        *_identity(rows, named),
        _Column("in flight", lambda host, row: row.get("in_flight")),
        _Column("FPS", _figure("fps", 1), True) if throughput else _Column("p50 ms", _figure("infer_ms"), True),
        _Column("95 % sure", _fps_interval if throughput else _interval),
        _Column("p95 ms", _figure("p95_ms"), True),
        *([] if throughput else [_Column("p99 ms", _figure("p99_ms"), True)]),
        _Column("x FP32", _figure("speedup"), True),
        _Column("mJ", _figure("energy_mj", 1)),
        _Column("MB", _figure("mb"), True),
        _Column("RSS MiB", _figure("rss_mib", 0), True),
        _Column("GPU MiB", _figure("gpu_mib", 0)),
    ]
    head, cells = _cells(columns, rows)
    lead = [[host] if named else [] for host, _ in failed]
    rest = len(head) - 2 - named
    cells += [[*at, name, "did not run", *[None] * rest] for at, (_, name) in zip(lead, failed, strict=True)]
    what = ", ".join(dict.fromkeys(str(data["bundle"]) for data in results.values()))
    print_table(f"inference of {what}", head, cells, "; ".join(_captions(rows, throughput)))


def _cells(columns: Sequence[_Column], rows: Sequence[tuple[str, Row]]) -> tuple[list[str], list[list[object]]]:
    table = [[column.cell(host, row) for column in columns] for host, row in rows]
    kept = [i for i, column in enumerate(columns) if column.always or any(line[i] is not None for line in table)]
    return [columns[i].title for i in kept], [[line[i] for i in kept] for line in table]


def _captions(rows: Sequence[tuple[str, Row]], throughput: bool) -> Iterator[str]:
    figure = "people per second" if throughput else "the median"
    bases = list(dict.fromkeys(str(row["baseline"]) for _, row in rows if row.get("baseline")))
    if bases:
        same = "with the same batch" if throughput else "with the same threads and batch"
        yield f"x FP32: speed-up of {figure} over {', '.join(bases)} {same}"
    if throughput:
        yield "p95: of one request among the others"
    if any(row.get("infer_low_ms") is not None for _, row in rows):
        yield f"95 % sure: where {'it lies' if throughput else 'the median lies'}"
    if any(row.get("energy_mj") is not None for _, row in rows):
        yield "mJ: millijoules per call, idle power included"


def _print_stages(rows: Sequence[tuple[str, Row]], named: bool) -> None:
    staged = [(host, row) for host, row in rows if row.get("pre_ms") is not None]
    if not staged:
        return
    columns = [
        *_identity(staged, named),
        _Column("crop", _figure("pre_ms"), True),
        _Column("inference", _figure("infer_ms"), True),
        _Column("decode", _figure("decode_ms"), True),
        _Column("CPU of inference", _figure("cpu_ms"), True),
        _Column("FPS", _figure("fps", 1), True),
    ]
    head, cells = _cells(columns, staged)
    print_table("median ms of each stage", head, cells, "FPS: people per second, one stage after the other")


def _print_end_to_end(results: Mapping[str, Document], named: bool) -> None:
    rows = [(host or "here", row) for host, data in results.items() for row in data.get("end_to_end") or ()]
    stages = list(dict.fromkeys(stage for _, row in rows for stage in row["stages_ms"]))
    if not rows:
        return

    def times(stage: str) -> Callable[[str, Row], object]:
        def cell(host: str, row: Row) -> object:
            found = row["stages_ms"].get(stage)
            return None if found is None else f"{found['p50']:.1f} / {found['p95']:.1f}"

        return cell

    columns = [
        *([_Column("<host", lambda host, row: host, True)] if named else []),
        _Column("<variant", lambda host, row: row_name(row), True),
        _Column("frames", lambda host, row: row["frames"], True),
        _Column("FPS", _figure("fps", 1), True),
        *(_Column(stage, times(stage)) for stage in stages),
    ]
    source = ", ".join(dict.fromkeys(str(row["source"]) for _, row in rows))
    caption = "stages: p50 / p95 ms; reading overlaps; camera to result: from a frame's arrival to its poses"
    head, cells = _cells(columns, rows)
    print_table(f"whole pipeline on {source}", head, cells, caption)


def _print_native(rows: Sequence[tuple[str, Row]], named: bool) -> None:
    asked = [(host, row) for host, row in rows if row.get("native")]
    if not asked:
        return

    def of(key: str, digits: int) -> Callable[[str, Row], object]:
        def cell(host: str, row: Row) -> object:
            value = row["native"].get(key)
            return None if value is None else f"{value:.{digits}f}"

        return cell

    columns = [
        *_identity(asked, named),
        _Column("p50 above", _figure("infer_ms"), True),
        _Column("<tool", lambda host, row: row["native"]["tool"] or row["native"]["note"], True),
        _Column("its p50 ms", of("tool_ms", 2), True),
        _Column("ours alone", of("ours_ms", 2), True),
        _Column("ours / its", of("ratio", 3), True),
    ]
    head, cells = _cells(columns, asked)
    print_table(
        "beside each engine's own benchmark tool",
        head,
        cells,
        "the tool and ours alone take turns, each time in a fresh process; ours / its: median over the turns",
    )


def _print_profiles(results: Mapping[str, Document], named: bool) -> None:
    for host, data in results.items():
        for name, ops in (data.get("profiles") or {}).items():
            rest = sum(op["ms"] for op in ops[_OPS_SHOWN:])
            lines = [[op["name"], op["kind"], op["where"], *_time(op["ms"], op["share"])] for op in ops[:_OPS_SHOWN]]
            if len(ops) > _OPS_SHOWN:
                share = sum(op["share"] for op in ops[_OPS_SHOWN:])
                lines.append([f"{len(ops) - _OPS_SHOWN} more", "", "", *_time(rest, share)])
            title = f"{_at(host, named)}operators of {name}"
            print_table(title, ("<name", "<kind", "<where", "ms", "share"), lines, _kinds(ops))
        for name, reason in (data.get("no_profile") or {}).items():
            remark(f"{_at(host, named)}{name}: no profile: {reason}")


def _time(ms: float, share: float) -> tuple[str, str]:
    return f"{ms:.3f}", f"{100 * share:.1f} %"


def _kinds(ops: Sequence[Row]) -> str:
    totals: dict[str, float] = {}
    for op in ops:
        totals[op["kind"]] = totals.get(op["kind"], 0.0) + op["share"]
    ranked = sorted(totals.items(), key=lambda item: -item[1])[:6]
    return "by kind: " + ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in ranked)


def print_comparison(comparison: Comparison) -> None:
    """Print how each row compares with the earlier benchmark's."""
    lines: list[list[object]] = []
    for row in comparison.rows:
        after = None if row.after is None else f"{row.after:.2f}"
        limits = None if row.low is None or row.high is None else f"{row.low:.2f} to {row.high:.2f}"
        ratio = None if row.ratio is None else f"{row.ratio:.2f}"
        lines.append([row.name, f"{row.before:.2f}", after, ratio, limits, _STATES[row.state]])
    columns = ("<variant", "then ms", "now ms", "now / then", "95 % sure", "<verdict")
    allowed = f"allowed: {100 * comparison.max_slowdown:g} % slower; a row fails where all of its interval is beyond"
    print_table("against the earlier benchmark", columns, lines, allowed)
    for text in comparison.remarks:
        remark(f"warning: {text}")
    if comparison.new:
        remark(f"not measured then: {', '.join(comparison.new)}")


_STATES = {
    "slower": "SLOWER",
    "missing": "DID NOT RUN",
    "unsure": "slower, perhaps by chance: measure longer",
    "faster": "faster",
    "same": "no slower than allowed",
}
