"""Commands on other machines: ``--host``, what travels there and back, all boards at the same time (docs/remote.md)."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from edgepose.cli._console import out, print_table, remark, statuses
from edgepose.errors import EdgePoseError, RemoteError

if TYPE_CHECKING:
    from edgepose.remote import Board, Job
    from edgepose.shipment import Shipment
    from edgepose.ssh import Host

__all__ = ["Back", "Hosts", "Outcome", "Sent", "Word", "host_options", "perform", "words_of"]

_F = TypeVar("_F", bound=Callable[..., Any])
_OWN = ("host", "remote_venv", "ssh_config")


@dataclass(frozen=True)
class Hosts:
    """Where a command shall run; false for here.

    Attributes:
        names: As given, each once.
        venv: Virtual environment on the boards that holds edgepose; None looks for it.
        config: An ssh configuration in place of the user's.
    """

    names: tuple[str, ...] = ()
    venv: str | None = None
    config: Path | None = None

    def __bool__(self) -> bool:
        return bool(self.names)

    def own(self, path: Path, name: str) -> Path:
        """Where the file of one host goes: the path itself, or with the host's name in it where there are several."""
        if len(self.names) == 1:
            return path
        plain = "".join(letter if letter.isalnum() or letter in "-_.@" else "-" for letter in name)
        return path.with_name(f"{path.stem}.{plain}{path.suffix}")


@dataclass(frozen=True)
class Sent:
    """A word of a command that is a bundle or file here, and shall be on the board.

    Attributes:
        path: The bundle or file.
        variants: Of a bundle only these.
        flag: What stands before its path there: ``--lift=``.
    """

    path: Path
    variants: tuple[str, ...] | None = None
    flag: str = ""


@dataclass(frozen=True)
class Back:
    """A word of a command that is a file, or a folder with these files, which the command writes: it comes back.

    Attributes:
        path: Where it comes to here.
        files: Of a folder.
        flag: What stands before its path there: ``--json=``.
    """

    path: Path
    files: tuple[str, ...] = ()
    flag: str = ""


Word = str | Sent | Back


def host_options(command: _F) -> _F:
    """--host, --remote-venv and --ssh-config, as one argument ``hosts``."""

    @functools.wraps(command)
    def with_hosts(*, host: tuple[str, ...], remote_venv: str | None, ssh_config: Path | None, **others: Any) -> Any:
        if len(set(host)) < len(host):
            raise click.UsageError("--host names the same board twice")
        if not host and (remote_venv or ssh_config):
            raise click.UsageError("--remote-venv and --ssh-config go with --host")
        return command(hosts=Hosts(host, remote_venv, ssh_config), **others)

    wrapped: Any = with_hosts
    for option in (
        click.option(
            "--ssh-config",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            help="ssh configuration in place of ~/.ssh/config.",
        ),
        click.option(
            "--remote-venv",
            metavar="PATH",
            help="Virtual environment on the boards.  [default: edgepose on PATH, in ~/.local/bin, "
            "or in ~/.local/share/edgepose/venv]",
        ),
        click.option(
            "--host",
            multiple=True,
            metavar="USER@BOARD[:PORT]",
            help="Do it on this board, over ssh; may be given again. See docs/remote.md.",
        ),
    ):
        wrapped = option(wrapped)
    result: _F = wrapped
    return result


def words_of(
    *,
    here: Collection[str] = (),
    there: Collection[str] = (),
    sent: Mapping[str, Sequence[str] | None],
    back: Mapping[str, Back],
) -> list[Word]:
    """The command line that the running command was called with, for the same command on a board.

    Args:
        here: Parameters that stay on this machine, beside those of :func:`host_options`.
        there: Parameters that are paths on the board.
        sent: Parameters that are bundles or files here, and which of their variants are needed.
        back: Parameters that are written there and come back.

    Raises:
        UsageError: A parameter is a path, and none of these: it would be a path there.
    """
    context = click.get_current_context()
    words: list[Word] = [str(context.info_name)]
    for parameter in context.command.params:
        name = str(parameter.name)
        if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE or name in (*here, *_OWN):
            continue
        value = context.params[name]
        flag = "" if isinstance(parameter, click.Argument) else f"{parameter.opts[0]}="
        if name in back:
            words.append(replace(back[name], flag=flag))
        elif name in sent:
            variants = sent[name]
            words.append(Sent(Path(value), None if variants is None else tuple(variants), flag))
        elif isinstance(parameter.type, click.Path) and name not in there:
            raise click.UsageError(f"{parameter.opts[0]} does not go with --host")
        else:
            words += _option_words(parameter, value)
    return words


def _option_words(parameter: click.Parameter, value: Any) -> list[str]:
    """An option as it was given; values are joined to their names, so that they are no options themselves."""
    name = parameter.opts[0]
    if getattr(parameter, "is_flag", False) and isinstance(value, bool):
        return [name if value else parameter.secondary_opts[0]]
    if parameter.multiple:
        return [f"{name}={one}" for one in value]
    listed = ",".join(map(str, value)) if isinstance(value, tuple) else value
    return [f"{name}={listed}"]


