"""A benchmark document (docs/bench.md) as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from edgepose.calibration.report.benchmark_accuracy import AccuracyOf
from edgepose.calibration.report.parts import (
    cell,
    chart,
    definitions,
    document,
    keyed,
    provenance_section,
    section,
    shown,
    table,
    unit,
)
from edgepose.calibration.report.plots import (
    TONES,
    Axis,
    Bars,
    Line,
    bar_chart,
    line_chart,
    scatter_chart,
)
from edgepose.calibration.report.wording import DASH, TIMES, number, plural
from edgepose.runtimes.words import caveats, measured_words, row_name

__all__ = ["benchmark_html"]

Row = Mapping[str, Any]
_OPS = 20
_CDF_END = 95
_APART = 3.0


def benchmark_html(data: Mapping[str, Any], accuracy: AccuracyOf | None = None) -> str:
    """The page.

    Args:
        data: The document.
        accuracy: Of the variants, where it is known.
    """
    page = _Page(data, accuracy)
    title = f"{'Throughput' if page.throughput else 'Latency'} of {data['model']}"
    rest = {key: data.get(key) for key in ("began", "bundle", "settings", "conditions", "machine")}
    sections = [
        page.results(),
        page.distribution(),
        page.sweeps(),
        page.stages(),
        page.speed(),
        page.end_to_end(),
        page.native(),
        page.operators(),
        provenance_section(rest),
        page.glossary(),
    ]
    return document(title, page.top(title), *sections, made_by="edgepose bench")


class _Page:
    def __init__(self, data: Mapping[str, Any], accuracy: AccuracyOf | None) -> None:
        self.data, self.accuracy = data, accuracy
        self.rows: Sequence[Row] = data["rows"]
        self.throughput = data["settings"].get("mode") == "throughput"
        names = list(dict.fromkeys(row["variant"] for row in self.rows))
        base = next((row["baseline"] for row in self.rows if row.get("baseline")), names[0] if names else "")
        others = [name for name in names if name != base]
        self.tone = {base: 0} | {name: 1 + i % (TONES - 1) for i, name in enumerate(others)}
        first = self.rows[0] if self.rows else {}
        self.alone = [row for row in self.rows if all(row.get(k) == first.get(k) for k in ("batch", "mode"))]
        self.alone = list({row["variant"]: row for row in reversed(self.alone)}.values())[::-1]

    def top(self, title: str) -> str:
        notes = [f"{name} did not run: {reason}" for name, reason in self.data["failed"].items()]
        notes += caveats(self.data)
        items = "".join(
            f'<li class="measured"><span class="pill">NOTE</span><span>{shown(n)}.</span></li>' for n in notes
        )
        return (
            f'<header><p class="eyebrow">edgepose benchmark</p><h1>{shown(title)}</h1>'
            f'<p class="lead">{shown(self._summary())}</p>'
            f'<p class="soft">{shown(measured_words(self.data))}.</p><ul class="verdicts">{items}</ul></header>'
        )

    def _summary(self) -> str:
        if not self.rows:
            return "Nothing ran."
        if self.throughput:
            best = max(self.rows, key=lambda row: row["fps"])
            figures = f"{number(best['fps'], 1)} people per second"
        else:
            best = min(self.rows, key=lambda row: row["infer_ms"] / row["batch"])
            people = f" for {best['batch']} people" if best["batch"] > 1 else ""
            figures = f"{number(best['infer_ms'])} ms in the engine{people}"
        faster = ""
        if best.get("speedup") and best["variant"] != best.get("baseline"):
            faster = f", {number(best['speedup'])} times as fast as {best['baseline']}"
        where = f"{best['engine']} {best['device']}"
        return f"Fastest: {row_name(best)} on {where} with {figures}{faster}."

    def _key(self, row: Row) -> str:
        return keyed(row_name(row), self.tone[row["variant"]])

    def results(self) -> str:
        columns: list[tuple[str, list[str]]] = [
            ("People per second", [number(row["fps"], 1) for row in self.rows]),
            (f"Median{unit('ms')}", [number(row["infer_ms"]) + _limits(row, "infer") for row in self.rows]),
            (f"p95{unit('ms')}", [number(row["p95_ms"]) + _limits(row, "p95") for row in self.rows]),
            (f"p99{unit('ms')}", [number(row["p99_ms"]) for row in self.rows]),
            ("Speed-up", [f"{number(row['speedup'])}{TIMES}" if row.get("speedup") else DASH for row in self.rows]),
            (f"CPU time{unit('ms')}", [number(row["cpu_ms"]) for row in self.rows]),
            (f"Energy{unit('mJ')}", [number(row.get("energy_mj"), 1) for row in self.rows]),
            (f"Size{unit('MB')}", [number(row.get("mb")) for row in self.rows]),
            (f"Memory{unit('MiB')}", [number(row.get("rss_mib"), 0) for row in self.rows]),
            (f"GPU memory{unit('MiB')}", [number(row.get("gpu_mib"), 0) for row in self.rows]),
        ]
        kept = [(head, cells) for head, cells in columns if any(text != DASH for text in cells)]
        lines = [
            (self._key(row) + unit(f"{row['engine']} {row['device']}"), [cell(cells[i]) for _, cells in kept])
            for i, row in enumerate(self.rows)
        ]
        lines += [
            (shown(name), [cell(f'<span class="why"><b class="bad">DID NOT RUN</b> {shown(why)}</span>', "long", 99)])
            for name, why in self.data["failed"].items()
        ]
        return section(
            "results", "Results", table(["Variant", *(head for head, _ in kept)], lines, "Results per variant")
        )

    def distribution(self) -> str:
        lines = [
            Line(row["variant"], [(ms, float(i)) for i, ms in enumerate(row["percentiles_ms"][: _CDF_END + 1])], tone)
            for row in self.alone
            if row.get("percentiles_ms") and (tone := self.tone[row["variant"]]) is not None
        ]
        if not lines:
            return ""
        axes = Axis("milliseconds of one call"), Axis("calls within, %", 0, 100)
        charts = [
            chart(
                _cumulative("Times of all runs", lines, axes), "Upright: every call takes as long. Lines end at 95 %."
            )
        ]
        fast = _fastest(lines)
        if _middle(lines, max) > _APART * _middle(lines, min):
            charts.append(chart(_cumulative("The same, of the faster ones", fast, axes), "On a scale of their own."))
        return section("distribution", "How times are distributed", _charts(charts))

    def sweeps(self) -> str:
        charts = [self._sweep("threads", "batch"), self._sweep("batch", "threads")]
        return section("sweeps", "Threads and batches", _charts([one for one in charts if one]))

    def _sweep(self, key: str, other: str) -> str:
        """People per second over threads, or over the batch; the other is that of the first row."""
        rows = [row for row in self.rows if row.get(other) == self.rows[0].get(other) and row.get(key)]
        if len({row[key] for row in rows}) < 2:
            return ""
        lines = [
            Line(name, sorted((row[key], self._per_second(row)) for row in rows if row["variant"] == name), tone)
            for name, tone in self.tone.items()
        ]
        x = {"threads": "threads of one inference", "batch": "people per call"}[key]
        title = f"People per second by {'number of threads' if key == 'threads' else 'batch'}"
        svg = line_chart(
            title,
            f"{title}, one line per variant.",
            lines,
            Axis(x, low=0),
            Axis("people per second", low=0),
            marks=True,
        )
        return chart(svg, "Of the engine alone." if not self.throughput else "Requests in flight together.")

    def _per_second(self, row: Row) -> float:
        return float(row["fps"] if self.throughput else 1e3 * row["batch"] / row["infer_ms"])

    def stages(self) -> str:
        staged = [row for row in self.alone if row.get("pre_ms") is not None]
        if not staged:
            return ""
        names = {"crop": "pre_ms", "inference": "infer_ms", "decode": "decode_ms", "CPU of inference": "cpu_ms"}
        bars = [
            Bars(row["variant"], {name: float(row[key]) for name, key in names.items()}, self.tone[row["variant"]])
            for row in staged
        ]
        svg = bar_chart(
            "Median of each stage",
            "Milliseconds per stage and variant.",
            list(names),
            bars,
            Axis("milliseconds", low=0),
        )
        head = ["Variant", *(f"{shown(name)}{unit('ms')}" for name in names)]
        lines = [(self._key(row), [cell(number(row[key])) for key in names.values()]) for row in staged]
        caption = "CPU time of inference is that of all threads together: above inference, several cores worked."
        return section("stages", "Where the time goes", _charts([chart(svg, caption), table(head, lines, "Stages")]))

    def speed(self) -> str:
        values = self.accuracy.values if self.accuracy else {}
        points = [
            Line(row["variant"], [(row["infer_ms"], values[row["variant"]])], self.tone[row["variant"]])
            for row in self.alone
            if row["variant"] in values
        ]
        if not points or self.accuracy is None:
            return ""
        title = "Accuracy against latency"
        x = Axis("median of one call, ms", low=0)
        svg = scatter_chart(title, f"{self.accuracy.title} over latency.", points, x, Axis(self.accuracy.title))
        caption = "Accuracy as the bundle's evidence has it. The vertical axis does not begin at zero."
        return section("speed", "What accuracy costs", _charts([chart(svg, caption)]))

    def end_to_end(self) -> str:
        rows: Sequence[Row] = self.data.get("end_to_end") or ()
        names = list(dict.fromkeys(stage for row in rows for stage in row["stages_ms"]))
        if not rows:
            return ""
        head = ["Variant", "Frames", "Frames per second", *(f"{shown(n)}{unit('p50, p95; ms')}" for n in names)]
        lines = [
            (
                self._key(row),
                [
                    cell(str(row["frames"])),
                    cell(number(row["fps"], 1)),
                    *(cell(_two(row["stages_ms"].get(name))) for name in names),
                ],
            )
            for row in rows
        ]
        source = shown(PurePath(rows[0]["source"]).name)
        note = (
            f"<p class=soft>On {source}. Reading overlaps with the rest; camera to result is how old a result was.</p>"
        )
        return section("pipeline", "The whole pipeline", note, table(head, lines, "Whole pipeline"))

    def native(self) -> str:
        rows = [row for row in self.rows if row.get("native")]
        lines = []
        for row in rows:
            told = row["native"]
            tool = shown(told["tool"] or told["note"])
            figures = [number(told["tool_ms"]), number(told["ours_ms"]), number(told["ratio"], 3)]
            lines.append((self._key(row), [cell(tool), *map(cell, figures)]))
        head = ["Variant", "Tool", f"Its median{unit('ms')}", f"Ours{unit('ms')}", "Ours / its"]
        note = "<p class=soft>Each engine's own benchmark tool and ours, in turn, each in fresh processes.</p>"
        return section("native", "Beside the engines' own tools", note, table(head, lines, "Tools")) if rows else ""

    def operators(self) -> str:
        parts: list[str] = []
        for name, ops in (self.data.get("profiles") or {}).items():
            lines = [
                (
                    shown(op["name"]),
                    [
                        *(cell(shown(op[key])) for key in ("kind", "where")),
                        cell(number(op["ms"], 3)),
                        cell(f"{number(100 * op['share'], 1)} %"),
                    ],
                )
                for op in ops[:_OPS]
            ]
            head = ["Operator", "Kind", "Where", f"Mean{unit('ms')}", "Share"]
            more = f"the slowest {_OPS} of {len(ops)}" if len(ops) > _OPS else plural(len(ops), "operator")
            label = f"<summary>{keyed(name, self.tone.get(name, 0))} <span class=soft>{more}</span></summary>"
            parts.append(
                f"<details{'' if parts else ' open'}>{label}{table(head, lines, f'Operators of {name}')}</details>"
            )
        notes = [f"{name}: {reason}." for name, reason in (self.data.get("no_profile") or {}).items()]
        items = "".join(f"<li>{shown(note)}</li>" for note in notes)
        parts += [f'<ul class="plain note">{items}</ul>'] if items else []
        return section("operators", "Operator by operator", *parts)

    def glossary(self) -> str:
        bases = ", ".join(dict.fromkeys(str(row["baseline"]) for row in self.rows if row.get("baseline")))
        what = "people per second" if self.throughput else "the median"
        flow = "engine alone, with several requests under way" if self.throughput else "three stages in a row"
        terms = [
            ("Median, p95, p99", "Half, 95 % and 99 % of the calls took no longer."),
            (
                "From ... to",
                "Where the true value lies with 95 % confidence; dependent runs count as fewer independent ones.",
            ),
            ("Speed-up", f"Of {what}, over {bases} with the same threads and batch." if bases else "No FP32 variant."),
            ("CPU time", "Of one call, all threads together."),
            ("Energy", "Of one call: what the whole package or board drew meanwhile, idle power included."),
            ("Memory", "Peak of a fresh process that loads the model and runs it three times."),
            ("People per second", f"Of the {flow}."),
            (DASH, "Not measured, or too few runs to tell."),
        ]
        return section("glossary", "Terms", definitions((term, shown(text)) for term, text in terms))


def _limits(row: Row, key: str) -> str:
    low, high = row.get(f"{key}_low_ms"), row.get(f"{key}_high_ms")
    return "" if low is None or high is None else unit(f"{number(low)} to {number(high)}")


def _two(times: Mapping[str, float] | None) -> str:
    return DASH if times is None else f"{number(times['p50'], 1)}{unit(number(times['p95'], 1))}"


def _charts(parts: Sequence[str]) -> str:
    return f'<div class="charts">{"".join(parts)}</div>' if parts else ""


def _cumulative(title: str, lines: Sequence[Line], axes: tuple[Axis, Axis]) -> str:
    return line_chart(title, "Share of calls within each time, one line per variant.", lines, *axes)


def _middle(lines: Sequence[Line], pick: Callable[[Iterable[float]], float]) -> float:
    return pick(line.points[len(line.points) // 2][0] for line in lines)


def _fastest(lines: Sequence[Line]) -> list[Line]:
    """Those that take at most so many times as long as the fastest that a common scale shows them all."""
    limit = _APART * _middle(lines, min)
    return [line for line in lines if line.points[len(line.points) // 2][0] <= limit]
