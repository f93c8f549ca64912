"""Boards over ssh: a real sshd on loopback with its own keys; the boards are folders of this machine."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from edgepose import __version__
from edgepose.ssh import Host, Link

ROOT = Path(__file__).parents[2]
PLACES = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"

FAKE = """#!/bin/sh
if [ "$1" = --version ]; then echo 'edgepose, version {version}'; exit 0; fi
printf '%s\\n' "$@" >> "$HOME/words"
for word; do case "$word" in --json=*) json=${{word#--json=}}; mkdir -p "$(dirname "$json")";; esac; done
{body}
"""
ROW = {"variant": "onnx-int8", "infer_ms": 2.0, "infer_low_ms": None, "infer_high_ms": None}
DOCUMENT = {"schema": 1, "rows": [ROW], "failed": {}, "machine": {"versions": {}}}
WRITES = f'echo {shlex.quote(json.dumps(DOCUMENT))} > "$json"'


def wait_until(true, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def key(path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True, stdin=subprocess.DEVNULL)
    return path.with_suffix(".pub").read_text().rsplit(" ", 1)[0]


class Yard:
    """One sshd, and boards behind it: ``Host`` aliases whose home folders are ours."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("sshd", path=PLACES)
        if not program or not shutil.which("ssh-keygen"):
            pytest.skip("no sshd or ssh-keygen: apt-get install openssh-server")
        if os.geteuid() == 0 and not Path("/run/sshd").exists():
            Path("/run/sshd").mkdir(mode=0o755)  # what the service's start script does
        self.folder, self.port, self.names = folder, free_port(), []
        self.host_key = key(folder / "host")
        self.authorized = folder / "authorized"
        self.authorized.write_text(key(folder / "user"))
        self.known = folder / "known"
        self.known.write_text(f"[127.0.0.1]:{self.port} {self.host_key}\n")
        force = folder / "force"
        # A login script that talks must not spoil answers.
        force.write_text(
            f'#!/bin/sh\necho Welcome\nexport HOME={folder}/"$BOARD"\nexport PATH="$HOME/bin:/usr/bin:/bin"\n'
            '[ ! -d "$HOME/only" ] || PATH="$HOME/bin:$HOME/only"\n'
            'cd && exec sh -c "$SSH_ORIGINAL_COMMAND"\n'
        )
        force.chmod(0o755)
        (folder / "sshd.conf").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {self.authorized}\n"
            "StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\nPasswordAuthentication no\n"
            f"KbdInteractiveAuthentication no\nAcceptEnv BOARD\nForceCommand {force}\n"
        )
        self.config = folder / "config"
        self.config.write_text("")
        self.log = (folder / "log").open("w")
        self.process = subprocess.Popen([program, "-D", "-e", "-f", folder / "sshd.conf"], stderr=self.log)
        wait_until(lambda: self.process.poll() is not None or "listening" in (folder / "log").read_text())
        assert self.process.poll() is None, (folder / "log").read_text()

    def board(self, body: str = WRITES, *, version: str = __version__, **options: object) -> str:
        """A new board with a fake edgepose; the name is an alias of the configuration."""
        name = f"board{len(self.names)}"
        self.names.append(name)
        self.program(name, "edgepose", FAKE.format(version=version, body=body))
        lines = {
            "HostName": "127.0.0.1", "Port": self.port, "IdentityFile": self.folder / "user", "IdentitiesOnly": "yes",
            "UserKnownHostsFile": self.known, "GlobalKnownHostsFile": "/dev/null", "SetEnv": f"BOARD={name}",
        }  # fmt: skip
        rows = [f"Host {name}", *(f"  {key} {value}" for key, value in (lines | options).items())]
        with self.config.open("a") as file:
            file.write("\n".join(rows) + "\n")
        return name

    def home(self, name: str) -> Path:
        return self.folder / name

    def program(self, name: str, program: str, text: str) -> None:
        path = self.home(name) / "bin" / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def link(self, text: str, **options) -> Link:
        return Link(Host.parse(text), config=self.config, **options)

    def real(self) -> str:
        """A board with the edgepose of this checkout."""
        name = self.board()
        text = f'#!/bin/sh\nexport PYTHONPATH={ROOT}\nexec {sys.executable} -m edgepose "$@"\n'
        self.program(name, "edgepose", text)
        return name

    def jobs(self, name: str) -> list[Path]:
        """Folders of the commands there."""
        folder = self.home(name) / ".cache/edgepose/jobs"
        return sorted(folder.iterdir()) if folder.exists() else []

    def cut(self) -> None:
        """Kill the server's side of every connection."""
        for pid in self.sessions():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def sessions(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children]

    free_port = staticmethod(free_port)
    key = staticmethod(key)
    wait_until = staticmethod(wait_until)

    def close(self) -> None:
        self.cut()
        self.process.terminate()
        self.process.wait(10)
        self.log.close()


@pytest.fixture(scope="package")
def yard(tmp_path_factory):
    yard = Yard(tmp_path_factory.mktemp("yard"))
    yield yard
    yard.close()
