"""The command line: one file per command, imported when it is called."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import click

from edgepose import __version__
from edgepose.errors import EdgePoseError, GateError

__all__ = ["main"]

_COMMANDS = {
    "convert": "Turn a checkpoint into a bundle of FP32 and INT8 models.",
    "run": "Estimate poses on a video, images or a camera.",
    "bench": "Measure the latency of every variant on this machine.",
    "validate": "Measure the accuracy of every variant, and the drop from FP32.",
    "prune": "Make a checkpoint smaller and faster, and recover its accuracy without labels.",
    "finetune": "Train a checkpoint further, or new weights, on labelled data.",
    "sensitivity": "Rank the parts of a model by what INT8 costs them.",
    "reproduce": "Make a bundle again by its manifest, and compare byte by byte.",
    "inspect": "Show what a bundle or model file is and where it comes from.",
    "doctor": "Show what this machine is and has, and which variant of a bundle to use here.",
    "targets": "List the machines that convert --target knows, and how to run a bundle there.",
    "models": "List the registered models, or download their weights.",
    "demo": "Convert the starter model and run it on the sample clip.",
}
"""Command -> help; ``NAME`` lives in ``edgepose.cli.NAME`` as ``command``."""

_INTERRUPTED = 130


class _Commands(click.Group):
    """Knows every command's help without importing it, so that ``--help`` is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"edgepose.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgepose")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def _cli(debug: bool) -> None:
    """Put a human pose estimation checkpoint on an edge device, with evidence."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 1 a gate failed, 2 bad input, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    interrupts = _Interrupts()
    try:
        code = _cli.main(arguments, prog_name="edgepose", standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:
        if interrupts.seen:
            _fail("interrupted", _INTERRUPTED)
        if "--debug" in arguments:
            raise
        _report(error)
    sys.exit(code if isinstance(code, int) else 0)


class _Interrupts:
    """Stops on SIGTERM as on Ctrl-C, and remembers it: libraries turn the exception into others on its way up."""

    def __init__(self) -> None:
        self.seen = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.seen = True
        for again in (signal.SIGINT, signal.SIGTERM):
            signal.signal(again, signal.SIG_IGN)  # let the clean-up finish
        raise KeyboardInterrupt


def _report(error: BaseException) -> NoReturn:
    """One line for what a user can act on; anything else is a fault of ours and keeps its traceback."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.ctx.get_help() if error.ctx else "")
        sys.exit(2)
    if isinstance(error, click.UsageError) and error.ctx:
        _fail(f"{error.format_message()} (see {error.ctx.command_path} --help)", 2)
    if isinstance(error, click.ClickException):
        _fail(error.format_message(), 2)
    if isinstance(error, EdgePoseError):
        _fail(str(error), 1 if isinstance(error, GateError) else 2)
    if isinstance(error, OSError):
        _fail(f"{error.filename or 'input or output'}: {error.strerror or error}", 2)
    raise error


def _fail(message: str, code: int) -> NoReturn:
    click.echo("error: " + " ".join(message.split()), err=True)
    sys.exit(code)
