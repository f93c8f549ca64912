"""``edgepose bench``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from edgepose.cli._bench_tables import print_benchmark
from edgepose.cli._console import progress, write_figures
from edgepose.cli._hosts import Hosts, host_options
from edgepose.cli._options import PATH, Opening, engine_options, split_list
from edgepose.cli._variants import load_variants
from edgepose.files import canonical_json
from edgepose.machine import machine

__all__ = ["bench", "command"]


@click.command("bench")
@click.argument("bundle", type=PATH)
@click.option("--variants", help="Only these, separated by commas.  [default: all]")
@click.option("--iterations", type=click.IntRange(1), default=100, show_default=True, help="Timed rounds.")
@click.option("--warmup", type=click.IntRange(0), default=10, show_default=True, help="Rounds before, not counted.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="People per call.")
@click.option("--json", "json_path", type=PATH, help="Write the figures here too; - for standard output.")
@click.option("--force", is_flag=True, help="Replace the JSON file.")
@engine_options
@host_options
def command(
    bundle: Path,
    variants: str | None,
    iterations: int,
    warmup: int,
    batch: int,
    json_path: Path | None,
    force: bool,
    opening: Opening,
    hosts: Hosts,
) -> None:
    """Measure every variant of BUNDLE (or one model file) here, interleaved round by round.

    Variants that cannot run stay in the table with the reason.
    """
    from edgepose.cli._there import bench_there
    from edgepose.sinks import check_output

    to_stdout = json_path == Path("-")
    if json_path and not to_stdout:
        check_output(json_path, force=force)
    if hosts:
        bench_there(bundle, split_list(variants) if variants else None, hosts, json_path)
        return
    data = bench(
        bundle,
        split_list(variants) if variants else None,
        iterations=iterations,
        warmup=warmup,
        batch=batch,
        opening=opening,
        show=not to_stdout,
    )
    if to_stdout:
        click.echo(canonical_json(data), nl=False)
    elif json_path:
        write_figures(json_path, data)


def bench(
    path: Path,
    variants: list[str] | None = None,
    *,
    iterations: int,
    warmup: int,
    batch: int = 1,
    opening: Opening | None = None,
    show: bool = True,
) -> dict[str, Any]:
    """Measure, print the tables if asked to, and return the document of docs/bench.md.

    Raises:
        EdgePoseError: No variant runs here.
    """
    from edgepose.runtimes.latency import measure_latency, peak_rss_mb
    from edgepose.runtimes.load import model_bytes, model_files

    opening = opening or Opening()
    files = model_files(path, variants)
    estimators, failed = load_variants(path, variants, opening)
    placement = {name: estimator.engine.placement() for name, estimator in estimators.items()}
    with progress() as update:
        rows = measure_latency(
            estimators,
            iterations=iterations,
            warmup=warmup,
            batch=batch,
            threads=opening.threads,
            progress=lambda done, total: update("time the variants in turn", done, total),
        )
        memory = {}
        for done, row in enumerate(rows, start=1):
            memory[row.variant] = peak_rss_mb(files[row.variant], row.engine, row.device, opening.threads, batch)
            update("measure memory in fresh processes", done, len(rows))
    megabytes = {name: model_bytes(files[name]) / 1e6 for name in estimators}
    data = {
        "schema": 1,
        "bundle": str(path),
        "model": next(iter(estimators.values())).spec.name,
        "settings": {
            "mode": "latency",
            "iterations": iterations,
            "warmup": warmup,
            "batch": [batch],
            "threads": [opening.threads],
        },
        "machine": machine(),
        "rows": [
            asdict(row)
            | {"mb": megabytes[row.variant], "rss_mib": memory[row.variant], "placement": placement[row.variant]}
            for row in rows
        ],
        "failed": {name: str(error) for name, error in failed.items()},
    }
    if show:
        print_benchmark({"": data})
    return data
