"""Importing a library in a process of its own: one that was built for another processor takes down who imports it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

__all__ = ["ask_python"]

_SECONDS = 30
_SIGNALS = {
    "SIGILL": "its wheel was built for a newer processor: take an older version, or build it here",
    "SIGSEGV": "install it again, in a version that fits the other packages",
    "SIGBUS": "install it again",
    "SIGKILL": "there was too little memory",
}


def ask_python(code: str) -> tuple[str, str]:
    """Run code in another Python; the last line that it printed, and what went wrong in one line, or nothing.

    It looks for modules where this one does, and not in the present folder, which may hold anything.

    Raises:
        OSError: It cannot be run.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}\n{code}"],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            check=False,
            timeout=_SECONDS,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    except subprocess.TimeoutExpired:
        return "", f"importing it takes longer than {_SECONDS} s"
    lines = done.stdout.splitlines()
    return (lines[-1] if lines else "", _problem(done.returncode, done.stderr))


def _problem(code: int, stderr: str) -> str:
    if code < 0:
        name = signal.Signals(-code).name if -code in {number.value for number in signal.Signals} else f"signal {-code}"
        return f"crashes when it is imported ({name}): {_SIGNALS.get(name, 'install it again')}"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return (lines[-1] if lines else f"exit code {code}")[:300] if code else ""
