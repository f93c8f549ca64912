"""Options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from edgepose.opening import Opening

__all__ = [
    "PATH",
    "counts",
    "engine_options",
    "keypoints_from_option",
    "normalisation_option",
    "split_list",
    "sweep_options",
]

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


threads_option = click.option(
    "--threads", type=click.IntRange(1, 256), help="Threads of one inference.  [default: the engine's choice]"
)


def counts(most: int) -> Callable[[str], tuple[int, ...]]:
    """A type of options: ``1,2,4`` -> (1, 2, 4), whole numbers from 1 without repeats."""

    def numbers(text: str) -> tuple[int, ...]:
        words = [word.strip() for word in text.split(",")]
        if not all(word.isascii() and word.isdigit() and 1 <= int(word) <= most for word in words):
            raise click.BadParameter(f"{text!r}: give whole numbers from 1 to {most}, separated by commas")
        return tuple(dict.fromkeys(map(int, words)))

    return numbers


thread_counts_option = click.option(
    "--threads",
    "thread_counts",
    type=counts(256),
    metavar="N[,N...]",
    help="Threads of one inference; several are measured in turn: 1,2,4.  [default: the engine's choice]",
)


def engine_options(command: _F) -> _F:
    """--engine, --device, --threads, --engine-option, --no-self-test and --strict, as one argument ``opening``."""
    return _with_opening(command, threads_option)


def sweep_options(command: _F) -> _F:
    """The same, but several numbers of threads, as an argument ``thread_counts`` of their own."""
    return _with_opening(command, thread_counts_option)


def _with_opening(command: _F, threads_option: Callable[[_F], _F]) -> _F:
    @functools.wraps(command)
    def with_opening(
        *,
        engine: str | None,
        device: str,
        threads: int | None = None,
        engine_option: tuple[str, ...],
        no_self_test: bool,
        strict: bool,
        **others: Any,
    ) -> Any:
        opening = Opening(engine, device, threads, _pairs(engine_option), not no_self_test, strict)
        return command(opening=opening, **others)

    wrapped: Any = with_opening
    for option in (
        click.option("--strict", is_flag=True, help="Refuse an engine that runs single nodes on another device."),
        click.option("--no-self-test", is_flag=True, help="Do not replay the golden inputs on load."),
        click.option(
            "--engine-option",
            multiple=True,
            metavar="NAME=VALUE",
            help="An option of the engine, for instance mode=throughput; may be given again.",
        ),
        threads_option,
        click.option(
            "--device",
            default="auto",
            show_default=True,
            help="auto, cpu, cuda, tensorrt, gpu, npu, edgetpu or delegate:PATH: what the engine knows.",
        ),
        click.option("--engine", help="Engine to run on.  [default: the first that runs the file]"),
    ):
        wrapped = option(wrapped)
    result: _F = wrapped
    return result


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    """``("a=b",)`` -> {a: b}."""
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value) or name in pairs:
            raise click.BadParameter(f"{text!r}: give NAME=VALUE, each name once", param_hint="--engine-option")
        pairs[name] = value
    return pairs


def split_list(text: str) -> list[str]:
    """``a,b`` -> [a, b], without repeats."""
    parts = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not parts:
        raise click.UsageError(f"{text!r}: give names separated by commas")
    return parts
