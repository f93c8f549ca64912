"""``edgepose models``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from edgepose.assets import STARTER_MODEL
from edgepose.cli._console import out, print_table, progress
from edgepose.cli._options import PATH
from edgepose.errors import EdgePoseError
from edgepose.models.registry import MODELS, ModelRow, get_model

__all__ = ["command"]


@click.command("models")
@click.option("--download", "name", metavar="NAME", help="Fetch this model's published weights.")
@click.option("--dir", "folder", type=PATH, help="Where to put them.  [default: the user's cache folder]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(name: str | None, folder: Path | None, as_json: bool) -> None:
    """List the registered models, or download one model's published weights."""
    if name:
        path = _download(get_model(name), folder or _cache())
        click.echo(path)
    elif as_json:
        click.echo(json.dumps([_row(row) for row in MODELS.values()], indent=2))
    else:
        _print()


def _download(row: ModelRow, folder: Path) -> Path:
    from edgepose.download import download

    if row.published is None:
        raise EdgePoseError(f"{row.name}: has no published weights to download; {_own(row)}")
    with progress() as update:
        return download(
            row.published.url,
            folder,
            row.published.sha256,
            lambda done, total: update(f"download {row.name} (kB)", done // 1000, total // 1000),
        )


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "edgepose" / "checkpoints"


def _row(row: ModelRow) -> dict[str, Any]:
    published = row.published
    return {
        "name": row.name,
        "parameters": row.parameters,
        "task": row.task,
        "input_hw": row.input_hw,
        "skeleton": row.skeleton,
        "summary": row.summary,
        "ap_detected_boxes": published and published.ap_detected,
        "ap_ground_truth_boxes": published and published.ap_ground_truth,
        "gflops": published and published.gflops,
        "url": published and published.url,
    }


def _print() -> None:
    rows = []
    for row in MODELS.values():
        p = row.published
        rows.append(
            (
                row.name,
                f"{row.parameters / 1e6:.2f}",
                f"{row.input_hw[0]}x{row.input_hw[1]}" if row.input_hw else "keypoints",
                row.skeleton,
                f"{p.gflops:.1f}" if p else None,
                f"{p.ap_detected:.1f}" if p else None,
                f"{p.ap_ground_truth:.1f}" if p else None,
            )
        )
    columns = ("<model", "params M", "input", "<joints", "GFLOPs", "AP det.", "AP gt")
    caption = "AP: COCO val2017 as published, with detected and with ground-truth boxes; not measured by edgepose"
    print_table("registered models", columns, rows, caption)
    out.print("\nweights (edgepose models --download NAME)", style="bold")
    for row in MODELS.values():
        out.print(f"{row.name}: {row.summary}", soft_wrap=True)
        out.print(f"  {row.published.url if row.published else _own(row)}", soft_wrap=True)


def _own(row: ModelRow) -> str:
    """Where the weights of a model of ours are from."""
    ships = row.name == STARTER_MODEL
    return (
        "its starter weights ship with edgepose" if ships else f"train some: edgepose finetune none --model {row.name}"
    )