@dataclass(frozen=True)
class Outcome:
    """What came of a command on several hosts.

    Attributes:
        codes: Host -> exit code, 0 or 1, of those that did it.
        stdout: Host -> what it printed.
        failed: Host -> why it did not.
    """

    codes: Mapping[str, int]
    stdout: Mapping[str, str]
    failed: Mapping[str, str]

    def show(self) -> None:
        """What each command printed, and the hosts that did not do it."""
        for name, text in self.stdout.items():
            out.print(f"\n{name}", style="bold", markup=False)
            click.echo(text.rstrip())
        self.show_failed()

    def show_failed(self) -> None:
        """The hosts that did not do it, a row each with the reason."""
        if self.failed:
            print_table("boards without a result", ("<host", "<reason"), list(self.failed.items()))


def perform(hosts: Hosts, words: Callable[[str], Sequence[Word]]) -> Outcome:
    """Run edgepose on every host at the same time; one that fails does not stop the others.

    Args:
        hosts: Where.
        words: Host -> what follows ``edgepose``.

    Raises:
        EdgePoseError: A host's name is none, what shall be sent is not there, or every host failed.
        KeyboardInterrupt: The commands were stopped there, and what they had written was brought.
    """
    from edgepose.shipment import pack
    from edgepose.ssh import Host

    places = [Host.parse(name) for name in hosts.names]
    calls = {place.text: words(place.text) for place in places}
    sent = {word: pack(word.path, word.variants) for call in calls.values() for word in call if isinstance(word, Sent)}
    stop = threading.Event()
    with statuses(hosts.names) as say, ThreadPoolExecutor(len(places)) as pool:
        futures = {
            place.text: pool.submit(
                _work, place, hosts, calls[place.text], sent, stop, functools.partial(say, place.text)
            )
            for place in places
        }
        try:
            wait(futures.values())
        except KeyboardInterrupt:
            stop.set()
            raise
    return _outcome(futures)


def _outcome(futures: Mapping[str, Future[tuple[int, str]]]) -> Outcome:
    errors = {name: future.exception() for name, future in futures.items()}
    for error in errors.values():
        if error is not None and not isinstance(error, (EdgePoseError, OSError)):
            raise error
    failed = {name: str(error).removeprefix(f"{name}: ") for name, error in errors.items() if error}
    if len(failed) == len(futures):
        raise RemoteError("; ".join(f"{name}: {reason}" for name, reason in failed.items()))
    done = {name: future.result() for name, future in futures.items() if name not in failed}
    return Outcome({n: code for n, (code, _) in done.items()}, {n: text for n, (_, text) in done.items()}, failed)


def _work(
    host: Host,
    hosts: Hosts,
    words: Sequence[Word],
    sent: Mapping[Sent, Shipment],
    stop: threading.Event,
    say: Callable[[str], None],
) -> tuple[int, str]:
    """Everything that happens with one host: exit code and what was printed."""
    from edgepose.remote import Board
    from edgepose.ssh import Link

    with Board(Link(host, config=hosts.config, stop=stop), venv=hosts.venv, say=say, remark=remark) as board:
        travels = _Travels({word: board.send(sent[word]) for word in words if isinstance(word, Sent)}, tuple(words))
        with board.running(lambda job: [travels.word(job, word) for word in words]) as job:
            try:
                code = board.wait(job)
            except KeyboardInterrupt:
                board.stop(job)
                travels.fetch(board, job)
                raise
            missing = travels.fetch(board, job)
            complaint = travels.named(job, board.printed(job, "stderr"))
            if code not in (0, 1) or missing:
                raise RemoteError(f"{host}: {_reason(code, complaint, missing)}")
            for line in _lines(complaint):
                if not line.startswith("wrote "):  # of files that we name where they are here
                    remark(f"{host}: {line}")
            say("done")
            return code, travels.named(job, board.printed(job, "stdout"))


@dataclass(frozen=True)
class _Travels:
    """Where the files of one command are on one board.

    Attributes:
        sent: What was sent -> path there.
        words: The command.
    """

    sent: Mapping[Sent, str]
    words: tuple[Word, ...]

    @property
    def backs(self) -> list[Back]:
        return [word for word in self.words if isinstance(word, Back)]

    def place(self, job: Job, word: Sent | Back) -> str:
        """Path there."""
        if isinstance(word, Sent):
            return self.sent[word]
        return job.place(f"{self.backs.index(word)}/{word.path.name}")

    def word(self, job: Job, word: Word) -> str:
        """The word as the board shall read it."""
        return word if isinstance(word, str) else word.flag + self.place(job, word)

    def named(self, job: Job, text: str) -> str:
        """Text of the board with our names for what was sent and comes back."""
        for word in self.words:
            if not isinstance(word, str):
                text = text.replace(self.place(job, word), str(word.path))
        return text

    def fetch(self, board: Board, job: Job) -> list[Path]:
        """Bring what was written, and say what was not."""
        missing = []
        for number, word in enumerate(self.backs):
            pairs = [(f"/{name}", word.path / name) for name in word.files] or [("", word.path)]
            for name, path in pairs:
                if not board.fetch(job, f"{number}/{word.path.name}{name}", path):
                    missing.append(path)
        return missing


_BAR = "\N{BOX DRAWINGS HEAVY HORIZONTAL}"
"""Of a progress bar, which is no remark."""


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and _BAR not in line]


def _reason(code: int, stderr: str, missing: Sequence[Path]) -> str:
    """Why the command failed: its own line of error where it printed one."""
    lines = _lines(stderr)
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if errors:
        return errors[-1]
    if code > 128:
        return f"edgepose was ended there by signal {code - 128}" + (": out of memory?" if code == 137 else "")
    if code == 0:
        return f"did not write {', '.join(map(str, missing))}"
    return f"edgepose failed there with exit code {code}: {lines[-1] if lines else 'it printed no reason'}"
