"""The link to a board and what happens over it: refusals, files by content hash, links that break."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from edgepose import BundleError, RemoteError, __version__
from edgepose.errors import LinkLost
from edgepose.remote import Board
from edgepose.shipment import pack
from edgepose.ssh import Host

PIECE = 4 << 20


@pytest.fixture
def big(tmp_path):
    """A file of a little more than two pieces, with a name that a shell would trip over."""
    path = tmp_path / 'it\'s; $(touch pwned) "-rf" é\n.onnx'
    path.write_bytes(os.urandom(2 * PIECE + 12345))
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("board", ["--", "board"]),
        ("pi@board", ["-l", "pi", "--", "board"]),
        ("pi@board:2222", ["-l", "pi", "-p", "2222", "--", "board"]),
        ("ssh://pi@board:2222", ["-l", "pi", "-p", "2222", "--", "board"]),
        ("ssh://board/", ["--", "board"]),
        ("me@corp@10.0.0.7", ["-l", "me@corp", "--", "10.0.0.7"]),
        ("::1", ["--", "::1"]),
        ("fe80::1%eth0", ["--", "fe80::1%eth0"]),
        ("pi@[::1]:22", ["-l", "pi", "-p", "22", "--", "::1"]),
        ("ssh://[::1]", ["--", "::1"]),
    ],
)
def test_hosts_are_read(text, words):
    assert Host.parse(text).words == words


@pytest.mark.parametrize(
    "text",
    ["", "-oProxyCommand=reboot", "pi@-oProxyCommand=x", "-l@board", "board;reboot", "$(reboot)@board", "a b",
     "board:0", "board:99999", "board:x", "board:", "@board", "[::1]22", "board\n", "`id`"],
)  # fmt: skip
def test_what_is_no_host_is_refused(text):
    with pytest.raises(RemoteError, match="give user@board, user@board:port or ssh://user@board:port"):
        Host.parse(text)


def test_refusals_say_what_to_do(yard, tmp_path):
    """One line each: key unknown, changed or wrong, no host, nobody listens, nobody answers, odd configuration."""
    strange = yard.key(tmp_path / "other")
    (tmp_path / "changed").write_text(f"[127.0.0.1]:{yard.port} {strange}\n")
    mute = socket.create_server(("127.0.0.1", 0))
    cases = [
        ({"UserKnownHostsFile": "/dev/null"}, "its host key is not known on this machine: connect once with ssh board"),
        ({"UserKnownHostsFile": tmp_path / "changed"}, "its host key is not the one that this machine knows"),
        ({"IdentityFile": tmp_path / "other"}, "does not let us in .*Permission denied .publickey.*ssh-copy-id board"),
        ({"HostName": "no-such-board.invalid"}, "no such host .*: check the name"),
        ({"Port": yard.free_port()}, "cannot be reached .*Connection refused.: is the board up"),
        ({"Port": mute.getsockname()[1]}, "cannot be reached .*: is the board up, and its SSH server"),
        ({"NoSuchOption": "yes"}, "ssh does not read its configuration .*terminating, 1 bad configuration options"),
    ]
    config = yard.config.read_text()
    with mute:
        for options, message in cases:
            name = yard.board(**options)
            link = yard.link(name, connect_s=1 if options.get("Port") == mute.getsockname()[1] else 10)
            with link, pytest.raises(RemoteError, match=f"^{name}: {message}") as caught:
                link.open()
            assert "\n" not in str(caught.value)
            yard.config.write_text(config)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("7.1.0", f"edgepose 7.1.0 there, {__version__} here, and their options and results differ: install the same"),
        ("0.1", None),
        ("nonsense", "bin/edgepose does not start there: edgepose, version nonsense"),
    ],
)
def test_another_version_there(yard, version, message):
    said = []
    link = yard.link(name := yard.board(version=version))
    if message:
        with pytest.raises(RemoteError, match=f"^{name}: .*{message}"), Board(link):
            pass
    else:
        with Board(link, remark=said.append):
            assert said == [f"{name}: edgepose 0.1 there, {__version__} here"]


def test_edgepose_is_found_or_its_absence_explained(yard):
    name = yard.board()
    program = yard.home(name) / "bin/edgepose"
    for place, venv in (
        (".local/bin", None),
        (".local/share/edgepose/venv/bin", None),
        ("my venv/bin", "~/my venv/"),
        ("other/bin", str(yard.home(name) / "other")),
    ):
        target = yard.home(name) / place / "edgepose"
        target.parent.mkdir(parents=True)
        program.rename(target)
        with Board(yard.link(name), venv=venv):  # there is no other
            pass
        target.rename(program)
    program.unlink()
    with pytest.raises(
        RemoteError, match=f"no edgepose on its PATH.*python3 -m venv .*pip install edgepose=={__version__}"
    ):
        Board(yard.link(name)).__enter__()
    with pytest.raises(RemoteError, match="no edgepose in ~/x; on the board: python3 -m venv ~/x && "):
        Board(yard.link(name), venv="~/x").__enter__()
    yard.program(name, "python3", "#!/bin/sh\necho 3 8\n")
    with pytest.raises(RemoteError, match=r"no edgepose there, and its Python is 3\.8: edgepose needs 3\.10 or newer"):
        Board(yard.link(name)).__enter__()


def test_files_go_once_and_from_where_they_stopped(yard, big):
    name = yard.board()
    shipment = pack(big)
    said = []
    with Board(yard.link(name), say=said.append) as board:
        there = Path(board.send(shipment))
        assert there == yard.home(name) / ".cache/edgepose/bundles" / shipment.key / big.name
        assert there.read_bytes() == big.read_bytes()
        first, said[:] = there.stat(), []
        assert board.send(shipment) == str(there)
        assert not [text for text in said if text.startswith("send")]
        assert (there.stat().st_ino, there.stat().st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
        # An earlier session left five whole blocks and a bit.
        part = there.with_name(f"{there.name}.part")
        part.write_bytes(big.read_bytes()[: 5 * 65536 + 77])
        there.unlink()
        board.send(shipment)
        assert next(text for text in said if text.startswith("send")).endswith(": 0.3 of 8.4 MB")
        assert there.read_bytes() == big.read_bytes()
        # What lies there is of another file: found out by the hash, and sent whole.
        part.write_bytes(b"x" * PIECE)
        there.unlink()
        board.send(shipment)
        assert there.read_bytes() == big.read_bytes()
        assert [path.name for path in there.parent.iterdir()] == [big.name]
    assert not (yard.home(name) / "pwned").exists()


def test_busybox_is_enough_and_what_lacks_is_named(yard, big, tmp_path):
    program = shutil.which("busybox")
    if not program:
        pytest.skip("no busybox on PATH: apt-get install busybox")
    name = yard.board()
    only = yard.home(name) / "only"
    only.mkdir()
    subprocess.run([program, "--install", "-s", only], check=True)
    with Board(yard.link(name)) as board:
        assert Path(board.send(pack(big))).read_bytes() == big.read_bytes()
        with board.running(lambda job: ["bench", f"--json={job.place('0/b.json')}"]) as job:
            assert board.wait(job) == 0
            assert board.fetch(job, "0/b.json", tmp_path / "b.json")
            assert not board.fetch(job, "0/other.json", tmp_path / "other.json")
        assert json.loads((tmp_path / "b.json").read_text())["schema"] == 1
        assert not yard.jobs(name)
    (only / "setsid").unlink()
    with pytest.raises(RemoteError, match="no setsid there: install coreutils and util-linux, or BusyBox"):
        Board(yard.link(name)).__enter__()


def test_damage_and_a_full_disk_are_errors(yard, big):
    name = yard.board()
    folder = yard.home(name) / ".cache/edgepose/bundles" / pack(big).key
    yard.program(name, "dd", '#!/bin/sh\ntrap "" XFSZ; ulimit -f 2048; exec /bin/dd "$@"\n')
    with Board(yard.link(name)) as board:
        with pytest.raises(
            RemoteError, match=f"^{name}: .*dd: error writing .*: the disk there is full: make room in /"
        ):
            board.send(pack(big))
        assert not list(folder.iterdir())
        yard.program(name, "dd", '#!/bin/sh\ntr "\\000-\\177" "\\001-\\177\\000" | /bin/dd "$@"\n')
        with pytest.raises(RemoteError, match="arrives damaged: is the disk there sound"):
            board.send(pack(big))
        yard.program(name, "df", "#!/bin/sh\necho /dev/card 100000 99000 1000 99% /\n")
        with pytest.raises(RemoteError, match=r"8\.4 MB to send and 1.0 MB free: make room there"):
            board.send(pack(big))


@pytest.mark.parametrize("end", ["server", "client"])
def test_a_link_that_breaks_while_a_file_goes_is_made_again(yard, big, end):
    """The second piece stops halfway; then one end of the connection is killed."""
    name = yard.board()
    stuck = yard.home(name) / "stuck"
    yard.program(
        name,
        "dd",
        f"""#!/bin/sh
