"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = ["PATH", "engine_options", "keypoints_from_option", "normalisation_option", "split_list"]

_F = TypeVar("_F", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)


keypoints_from_option = click.option(
    "--keypoints-from",
    type=PATH,
    help="For lifting models: the 2D bundle that finds the joints on the pictures of --calib.",
)
normalisation_option = click.option(
    "--normalisation",
    type=click.Choice(["screen", "bbox"]),
    help="For lifting models: how their keypoints are normalised.  [default: the model's]",
)


def engine_options(command: _F) -> _F:
    """--engine, --device, --threads and --no-self-test."""
    for option in (
        click.option("--no-self-test", is_flag=True, help="Do not replay the golden inputs on load."),
        click.option(
            "--threads", type=click.IntRange(1, 256), help="Threads of one inference.  [default: the engine's choice]"
        ),
        click.option(
            "--device",
            default="auto",
            show_default=True,
            help="auto, cpu, cuda, gpu, npu, edgetpu or delegate:PATH: what the engine knows.",
        ),
        click.option("--engine", help="Engine to run on.  [default: the first that runs the file]"),
    ):
        command = option(command)
    return command


def split_list(text: str) -> list[str]:
    """``a,b`` -> [a, b], without repeats."""
    parts = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not parts:
        raise click.UsageError(f"{text!r}: give names separated by commas")
    return parts
