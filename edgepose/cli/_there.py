"""``bench``, ``run`` and ``validate`` with ``--host``: what each sends, brings back and shows (docs/remote.md)."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from edgepose.cli._bench_tables import print_benchmark
from edgepose.cli._console import print_table, remark, write_figures
from edgepose.cli._hosts import Back, Hosts, Outcome, perform, words_of
from edgepose.cli._outputs import Outputs
from edgepose.errors import RemoteError
from edgepose.files import canonical_json

__all__ = ["bench_there", "run_there", "validate_there"]


def bench_there(bundle: Path, variants: Sequence[str] | None, hosts: Hosts, json_path: Path | None) -> None:
    """Benchmark a bundle on every host, and print one table.

    Args:
        bundle: A bundle or model file.
        variants: Only these; by default all.
        hosts: Where.
        json_path: Where the figures of all hosts go; ``-`` is standard output, in place of the table.

    Raises:
        EdgePoseError: No host has figures.
    """
    with _figures_of(hosts) as (place, read):
        outcome = perform(
            hosts,
            lambda name: [
                *words_of(here=("json_path", "force"), sent={"bundle": variants}, back={}),
                Back(place(name), flag="--json="),
            ],
        )
        figures = {name: {**document, "bundle": str(bundle)} for name, document in read(outcome).items()}
    if json_path == Path("-"):
        click.echo(canonical_json(_together(figures, outcome)), nl=False)
        return
    print_benchmark(figures)
    outcome.show_failed()
    if json_path:
        write_figures(json_path, _together(figures, outcome))


def run_there(hosts: Hosts, outputs: Outputs, source: str, variants: Mapping[str, str | None], *, force: bool) -> int:
    """Run on every host; the source is on the board, or a file here that is sent, and the outputs come back.

    Args:
        hosts: Where.
        outputs: What was asked for, checked already.
        source: As given.
        variants: Parameters that are bundles -> the variant that was asked for.
        force: Whether outputs may be replaced.

    Raises:
        EdgePoseError: No host did it.
    """
    from edgepose.sinks import check_output

    if source == "-":
        raise click.UsageError("--source - does not go with --host: standard input is not sent to the board")
    if outputs.window:
        raise click.UsageError("--window does not go with --host: a board may have no screen; see --serve and --out")
    files = {
        "video": outputs.video,
        "json_lines": outputs.json_lines,
        "coco": outputs.coco,
        "metrics": outputs.metrics_file,
    }
    for path in filter(None, files.values()):
        for name in hosts.names:
            check_output(hosts.own(path, name), force=force)
    sent: dict[str, Sequence[str] | None] = {"boxes": None, "detector": None}
    sent |= {parameter: [variant] if variant else None for parameter, variant in variants.items()}
    if Path(source).is_file():
        sent["source"] = None
    outcome = perform(
        hosts,
        lambda name: words_of(
            here=("force",),
            sent=sent,
            back={parameter: Back(hosts.own(path, name)) for parameter, path in files.items() if path},
        ),
    )
    outcome.show()
    return max(outcome.codes.values())


def validate_there(
    bundle: Path,
    hosts: Hosts,
    variants: Mapping[str, Sequence[str] | None],
    data: Mapping[str, Path | None],
    *,
    json_path: Path | None,
    report: Path | None,
    gate: bool,
) -> int:
    """Validate on every host, on data that are there, or a file here that is sent.

    Args:
        bundle: A bundle or model file.
        hosts: Where.
        variants: Parameters that are bundles -> the variants that are needed.
        data: Parameters that are data: files here are sent, others are paths there.
        json_path: Where the figures of all hosts go.
        report: Where the reports go; of several hosts each into a folder of its own.
        gate: Whether a drop is limited.

    Returns:
        Exit code: 1 when a host's drop is over the limit, 2 when there is a limit and a host could not be measured.

    Raises:
        EdgePoseError: No host has figures.
    """
    from edgepose.calibration.report.write import FILES, check_report

    folders = {
        name: report if report is None or len(hosts.names) == 1 else hosts.own(report, name) for name in hosts.names
    }
    for folder in folders.values():
        if folder:
            check_report(folder, force=True)
    files = {parameter for parameter, path in data.items() if path and path.is_file()}
    with _figures_of(hosts) as (place, read):
        outcome = perform(
            hosts,
            lambda name: [
                *words_of(
                    here=("json_path", "force"),
                    there=data.keys() - files,
                    sent={**variants, **dict.fromkeys(files)},
                    back={} if report is None else {"report": Back(folders[name] or report, FILES)},
                ),
                Back(place(name), flag="--json="),
            ],
        )
        figures = read(outcome)
    outcome.show()
    _print_drops(bundle, figures)
    for name in outcome.codes if report else ():
        remark(f"wrote {folders[name]}")
    if json_path:
        write_figures(json_path, _together(figures, outcome))
    return max(outcome.codes.values()) or (2 if gate and outcome.failed else 0)


def _together(figures: Mapping[str, Any], outcome: Outcome) -> dict[str, Any]:
    """The figures of all hosts as one document."""
    return {"schema": 1, "hosts": dict(figures), "failed": dict(outcome.failed)}


@contextmanager
def _figures_of(
    hosts: Hosts,
) -> Iterator[tuple[Callable[[str], Path], Callable[[Outcome], dict[str, dict[str, Any]]]]]:
    """Where each host's JSON document comes to, and how those that came are read; gone when the block ends."""
    with tempfile.TemporaryDirectory(prefix="edgepose-") as folder:

        def place(name: str) -> Path:
            return Path(folder) / str(hosts.names.index(name)) / "figures.json"

        def read(outcome: Outcome) -> dict[str, dict[str, Any]]:
            return {name: _document(name, place(name)) for name in outcome.codes}

        yield place, read


def _document(name: str, path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (RecursionError, ValueError) as error:
        raise RemoteError(f"{name}: its figures are damaged ({error}): run it again") from None
    if not isinstance(data, dict):
        raise RemoteError(f"{name}: its figures are damaged (not an object): run it again")
    return data


def _print_drops(bundle: Path, figures: Mapping[str, Mapping[str, Any]]) -> None:
    """The drops of all hosts side by side."""
    rows = [
        (name, variant, "-" if drop is None else f"{drop:+.2f}")
        for name, evidence in figures.items()
        for variant, drop in evidence["drops"].items()
    ]
    baselines = ", ".join(sorted({str(evidence["validation"]["baseline"]) for evidence in figures.values()}))
    if len(figures) > 1:
        print_table(f"drops of {bundle}", ("<host", "<variant", "drop"), rows, f"from {baselines} on the same host")
