"""A machine to look at: its files under one root folder and its tools by name, so that tests can give another."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Host", "RunTool", "run_tool"]

_TOOL_S = 5.0
_SYSTEM_TOOLS = "/usr/sbin:/sbin:/opt/vc/bin"
"""Where nvpmodel and vcgencmd may be, which are not on every user's path."""

RunTool = Callable[[Sequence[str]], str | None]
"""Given a command, what it printed; None where there is no such tool. Raises OSError where it fails."""


def run_tool(command: Sequence[str]) -> str | None:
    """Run a tool of this machine for 5 s at most.

    Raises:
        OSError: It fails, or takes longer.
    """
    tool = shutil.which(command[0]) or shutil.which(command[0], path=_SYSTEM_TOOLS)
    if tool is None:
        return None
    try:
        done = subprocess.run(
            [tool, *command[1:]],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            check=False,
            timeout=_TOOL_S,
        )
    except subprocess.TimeoutExpired:
        raise OSError(f"{command[0]} has not answered within {_TOOL_S:g} s") from None
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise OSError(f"{command[0]} fails: {lines[0].strip()[:200] if lines else f'exit code {done.returncode}'}")
    return done.stdout


def _machine() -> str:
    """What wheels are chosen by: 32-bit Python on a 64-bit kernel counts as 32-bit ARM."""
    name = platform.machine()
    return "armv7l" if name in ("aarch64", "armv8l") and sys.maxsize < 2**32 else name


def _libc() -> str:
    return " ".join(platform.libc_ver()).strip()


@dataclass(frozen=True)
class Host:
    """A machine.

    Attributes:
        root: Where its ``/proc``, ``/sys``, ``/etc`` and ``/dev`` are.
        run: Runs its tools.
        machine: As Python wheels name it: ``x86_64``, ``aarch64``, ``armv7l``.
        libc: Name and version, for instance ``glibc 2.36``; empty where it is another.
        python: (major, minor) of the Python that edgepose runs in.
    """

    root: Path = Path("/")
    run: RunTool = run_tool
    machine: str = field(default_factory=_machine)
    libc: str = field(default_factory=_libc)
    python: tuple[int, int] = sys.version_info[:2]

    def path(self, path: str) -> Path:
        """Where a file of that machine is."""
        return self.root / path.lstrip("/")

    def exists(self, path: str) -> bool:
        """Whether it is there."""
        return self.path(path).exists()

    def text(self, path: str) -> str:
        """What a file says, without the NULs and line ends around it; nothing where it cannot be read."""
        return _text(self.path(path))

    def number(self, path: str) -> int | None:
        """A file that holds one whole number."""
        text = self.text(path)
        return int(text) if text.lstrip("-").isdecimal() else None

    def folders(self, pattern: str) -> list[str]:
        """Paths that fit a pattern, in order of the numbers in their names, as that machine sees them."""
        found = self.root.glob(pattern.lstrip("/"))
        return sorted((f"/{path.relative_to(self.root).as_posix()}" for path in found), key=_by_number)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace").strip("\0 \t\n")
    except OSError:
        return ""


def _by_number(path: str) -> tuple[int, str]:
    """``/sys/.../cpu10`` after ``/sys/.../cpu9``."""
    digits = path[len(path.rstrip("0123456789")) :]
    return int(digits or -1), path
