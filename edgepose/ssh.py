"""A link to a board over the system's OpenSSH client: one connection, shared by the commands that run there.

Only the program ``ssh`` is used, with the user's own configuration; host keys are checked as it says. A board needs
an SSH server and a POSIX shell; SFTP is not needed.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from edgepose.errors import EdgePoseError, LinkLost, RemoteError

__all__ = ["Host", "Link"]

_USER = re.compile(r"[\w.+@-]+", re.ASCII)
_NAME = re.compile(r"[\w.:%-]+", re.ASCII)
_MARK = b"edgepose-answer\n"
_LOST = 255
"""Exit code of ssh when the link, and not the command, failed."""
_TICK_S = 0.2
_GRACE_S = 5.0


@dataclass(frozen=True)
class Host:
    """Where a board is: a name, address or alias that ssh knows.

    Attributes:
        text: As the user wrote it; names the board in tables and messages.
        name: Host name, address or alias.
        user: None for ssh's choice.
        port: None for ssh's choice.
    """

    text: str
    name: str
    user: str | None = None
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Host:
        """Read ``[user@]host[:port]``, ``ssh://[user@]host[:port]``, or an IPv6 address, in brackets with a port.

        Raises:
            RemoteError: It is none of them, or holds characters that no host or user has (a shell might read them).
        """
        place = text.removeprefix("ssh://").removesuffix("/") if text.startswith("ssh://") else text
        user, at, place = place.rpartition("@")
        name, port = _split_port(place)
        wrong = place.startswith("-") or name.startswith("-") or not _NAME.fullmatch(name)
        wrong |= bool(at) and (user.startswith("-") or not _USER.fullmatch(user))
        wrong |= port is not None and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536)
        if wrong:
            raise RemoteError(f"--host {text!r}: give user@board, user@board:port or ssh://user@board:port")
        return cls(text, name, user if at else None, int(port) if port else None)

    def __str__(self) -> str:
        return self.text

    @property
    def words(self) -> list[str]:
        """The arguments that make ssh connect here."""
        user = ["-l", self.user] if self.user else []
        port = ["-p", str(self.port)] if self.port else []
        return [*user, *port, "--", self.name]

    @property
    def command(self) -> str:
        """What a person types to connect."""
        port = f"-p {self.port} " if self.port else ""
        return f"ssh {port}{self.user + '@' if self.user else ''}{self.name}"


def _split_port(place: str) -> tuple[str, str | None]:
    if place.startswith("["):
        name, _, port = place[1:].partition("]")
        return name, (port[1:] if port.startswith(":") else "?") if port else None
    if place.count(":") == 1:
        name, _, port = place.partition(":")
        return name, port
    return place, None


class Link:
    """A connection to a board, and commands over it; a context manager that closes it.

    Commands share one connection (OpenSSH's multiplexing, in a private folder), so that only the first pays for the
    handshake.
    """

    def __init__(
        self,
        host: Host,
        *,
        config: Path | None = None,
        stop: threading.Event | None = None,
        connect_s: int = 10,
    ) -> None:
        """Nothing is connected yet: see :meth:`open`.

        Args:
            host: The board.
            config: An ssh configuration to use in place of the user's.
            stop: Once set, running commands end with KeyboardInterrupt. Another event in its place lets the
                clean-up run.
            connect_s: Seconds to wait for the board.

        Raises:
            RemoteError: There is no ``ssh`` on this machine.
        """
        program = shutil.which("ssh")
        if program is None:
            raise RemoteError("no ssh on this machine: install OpenSSH's client (Debian: apt install openssh-client)")
        self.host = host
        self.stop = stop or threading.Event()
        self._connect_s = connect_s
        self._folder = _short_folder()
        self._socket = self._folder / "m"
        self._ssh = [program, *(["-F", str(config)] if config else []), *_options(connect_s)]
        self._ssh += ["-S", str(self._socket).replace("%", "%%")]
        self._master: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Link:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """Connect, or connect again.

        Raises:
            LinkLost: The board does not answer.
            RemoteError: It is not known, its key is not the known one, or it lets us not in.
        """
        self._hang_up()
        with (self._folder / "errors").open("w+b") as errors:
            self._master = subprocess.Popen(
                [*self._ssh, "-M", "-N", *self.host.words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is ours to handle: the link is needed for the clean-up
            )
            deadline = time.monotonic() + 3 * self._connect_s
            while not self._socket.exists():
                if self._master.poll() is not None:
                    errors.seek(0)
                    raise _refusal(self.host, errors.read().decode(errors="replace"))
                if time.monotonic() > deadline:
                    raise LinkLost(f"{self.host}: no answer within {3 * self._connect_s} s: is the board up?")
                self._check_stop()
                time.sleep(0.02)

    def run(
        self,
        script: str,
        *,
        stdin: bytes = b"",
        timeout_s: float | None = None,
        watch: Callable[[], None] = lambda: None,
    ) -> bytes:
        """Run a shell script on the board and return what it prints.

        Args:
            script: For a POSIX shell; what comes from outside must be quoted.
            stdin: What to feed it.
            timeout_s: After this the link counts as lost; without, when the board has not answered for 15 s.
            watch: Called several times a second meanwhile.

        Raises:
            LinkLost: The link broke.
            RemoteError: The script failed; the message ends with its last words.
            KeyboardInterrupt: The stop event was set.
        """
        # What a login script prints comes before the mark; the login shell sees one quoted word.
        whole = f"echo {_MARK.decode().strip()}; {script}"
        command = [*self._ssh, "-o", "ControlMaster=no", *self.host.words, f"exec sh -c {shlex.quote(whole)}"]
        with tempfile.TemporaryFile() as feed:
            feed.write(stdin)
            feed.seek(0)
            process = subprocess.Popen(
                command, stdin=feed, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
            )
        try:
            answer, complaint = self._communicate(process, timeout_s, watch)
        finally:
            _end(process)
        words = complaint.decode(errors="replace").strip().splitlines()
        if process.returncode == _LOST:
            raise LinkLost(f"{self.host}: the link was lost ({words[-1] if words else 'no reason given'})")
        if process.returncode:
            raise RemoteError(f"{self.host}: {words[-1] if words else f'exit code {process.returncode}'}")
        return answer.partition(_MARK)[2]

    def _communicate(
        self,
        process: subprocess.Popen[bytes],
        timeout_s: float | None,
        watch: Callable[[], None],
    ) -> tuple[bytes, bytes]:
        deadline = time.monotonic() + timeout_s if timeout_s else None
        while True:
            try:
                return process.communicate(timeout=_TICK_S)
            except subprocess.TimeoutExpired:
                self._check_stop()
                if deadline and time.monotonic() > deadline:
                    raise LinkLost(f"{self.host}: no answer within {timeout_s:.0f} s") from None
                watch()

    def pause(self, seconds: float) -> None:
        """Sleep, unless stopped.

        Raises:
            KeyboardInterrupt: The stop event was set.
        """
        self.stop.wait(seconds)
        self._check_stop()

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise KeyboardInterrupt

    def _hang_up(self) -> None:
        if self._master:
            _end(self._master)
            self._master = None
        self._socket.unlink(missing_ok=True)

    def close(self) -> None:
        """End the connection."""
        self._hang_up()
        shutil.rmtree(self._folder, ignore_errors=True)


def _options(connect_s: int) -> list[str]:
    """What every ssh of ours is told; the rest is the user's configuration, host key checking among it."""
    pairs = {
        "BatchMode": "yes",
        "ConnectTimeout": connect_s,
        "ServerAliveInterval": 5,
        "ServerAliveCountMax": 3,
        "ControlPersist": "no",
        "ClearAllForwardings": "yes",
        "PermitLocalCommand": "no",
        "RemoteCommand": "none",
        "LogLevel": "ERROR",
    }
    return ["-T", "-x", *(word for name, value in pairs.items() for word in ("-o", f"{name}={value}"))]


def _short_folder() -> Path:
    """A private folder whose path leaves room for a socket: a path may have 104 bytes, and ssh adds 18."""
    folder = Path(tempfile.mkdtemp(prefix="edgepose-"))
    if len(str(folder)) > 80:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="edgepose-", dir="/tmp"))
    return folder