case "$*" in *seek=64*) if [ ! -e {stuck} ]; then
    head -c 300000 | /bin/dd "$@"; echo $$ > {stuck}.part; mv {stuck}.part {stuck}; exec sleep 60
fi;; esac
exec /bin/dd "$@"
""",
    )
    said = []
    with Board(yard.link(name), say=said.append) as board:

        def cut():
            yard.wait_until(stuck.exists)
            if end == "server":
                yard.cut()
            else:
                board.link._master.kill()

        thread = threading.Thread(target=cut)
        thread.start()
        there = Path(board.send(pack(big)))
        thread.join()
        assert there.read_bytes() == big.read_bytes()
    assert [text for text in said if "the link was lost" in text and text.endswith("connects again")]
    os.kill(int(stuck.read_text()), signal.SIGKILL)


def test_a_board_that_stays_away_is_given_up(yard, big, monkeypatch):
    monkeypatch.setattr("edgepose.remote._PAUSES_S", (0.01, 0.01))
    name = yard.board("sleep 30")
    with Board(yard.link(name)) as board:
        board.link._ssh[1:1] = ["-o", f"Port={yard.free_port()}"]
        board.link._hang_up()
        with pytest.raises(LinkLost, match=f"^{name}: the link was lost .*Connection refused"):
            board.send(pack(big))


def test_a_bundle_travels_as_its_manifest_says(starter_bundle, tmp_path):
    whole, one = pack(starter_bundle), pack(starter_bundle, ["onnx-int8"])
    assert [file.path.name for file in one.files] == ["manifest.json", "golden.npz", "onnx-int8.onnx"]
    assert {file.path.name for file in whole.files} - {"onnx-fp32.onnx"} == {file.path.name for file in one.files}
    lone = pack(starter_bundle / "onnx-int8.onnx")
    assert (lone.key, lone.target, lone.files) == (whole.key, "onnx-int8.onnx", one.files)
    (tmp_path / "m.xml").write_text("net")
    (tmp_path / "m.bin").write_text("weights")
    assert [file.path.name for file in pack(tmp_path / "m.xml").files] == ["m.xml", "m.bin"]
    with pytest.raises(BundleError, match="no variant 'tflite-int8'"):
        pack(starter_bundle, ["tflite-int8"])
    with pytest.raises(BundleError, match="no such bundle or model file"):
        pack(tmp_path / "nothing")
