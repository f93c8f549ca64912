"""``bench``, ``run`` and ``validate`` with ``--host``: what each sends, brings back and shows (docs/remote.md)."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from edgepose.cli._bench_tables import print_benchmark
from edgepose.cli._console import print_table, remark, write_figures
from edgepose.cli._hosts import Back, Hosts, Outcome, perform, words_of
from edgepose.cli._outputs import Outputs
from edgepose.errors import EdgePoseError, RemoteError

_Figures = tuple[dict[str, dict[str, Any]], Outcome]

__all__ = ["bench_there", "run_there", "validate_there"]


_OF_BENCH = ("earlier", "max_slowdown", "json_path", "markdown_path", "csv_path", "html_path", "force")
"""Parameters of ``bench`` that are for this machine: what happens with the figures."""


def bench_there(
    bundle: Path, variants: Sequence[str] | None, hosts: Hosts, source: str | None, *, show: bool
) -> dict[str, Any]:
    """Benchmark a bundle on every host, and print one table.

    Args:
        bundle: A bundle or model file.
        variants: Only these; by default all.
        hosts: Where.
        source: Of the whole pipeline: a file here is sent, anything else is on the board.
        show: Whether to print.

    Returns:
        Of one host its document (docs/bench.md), of several ``hosts``, by name, and ``failed``, the reasons.

    Raises:
        EdgePoseError: No host has figures.
    """
    from edgepose.runtimes.compare import read_benchmark

    sent = {"bundle": variants, **_if_here(source=source)}
    with _figures_of(hosts) as (place, read):
        outcome = perform(
            hosts, lambda name: [*words_of(here=_OF_BENCH, sent=sent, back={}), Back(place(name), flag="--json=")]
        )
        figures, outcome = read(outcome, read_benchmark)
    for document in figures.values():
        document["bundle"] = str(bundle)
        for row in document.get("end_to_end") or ():
            row["source"] = source
    if show:
        print_benchmark(figures)
        outcome.show_failed()
    return _together(hosts, figures, outcome)


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
    sent |= _if_here(source=source)
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
    files = _if_here(**data)
    with _figures_of(hosts) as (place, read):
        outcome = perform(
            hosts,
            lambda name: [
                *words_of(
                    here=("json_path", "force"),
                    there=data.keys() - files.keys(),
                    sent={**variants, **files},
                    back={} if report is None else {"report": Back(folders[name] or report, FILES)},
                ),
                Back(place(name), flag="--json="),
            ],
        )
        figures, outcome = read(outcome, _read_evidence)
    outcome.show()
    _print_drops(bundle, figures)
    for name in outcome.codes if report else ():
        remark(f"wrote {folders[name]}")
    if json_path:
        write_figures(json_path, _together(hosts, figures, outcome))
    return max(outcome.codes.values()) or (2 if gate and outcome.failed else 0)


def _together(hosts: Hosts, figures: dict[str, dict[str, Any]], outcome: Outcome) -> dict[str, Any]:
    """The figures of all hosts as one document; of one host they are what they would be here."""
    if len(hosts.names) == 1:
        return figures[hosts.names[0]]
    return {"schema": 1, "hosts": figures, "failed": dict(outcome.failed)}


def _if_here(**sources: str | Path | None) -> dict[str, None]:
    """Those that are files here, for words_of: they are sent."""
    return {name: None for name, source in sources.items() if source is not None and Path(source).is_file()}


_Reader = Callable[[Path], dict[str, Any]]


@contextmanager
def _figures_of(hosts: Hosts) -> Iterator[tuple[Callable[[str], Path], Callable[[Outcome, _Reader], _Figures]]]:
    """Where each host's JSON document comes to, and how those that came are read; gone when the block ends."""
    with tempfile.TemporaryDirectory(prefix="edgepose-") as folder:

        def place(name: str) -> Path:
            return Path(folder) / str(hosts.names.index(name)) / "figures.json"

        def read(outcome: Outcome, reader: _Reader) -> _Figures:
            figures, failed = {}, dict(outcome.failed)
            for name in outcome.codes:
                try:
                    figures[name] = reader(place(name))
                except EdgePoseError as error:
                    failed[name] = f"its figures are damaged: {str(error).removeprefix(f'{place(name)}: ')}"
            if not figures:
                raise RemoteError("; ".join(f"{name}: {reason}" for name, reason in failed.items()))
            return figures, replace(outcome, failed=failed)

        yield place, read


def _read_evidence(path: Path) -> dict[str, Any]:
    """What ``validate --json`` wrote, as far as it is used here.

    Raises:
        RemoteError: It is something else.
    """
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        [float(drop) for drop in data["drops"].values() if drop is not None]
        str(data["validation"]["baseline"])
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise RemoteError(f"no evidence of edgepose ({error})") from None
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
