"""``edgepose bench``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepose.cli._console import out, print_table, progress, remark, write_figures
from edgepose.cli._options import PATH, Opening, engine_options, split_list
from edgepose.cli._variants import load_variants
from edgepose.machine import machine

if TYPE_CHECKING:
    from edgepose.errors import EdgePoseError
    from edgepose.runtimes.latency import LatencyRow

__all__ = ["bench", "command"]


@click.command("bench")
@click.argument("bundle", type=PATH)
@click.option("--variants", help="Only these, separated by commas.  [default: all]")
@click.option("--iterations", type=click.IntRange(1), default=100, show_default=True, help="Timed rounds.")
@click.option("--warmup", type=click.IntRange(0), default=10, show_default=True, help="Rounds before, not counted.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="People per call.")
@click.option("--json", "json_path", type=PATH, help="Write the figures here too.")
@click.option("--force", is_flag=True, help="Replace the JSON file.")
@engine_options
def command(
    bundle: Path,
    variants: str | None,
    iterations: int,
    warmup: int,
    batch: int,
    json_path: Path | None,
    force: bool,
    opening: Opening,
) -> None:
    """Measure every variant of BUNDLE (or one model file) here, interleaved round by round.

    Variants that cannot run stay in the table with the reason.
    """
    from edgepose.sinks import check_output

    if json_path:
        check_output(json_path, force=force)
    data = bench(
        bundle,
        split_list(variants) if variants else None,
        iterations=iterations,
        warmup=warmup,
        batch=batch,
        opening=opening,
    )
    if json_path:
        write_figures(json_path, data)


def bench(
    path: Path,
    variants: list[str] | None = None,
    *,
    iterations: int,
    warmup: int,
    batch: int = 1,
    opening: Opening | None = None,
) -> dict[str, Any]:
    """Measure, print the table, and return everything for JSON.

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
    here = machine()
    _print(path, rows, failed, megabytes, memory)
    how = f"{iterations} interleaved rounds, batch {batch}, {opening.threads or 'automatic'} threads"
    versions = ", ".join(f"{name} {number}" for name, number in here["versions"].items())
    out.print(f"{how}; {here['cpu']}, {here['cores']} cores; {versions}", style="dim")
    return {
        "machine": here,
        "rows": [
            asdict(row)
            | {"mb": megabytes[row.variant], "rss_mib": memory[row.variant], "placement": placement[row.variant]}
            for row in rows
        ],
        "failed": {name: str(error) for name, error in failed.items()},
    }


def _print(
    path: Path,
    rows: list[LatencyRow],
    failed: dict[str, EdgePoseError],
    megabytes: dict[str, float],
    memory: dict[str, float],
) -> None:
    latency: list[list[object]] = [
        [
            row.variant,
            f"{row.engine} {row.device}",
            f"{row.infer_ms:.2f}",
            f"{row.p95_ms:.2f}",
            f"{row.p99_ms:.2f}",
            f"{row.speedup:.2f}" if row.speedup else None,
            f"{megabytes[row.variant]:.2f}",
            f"{memory[row.variant]:.0f}",
        ]
        for row in rows
    ]
    latency += [[name, "did not run", *[None] * 6] for name in failed]
    columns = ("<variant", "<engine", "p50 ms", "p95 ms", "p99 ms", "x FP32", "MB", "RSS MiB")
    print_table(f"inference of {path}", columns, latency, "x FP32: speed-up of the median over the first FP32 row")
    for name, error in failed.items():
        remark(f"{name} did not run: {error}")
    stages = [
        (row.variant, *(f"{ms:.2f}" for ms in (row.pre_ms, row.infer_ms, row.decode_ms, row.cpu_ms)), f"{row.fps:.1f}")
        for row in rows
    ]
    print_table(
        "median ms of each stage", ("<variant", "crop", "inference", "decode", "CPU of inference", "FPS"), stages
    )
