"""The one console: tables, progress and remarks. Tables and results go to stdout, the rest to stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from edgepose.files import canonical_json, replace_file

__all__ = ["err", "out", "print_table", "progress", "remark", "statuses", "write_figures"]

_PIPED_WIDTH = 120


def _console(stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    return console


out = _console(stderr=False)
err = _console(stderr=True)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> None:
    """Print a table; columns whose name starts with ``<`` are left-aligned text, others right-aligned numbers."""
    headed = any(name.strip("<") for name in columns)
    table = Table(box=SIMPLE_HEAD, show_header=headed, show_edge=False, pad_edge=False)
    for name in columns:
        left = name.startswith("<")
        table.add_column(escape(name.lstrip("<")), justify="left" if left else "right", no_wrap=not left)
    for row in rows:
        table.add_row(*(escape("-" if cell is None else str(cell)) for cell in row))
    out.print(f"\n[bold]{escape(title)}[/bold]", soft_wrap=True)
    out.print(table)
    if caption:
        out.print(escape(caption), style="dim")


def write_figures(path: Path, figures: dict[str, Any]) -> None:
    """Write what a command measured as JSON, and say so."""
    with replace_file(path) as partial:
        partial.write_text(canonical_json(figures), encoding="utf-8")
    remark(f"wrote {path}")


def remark(text: str) -> None:
    """One line to stderr."""
    err.print(escape(text), soft_wrap=True)


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A progress line per stage: call it with the stage, how much is done, and out of how many (0: unknown)."""
    columns = (
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=False) as bar:
        stages: list[tuple[str, TaskID]] = []

        def update(stage: str, done: int, total: int) -> None:
            head = stage.partition(":")[0]
            if not stages or stages[-1][0] != head:
                _finish(bar)
                stages.append((head, bar.add_task(escape(stage), total=total or None)))
            bar.update(stages[-1][1], description=escape(stage), completed=done, total=total or None)

        yield update
        _finish(bar)


@contextmanager
def statuses(names: Sequence[str]) -> Iterator[Callable[[str, str], None]]:
    """A line per name, for work that goes on at the same time: call it with the name and what it is doing."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=err.is_terminal) as bar:
        tasks = {name: bar.add_task(escape(name), total=None) for name in names}

        def update(name: str, text: str) -> None:
            bar.update(tasks[name], description=escape(f"{name}: {text}"))

        yield update


def _finish(bar: Progress) -> None:
    """Mark the last stage as done."""
    for task in bar.tasks[-1:]:
        done = task.completed or 1
        bar.update(task.id, total=done, completed=done)
