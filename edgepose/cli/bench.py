"""``edgepose bench``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepose.cli._bench_tables import print_benchmark, print_comparison
from edgepose.cli._console import progress, remark, write_figures
from edgepose.cli._hosts import Hosts, host_options
from edgepose.cli._options import PATH, counts, split_list, sweep_options
from edgepose.cli._variants import load_variants
from edgepose.files import canonical_json, replace_file
from edgepose.machine import machine
from edgepose.opening import Opening

if TYPE_CHECKING:
    from edgepose.model import LoadedModel
    from edgepose.runtimes.benchmark import Settings

__all__ = ["bench", "command"]

_STDOUT = Path("-")


@click.command("bench")
@click.argument("bundle", type=PATH)
@click.option("--variants", help="Only these, separated by commas.  [default: all]")
@click.option(
    "--mode",
    type=click.Choice(["latency", "throughput"]),
    default="latency",
    show_default=True,
    help="One request after the other, or as many at once as the engine can take.",
)
@click.option("--iterations", type=click.IntRange(1), help="Timed runs of each variant.  [default: 100]")
@click.option("--duration", type=click.FloatRange(0, 3600, min_open=True), help="In their place: seconds per variant.")
@click.option("--warmup", type=click.IntRange(0), help="Runs before, not timed.  [default: until times are steady]")
@click.option("--batch", type=counts(1024), default="1", show_default=True, metavar="N[,N...]", help="People per call.")
@click.option("--in-flight", type=click.IntRange(1, 256), help="Requests at once, with --mode throughput.")
@click.option("--profile", is_flag=True, help="The time of each operator too.")
@click.option("--native", is_flag=True, help="Run each engine's own benchmark tool too, where it is installed.")
@click.option("--source", help="Time the whole pipeline on this video, folder or camera too.")
@click.option("--frames", type=click.IntRange(1), default=300, show_default=True, help="Frames of it at most.")
@click.option("--compare", "earlier", type=PATH, help="An earlier --json file; exit code 1 where a row became slower.")
@click.option("--max-slowdown", default="10%", show_default=True, help="What --compare allows.")
@click.option("--json", "json_path", type=PATH, help="Write everything here; - for standard output, without tables.")
@click.option("--markdown", "markdown_path", type=PATH, help="Write the tables here as Markdown.")
@click.option("--csv", "csv_path", type=PATH, help="Write the rows here as CSV.")
@click.option("--html", "html_path", type=PATH, help="Write a page with plots here.")
@click.option("--force", is_flag=True, help="Replace files that are there.")
@sweep_options
@host_options
def command(
    bundle: Path,
    variants: str | None,
    mode: str,
    iterations: int | None,
    duration: float | None,
    warmup: int | None,
    batch: tuple[int, ...],
    in_flight: int | None,
    profile: bool,
    native: bool,
    source: str | None,
    frames: int,
    earlier: Path | None,
    max_slowdown: str,
    json_path: Path | None,
    markdown_path: Path | None,
    csv_path: Path | None,
    html_path: Path | None,
    force: bool,
    thread_counts: tuple[int, ...] | None,
    opening: Opening,
    hosts: Hosts,
) -> int:
    """Measure every variant of BUNDLE (or one model file) here, in turn. docs/bench.md says how.

    Variants that cannot run stay in the table with the reason.

    \b
    edgepose bench bundle --threads 1,2,4 --html bench.html
    edgepose bench bundle --json main.json                        on the old version
    edgepose bench bundle --compare main.json --max-slowdown 10%  on the new one: exit code 1 where it is slower
    edgepose bench bundle --host pi@board --host jetson           on two boards at the same time: docs/remote.md
    """
    from edgepose.cli._there import bench_there
    from edgepose.runtimes.benchmark import Settings
    from edgepose.runtimes.compare import check_machine, compare, read_benchmark

    if iterations and duration:
        raise click.UsageError("--iterations and --duration both say how long: give one of them")
    if in_flight and mode != "throughput":
        raise click.UsageError("--in-flight goes with --mode throughput")
    allowed = _share(max_slowdown)
    outputs = _Outputs(json_path, markdown_path, csv_path, html_path)
    outputs.check(force=force, inputs=[path for path in (bundle, earlier) if path])
    before = read_benchmark(earlier) if earlier else None
    if before:
        check_machine(before, machine())
    settings = Settings(
        mode=mode,
        iterations=iterations or 100,
        duration_s=duration,
        warmup=warmup,
        threads=thread_counts or (None,),
        batch=batch,
        in_flight=in_flight,
        profile=profile,
        native=native,
        source=source,
        frames=frames,
    )
    show = json_path != _STDOUT
    names = split_list(variants) if variants else None
    if len(hosts.names) > 1 and (earlier or outputs.of_one):
        raise click.UsageError("--compare, --markdown, --csv and --html are of one machine: give one --host")
    if hosts:
        data = bench_there(bundle, names, hosts, source, show=show)
    else:
        data = bench(bundle, names, settings, opening=opening, show=show)
    comparison = compare(before, data, allowed) if before else None
    if comparison and show:
        print_comparison(comparison)
    outputs.write(data, bundle)
    if comparison and comparison.failed:
        remark(f"slower than {earlier}: {', '.join(row.name for row in comparison.failed)}")
        return 1
    return 0


def bench(
    path: Path,
    variants: list[str] | None = None,
    settings: Settings | None = None,
    *,
    opening: Opening | None = None,
    show: bool = True,
) -> dict[str, Any]:
    """Measure, print the tables if asked to, and return the document of docs/bench.md.

    Raises:
        EdgePoseError: No variant runs here.
    """
    from edgepose.runtimes.benchmark import Settings, benchmark

    how, opening = settings or Settings(), opening or Opening()

    def load(name: str, threads: int | None) -> tuple[LoadedModel, Mapping[str, str]]:
        return _load(path, name, how.mode, replace(opening, threads=threads))

    _check_source(how.source)
    with progress() as update:
        data = benchmark(path, variants, how, load, update)
    if show:
        print_benchmark({"": data})
    return data


def _load(path: Path, name: str, mode: str, opening: Opening) -> tuple[LoadedModel, Mapping[str, str]]:
    """One variant, tuned for the mode where its engine can be."""
    from edgepose.runtimes.load import model_files
    from edgepose.runtimes.registry import row_for

    known = row_for(model_files(path, [name])[name], opening.engine).options.get("mode", ())
    options = {"mode": mode, **opening.options} if mode in known else dict(opening.options)
    models, _ = load_variants(path, [name], replace(opening, options=options), tell=False)
    return models[name], options


def _check_source(source: str | None) -> None:
    """Whether it can be opened, before anything is measured.

    Raises:
        SourceError: It cannot.
    """
    from edgepose.sources import open_source

    if source is not None:
        with open_source(source):
            pass


def _share(text: str) -> float:
    """``10%`` -> 0.1."""
    found = re.fullmatch(r"(\d{1,4}(?:\.\d+)?)\s*%", text.strip())
    if not found:
        raise click.BadParameter(f"{text!r}: give percent, for instance 10%", param_hint="--max-slowdown")
    return float(found[1]) / 100


@dataclass(frozen=True)
class _Outputs:
    """Files that a benchmark is written to."""

    json: Path | None = None
    markdown: Path | None = None
    csv: Path | None = None
    html: Path | None = None

    @property
    def of_one(self) -> bool:
        """Whether one is asked for that shows one machine."""
        return bool(self.markdown or self.csv or self.html)

    def check(self, *, force: bool, inputs: list[Path]) -> None:
        """Refuse what cannot or must not be written, before anything is measured."""
        from edgepose.sinks import check_output

        for path in (self.json, self.markdown, self.csv, self.html):
            if path and not (path is self.json and path == _STDOUT):
                check_output(path, force=force, inputs=inputs)

    def write(self, data: Mapping[str, Any], bundle: Path) -> None:
        """Write them, and say so."""
        from edgepose.calibration.report.benchmark import benchmark_html
        from edgepose.calibration.report.benchmark_accuracy import accuracy_of
        from edgepose.cli._bench_files import benchmark_csv, benchmark_markdown

        if self.json == _STDOUT:
            click.echo(canonical_json(data), nl=False)
        elif self.json:
            write_figures(self.json, dict(data))
        texts = {
            self.markdown: benchmark_markdown(data) if self.markdown else "",
            self.csv: benchmark_csv(data) if self.csv else "",
            self.html: benchmark_html(data, accuracy_of(bundle)) if self.html else "",
        }
        for path, text in texts.items():
            if path:
                with replace_file(path) as partial:
                    partial.write_bytes(text.encode())
                remark(f"wrote {path}")