def _end(process: subprocess.Popen[Any]) -> None:
    """Stop a process that may have ended, and close its pipes."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    pipes: tuple[IO[Any] | None, ...] = (process.stdout, process.stderr)
    for pipe in pipes:
        if pipe:
            pipe.close()


_NO_NAME = ("Could not resolve hostname",)
_REFUSALS = {
    ("IDENTIFICATION HAS CHANGED", "DNS SPOOFING"): "its host key is not the one that this machine knows: someone may "
    "be in between, or the board was set up again; if you know that it was: ssh-keygen -R '{key}', then {command}",
    ("REVOKED HOST KEY",): "its host key is marked as revoked on this machine: find out why",
    ("Host key verification failed",): "its host key is not known on this machine: connect once with {command}, and "
    "compare the fingerprint",
    ("Permission denied", "Too many authentication failures"): "does not let us in ({last}): a key without a question "
    "is needed: {copy_id}, and ssh-agent for a key with a passphrase",
    _NO_NAME: "no such host ({last}): check the name",
    ("onfiguration option", "Can't open user config"): "ssh does not read its configuration ({last})",
}
"""What ssh says when it will not connect, however often it is tried -> what that means; the first that fits."""


def _refusal(host: Host, text: str) -> EdgePoseError:
    """One line for what ssh said when it could not connect."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    facts = {
        "last": lines[-1].removeprefix("ssh: ") if lines else "ssh gave no reason",
        "key": f"[{host.name}]:{host.port}" if host.port else host.name,
        "command": host.command,
        "copy_id": host.command.replace("ssh", "ssh-copy-id", 1),
    }
    for said, meaning in _REFUSALS.items():
        if any(words in text for words in said):
            kind = LinkLost if said == _NO_NAME else RemoteError  # names vanish with a network, and come back
            return kind(f"{host}: {meaning.format(**facts)}")
    return LinkLost(f"{host}: cannot be reached ({facts['last']}): is the board up, and its SSH server?")
