"""``edgepose targets``."""

from __future__ import annotations

import json

import click
from rich.markup import escape

from edgepose.cli._console import out, print_table
from edgepose.targets import TARGETS

__all__ = ["command"]


@click.command("targets")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List the machines that edgepose convert --target knows, and how to run a bundle there."""
    if as_json:
        click.echo(json.dumps([row.to_dict() for row in TARGETS.values()], indent=2))
        return
    rows = [
        (row.name, f"{row.engine} {row.device}", ", ".join(row.variants), ", ".join(row.recipes))
        for row in TARGETS.values()
    ]
    caption = "the first variant is the one to run there; edgepose bench on the machine itself decides"
    print_table("targets", ("<target", "<engine", "<variants", "<recipes"), rows, caption)
    for row in TARGETS.values():
        out.print(f"\n[bold]{row.name}[/bold]: {escape(row.summary)}", soft_wrap=True)
        for line in (row.install, row.command("BUNDLE"), row.note):
            if line:
                out.print(f"  {escape(line)}", soft_wrap=True)
