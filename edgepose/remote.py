"""Work on a board: files go there by content hash, a command runs apart from the link, its files come back.

    ~/.cache/edgepose/bundles/<SHA-256>/   what was sent; whole files have their name, others end in .part
    ~/.cache/edgepose/jobs/<id>/           one command: pid, code, stdout, stderr, out/

A link that breaks is made again, and the work goes on where it stood: a file at its last block, a command because it
never noticed. Nothing is installed there.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from edgepose import __version__, board_scripts
from edgepose.errors import LinkLost, RemoteError
from edgepose.files import replace_file
from edgepose.shipment import SentFile, Shipment
from edgepose.ssh import Host, Link

__all__ = ["Board", "Job"]

_T = TypeVar("_T")
_Say = Callable[[str], None]

_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Before each new try to reach a board whose link was lost."""
_PIECE_BLOCKS = 64
_STOP_S = 15
_FULL = ("No space left", "quota exceeded", "File too large")


@dataclass(frozen=True)
class Job:
    """A command that was started on a board.

    Attributes:
        folder: On the board.
    """

    folder: str

    def place(self, name: str) -> str:
        """Path on the board for a file that the command shall write."""
        return f"{self.folder}/out/{name}"


def _ignore(text: str) -> None:
    """Say nothing."""


class Board:
    """A board that a link leads to, with an edgepose of our version on it.

    A context manager: connects, looks what is there, and closes the link.
    """

    def __init__(self, link: Link, *, venv: str | None = None, say: _Say = _ignore, remark: _Say = _ignore) -> None:
        """Nothing is done yet.

        Args:
            link: To the board.
            venv: Virtual environment there that holds edgepose; by default it is looked for.
            say: Called with what is being done, in a few words.
            remark: Called with what a user should know, in a sentence.
        """
        self.link = link
        self._venv = venv
        self._say = say
        self._remark = remark
        self._cache = ""
        self._program = ""

    def __enter__(self) -> Board:
        try:
            self._say("connect")
            self.link.open()
            self._look()
        except BaseException:
            self.link.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.link.close()

    @property
    def host(self) -> Host:
        """Where it is."""
        return self.link.host

    def _look(self) -> None:
        """What is on the board: edgepose, its version, the programs that we need.

        Raises:
            RemoteError: Something is missing, or edgepose is another version.
        """
        lines = [line.partition("=") for line in self._text(board_scripts.look(self._venv)).splitlines()]
        missing = [value for key, _, value in lines if key == "missing"]
        found = {key: value for key, _, value in lines}
        self._cache, self._program = found.get("cache", ""), found.get("edgepose", "")
        if not self._cache.startswith("/"):
            raise RemoteError(f"{self.host}: its shell is no POSIX shell, or HOME is not set there")
        if missing:
            programs = ", ".join(missing)
            raise RemoteError(f"{self.host}: no {programs} there: install coreutils and util-linux, or BusyBox")
        if not self._program:
            raise RemoteError(f"{self.host}: {self._absent(found.get('python', ''))}")
        self._check_version(found.get("version", ""))

    def _absent(self, python: str) -> str:
        """What to say where there is no edgepose."""
        number = tuple(int(part) for part in python.split() if part.isdigit())
        if number and number < (3, 10):
            return (
                f"no edgepose there, and its Python is {number[0]}.{number[1]}: edgepose needs 3.10 or newer "
                "(docs/boards.md)"
            )
        place = self._venv or "~/.local/share/edgepose/venv"
        where = f"in {self._venv}" if self._venv else "on its PATH, in ~/.local/bin or in ~/.local/share/edgepose/venv"
        return (
            f"no edgepose {where}; on the board: python3 -m venv {place} && "
            f"{place}/bin/pip install edgepose=={__version__} (docs/boards.md names the extras)"
        )

    def _check_version(self, text: str) -> None:
        there = re.search(r"version ((\d+)\.(\d+)\S*)", text)
        if there is None:
            raise RemoteError(f"{self.host}: {self._program} does not start there: {text or 'it prints nothing'}")
        if [there[2], there[3]] != __version__.split(".")[:2]:
            raise RemoteError(
                f"{self.host}: edgepose {there[1]} there, {__version__} here, and their options and results differ: "
                f"install the same; there: pip install edgepose=={__version__}"
            )
        if there[1] != __version__:
            self._remark(f"{self.host}: edgepose {there[1]} there, {__version__} here")

    def send(self, shipment: Shipment) -> str:
        """Bring files to the board, those that are not there yet, and return the path there.

        Raises:
            RemoteError: The disk is full, or files arrive damaged.
            LinkLost: The link broke and could not be made again.
        """
        folder = f"{self._cache}/bundles/{shipment.key}"
        self._say("look what is there")
        states, free = self._states(folder, shipment)
        missing = {file: int(state) for file, state in zip(shipment.files, states, strict=True) if state != "whole"}
        left = sum(max(file.size - there, 0) for file, there in missing.items())
        if free is not None and left > free:
            raise RemoteError(
                f"{self.host}: {left / 1e6:,.1f} MB to send and {free / 1e6:,.1f} MB free: make room there, "
                f"in {self._cache} or elsewhere"
            )
        for file, there in missing.items():
            self._send_file(folder, file, there)
        return f"{folder}/{shipment.target}" if shipment.target else folder

    def _states(self, folder: str, shipment: Shipment) -> tuple[list[str], int | None]:
        """Of each file ``whole`` or how many bytes are there; and the bytes free, where df says so."""
        script = board_scripts.states(folder, [(file.path.name, file.sha256) for file in shipment.files])
        lines = self._again(lambda: self._text(script)).splitlines()
        fields = lines[-1].split()
        free = int(fields[-3]) * 1024 if len(fields) >= 6 and fields[-3].isdigit() else None
        return lines[: len(shipment.files)], free

    def _send_file(self, folder: str, file: SentFile, there: int) -> None:
        """Send one file, from the last whole block that is there; once more if it arrives damaged."""
        check = board_scripts.received(folder, file.path.name, file.sha256)
        for start in (min(there, file.size), 0):
            self._send_blocks(folder, file, start // board_scripts.BLOCK)
            if self._again(lambda: self._text(check)).strip() == "whole":
                return
        raise RemoteError(
            f"{self.host}: {file.path.name} arrives damaged: is the disk there sound, or does the file change here?"
        )

    def _send_blocks(self, folder: str, file: SentFile, block: int) -> None:
        size = _PIECE_BLOCKS * board_scripts.BLOCK
        with file.path.open("rb") as source:
            source.seek(block * board_scripts.BLOCK)
            while True:
                at = source.tell()
                self._say(f"send {file.path.name}: {at / 1e6:,.1f} of {file.size / 1e6:,.1f} MB")
                script = board_scripts.write(folder, file.path.name, at // board_scripts.BLOCK)
                piece = source.read(size)
                # The same bytes go to the same place: neither a new try nor a dead link's dd does harm.
                self._again(lambda script=script, piece=piece: self._text(script, piece))  # type: ignore[misc]
                if len(piece) < size:
                    return

    @contextmanager
    def running(self, arguments: Callable[[Job], Sequence[str]]) -> Iterator[Job]:
        """Start edgepose there, apart from the link; when the block ends, it does not run and its folder is gone.

        Where the link is gone for good, both stay, and the error says where.

        Args:
            arguments: The words after ``edgepose``, given the job that they will be; relative paths count from the
                home folder there.
        """
        job = Job(f"{self._cache}/jobs/{secrets.token_hex(8)}")
        script = board_scripts.start(f"{self._cache}/jobs", job.folder, [self._program, *arguments(job)])
        try:
            self._again(lambda: self._text(script))
            yield job
        except LinkLost as error:
            raise LinkLost(f"{error}; what was begun goes on there, in {job.folder}") from None
        except BaseException:
            self.stop(job)
            self._clean(board_scripts.remove(job.folder))
            raise
        self._clean(board_scripts.remove(job.folder))

    def stop(self, job: Job) -> None:
        """End the command as Ctrl-C does, and by force if that does not help; nothing if it has ended.

        From here on the link's stop event is another one: what follows is the clean-up.
        """
        self._clean(board_scripts.stop(job.folder, _STOP_S))

    def _clean(self, script: str) -> None:
        """Run a script, also after the stop; where the link is gone for longer, a remark says so."""
        self.link.stop = threading.Event()
        try:
            try:
                self.link.run(script, timeout_s=2 * _STOP_S)
            except LinkLost:
                self.link.open()
                self.link.run(script, timeout_s=2 * _STOP_S)
        except RemoteError as error:
            self._remark(f"{error}; what runs there could not be stopped or cleaned up")

    def wait(self, job: Job) -> int:
        """Wait until the command ends, and return its exit code; a link that breaks meanwhile is made again.

        Raises:
            RemoteError: It vanished: the board was started again, or it was killed.
        """
        begun = time.monotonic()

        def watch() -> None:
            self._say(f"runs there, {time.monotonic() - begun:.0f} s")

        code = self._again(lambda: self.link.run(board_scripts.wait(job.folder), watch=watch)).strip()
        if not code.isdigit():
            raise RemoteError(f"{self.host}: the command vanished there: was the board started again?")
        return int(code)

    def printed(self, job: Job, name: str) -> str:
        """What the command printed to ``stdout`` or ``stderr``; bytes that are no UTF-8 become question marks."""
        path, found = f"{job.folder}/{name}", b""
        while piece := self._piece(path, len(found)):
            found += piece
        return found.decode(errors="replace")

    def _piece(self, path: str, at: int) -> bytes:
        script = board_scripts.read(path, at // board_scripts.BLOCK, _PIECE_BLOCKS)
        return self._again(lambda: self.link.run(script))[at % board_scripts.BLOCK :]

    def fetch(self, job: Job, name: str, path: Path) -> bool:
        """Bring a file that the command wrote; False where it did not.

        Raises:
            RemoteError: It arrives damaged.
        """
        facts = self._again(lambda: self._text(board_scripts.fetch_facts(job.place(name)))).split()
        if not facts:
            return False
        size, sha256, digest = int(facts[0]), facts[1], hashlib.sha256()
        with replace_file(path) as partial, partial.open("wb") as file:
            while (at := file.tell()) < size:
                self._say(f"bring {path.name}: {at / 1e6:,.1f} of {size / 1e6:,.1f} MB")
                piece = self._piece(job.place(name), at)
                if not piece:
                    break
                digest.update(piece)
                file.write(piece)
            if digest.hexdigest() != sha256:
                raise RemoteError(f"{self.host}: {path.name} arrives damaged: is it still being written there?")
        return True

    def _text(self, script: str, stdin: bytes = b"") -> str:
        """What a script prints; of a full disk the error says what to do."""
        try:
            return os.fsdecode(self.link.run(script, stdin=stdin))
        except RemoteError as error:
            if any(words in str(error) for words in _FULL):
                raise RemoteError(f"{error}: the disk there is full: make room in {self._cache} or elsewhere") from None
            raise

    def _again(self, work: Callable[[], _T]) -> _T:
        """Do it; when the link is lost, connect and do it again.

        Raises:
            LinkLost: The board did not come back.
        """
        for pause in _PAUSES_S:
            try:
                return work()
            except LinkLost as error:
                self._say(f"{str(error).removeprefix(f'{self.host}: ')}; connects again")
                self._reconnect(pause)
        return work()

    def _reconnect(self, pause: float) -> None:
        self.link.pause(pause)
        try:
            self.link.open()
        except LinkLost:
            return  # the next use says so, and waits longer
