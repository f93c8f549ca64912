"""What runs on a board: short scripts for a POSIX shell, with coreutils' or BusyBox's programs.

Every function quotes what it is given; names are paths there. Scripts are harmless when they run twice: a link may
break after one did its work, and before the answer came.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

__all__ = ["BLOCK", "fetch_facts", "look", "read", "received", "remove", "start", "states", "stop", "wait", "write"]

BLOCK = 1 << 16
"""Bytes of the blocks in which files travel."""

_NEEDED = ("dd", "df", "setsid", "sha256sum", "tail")
_PLACES = ("edgepose", '"$HOME/.local/bin/edgepose"', '"$HOME/.local/share/edgepose/venv/bin/edgepose"')

_LOOK = r"""
echo "cache=${XDG_CACHE_HOME:-$HOME/.cache}/edgepose"
for tool in %(needed)s; do command -v $tool > /dev/null || echo "missing=$tool"; done
for place in %(places)s; do
    if command -v "$place" > /dev/null; then
        echo "edgepose=$(command -v "$place")"
        echo "version=$("$place" --version 2>&1 | tail -n 1)"
        break
    fi
done
echo "python=$(python3 -c 'import sys; print(*sys.version_info[:2])' 2> /dev/null)"
"""

_STATES = r"""
state() {
    if [ -f "$1" ] && [ "$(sha256sum < "$1" | cut -c 1-64)" = "$2" ]; then echo whole
    elif [ -f "$1.part" ]; then echo $(($(wc -c < "$1.part")))
    else echo 0; fi
}
mkdir -p %(folder)s && cd %(folder)s || exit 1
%(asks)s
df -Pk . | tail -n 1
"""

_WRITE = r"""
cd %(folder)s || exit 1
log=$(dd of=%(part)s bs=%(size)d seek=%(block)d conv=notrunc 2>&1) || {
    printf '%%s\n' "$log" | grep 'dd: ' >&2; rm -f %(part)s; exit 1; }
"""

_RECEIVED = r"""
cd %(folder)s || exit 1
is_it() { [ -f "$1" ] && [ "$(sha256sum < "$1" | cut -c 1-64)" = %(sha256)s ]; }
if is_it %(part)s; then mv -f %(part)s %(name)s; echo whole
elif is_it %(name)s; then echo whole
else rm -f %(part)s; echo damaged; fi
"""

_WRAPPER = r"""
trap : INT TERM; trap '' HUP; cd; echo $$ > "$0/pid.part"; mv "$0/pid.part" "$0/pid"
"$@" > "$0/stdout" 2> "$0/stderr" < /dev/null; echo $? > "$0/code.part"; mv "$0/code.part" "$0/code"
"""

_START = r"""
umask 077; mkdir -p %(jobs)s || exit 1
if [ ! -e %(job)s ]; then
    mkdir %(job)s %(job)s/out || exit 1
    setsid sh -c %(wrapper)s %(job)s %(words)s > /dev/null 2>&1 < /dev/null &
fi
"""

_WAIT = r"""
cd %(job)s || exit 1
tries=0
while [ ! -e code ]; do
    if [ -e pid ]; then kill -0 "$(cat pid)" 2> /dev/null || { sleep 1; break; }
    else tries=$((tries + 1)); [ $tries -lt 15 ] || break; fi
    sleep 1
done
[ ! -e code ] || cat code
"""

_STOP = r"""
cd %(job)s 2> /dev/null && [ ! -e code ] || exit 0
tries=0
while [ ! -e pid ] && [ $tries -lt 3 ]; do sleep 1; tries=$((tries + 1)); done
[ -e pid ] || exit 0
pid=$(cat pid); kill -TERM "-$pid" 2> /dev/null; tries=0
while [ ! -e code ] && [ $tries -lt %(seconds)d ] && kill -0 "$pid" 2> /dev/null; do sleep 1; tries=$((tries + 1)); done
[ -e code ] || kill -KILL "-$pid" 2> /dev/null
exit 0
"""


def look(venv: str | None) -> str:
    """Lines ``key=value``: cache folder, missing programs, edgepose and its version, Python's version.

    Args:
        venv: The virtual environment that holds edgepose; ``~/`` is the home folder there. None looks for it.
    """
    return _LOOK % {"needed": " ".join(_NEEDED), "places": _program_of(venv) if venv else " ".join(_PLACES)}


def _program_of(venv: str) -> str:
    if venv.startswith("~/"):
        return f'"$HOME"{shlex.quote(venv[1:].rstrip("/"))}/bin/edgepose'
    return shlex.quote(f"{venv.rstrip('/')}/bin/edgepose")


def states(folder: str, files: Iterable[tuple[str, str]]) -> str:
    """For each (name, SHA-256) a line: ``whole``, or how many bytes are there; then a line of ``df -Pk``."""
    asks = "\n".join(f"state {_local(name)} {sha256}" for name, sha256 in files)
    return _STATES % {"folder": shlex.quote(folder), "asks": asks}


def write(folder: str, name: str, block: int) -> str:
    """Write standard input into the unfinished file, from a block on. On a full disk it is removed."""
    part = _local(f"{name}.part")
    return _WRITE % {"folder": shlex.quote(folder), "part": part, "size": BLOCK, "block": block}


def received(folder: str, name: str, sha256: str) -> str:
    """Give a finished file its name and print ``whole``; or remove it and print ``damaged``."""
    names = {"name": _local(name), "part": _local(f"{name}.part")}
    return _RECEIVED % {"folder": shlex.quote(folder), "sha256": sha256, **names}


def start(jobs: str, job: str, words: Sequence[str]) -> str:
    """Start a command of its own session in the home folder; nothing if the job was started already."""
    wrapper = shlex.quote(_WRAPPER.strip())
    return _START % {"jobs": shlex.quote(jobs), "job": shlex.quote(job), "wrapper": wrapper, "words": shlex.join(words)}


def wait(job: str) -> str:
    """Print the exit code once there is one; nothing if the command vanished without."""
    return _WAIT % {"job": shlex.quote(job)}


def stop(job: str, seconds: int) -> str:
    """End a command as Ctrl-C does; by force after some seconds."""
    return _STOP % {"job": shlex.quote(job), "seconds": seconds}


def remove(folder: str) -> str:
    """Delete a folder."""
    return f"rm -rf {shlex.quote(folder)}"


def fetch_facts(path: str) -> str:
    """Size and SHA-256 of a file, a line each; nothing where it is not there."""
    where = shlex.quote(path)
    return f"[ ! -f {where} ] || {{ echo $(($(wc -c < {where}))); sha256sum < {where} | cut -c 1-64; }}"


def read(path: str, block: int, count: int) -> str:
    """Some blocks of a file."""
    return f"dd if={shlex.quote(path)} bs={BLOCK} skip={block} count={count} 2> /dev/null"


def _local(name: str) -> str:
    """A file of the current folder, as one word that is no option."""
    return shlex.quote(f"./{name}")
