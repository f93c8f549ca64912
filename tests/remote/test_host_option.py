"""``bench``, ``run`` and ``validate`` with ``--host``: tables, files, exit codes, links that break, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from edgepose.assets import SAMPLE_CLIP

WRITES = "\n".join(['echo started >> "$HOME/starts"', 'while [ ! -e "$HOME/go" ]; do sleep 0.1; done'])


def words(yard, name):
    return (yard.home(name) / "words").read_text().splitlines()


def test_bench_on_two_boards_of_which_one_is_broken(edgepose, yard, starter_bundle, tmp_path):
    """The link of the good one is cut while it measures, and the measurement is not begun again."""
    good, broken = yard.real(), yard.board('echo "error: no memory" >&2; exit 2')
    program = yard.home(good) / "bin/edgepose"
    program.write_text(program.read_text().replace("exec", 'echo "$1" >> "$HOME/starts"\nexec'))
    figures = tmp_path / "figures.json"

    def cut():
        yard.wait_until(lambda: yard.jobs(good) and (yard.jobs(good)[0] / "pid").exists())
        yard.cut()

    thread = threading.Thread(target=cut)
    thread.start()
    done = edgepose(
        *("bench", starter_bundle, "--host", good, "--host", broken, "--ssh-config", yard.config, "--json", figures),
        *("--iterations", 3, "--warmup", 0, "--threads", 1, "--variants", "onnx-int8", "--engine", "onnxruntime"),
    )
    thread.join()
    assert (yard.home(good) / "starts").read_text().split() == ["--version", "bench"]
    assert [
        line for line in done.stdout.splitlines() if line.startswith(good) and "onnx-int8   onnxruntime cpu" in line
    ]
    assert f"inference of {starter_bundle}" in done.stdout
    assert [line.split() for line in done.stdout.splitlines() if line.startswith(broken)] == [[broken, "no", "memory"]]
    data = json.loads(figures.read_text())
    assert data["failed"] == {broken: "no memory"}
    assert data["hosts"][good]["settings"]["iterations"] == 3
    assert [row["variant"] for row in data["hosts"][good]["rows"]] == ["onnx-int8"]
    assert data["hosts"][good]["bundle"] == str(starter_bundle)
    sent = yard.home(good) / ".cache/edgepose/bundles"
    assert sorted(path.name for path in sent.glob("*/*")) == ["golden.npz", "manifest.json", "onnx-int8.onnx"]
    assert not yard.jobs(good)
    assert not yard.jobs(broken)


def test_options_reach_the_board_as_they_were_given(edgepose, yard, starter_bundle):
    name = yard.board()
    option = 'path=it\'s "$HOME" `id`'
    done = edgepose(
        *("bench", starter_bundle / "onnx-int8.onnx", "--host", f"ssh://{name}", "--ssh-config", yard.config),
        *("--json", "-", "--no-self-test", "--engine-option", option, "--engine-option", "b=-c", "--threads", "1,2"),
    )
    document = json.loads(done.stdout)  # of one board it is what bench would write here
    assert document["rows"][0]["infer_ms"] == 2
    assert document["bundle"] == str(starter_bundle / "onnx-int8.onnx")
    given = words(yard, name)
    assert given[0] == "bench"
    assert given[1].endswith("/onnx-int8.onnx")
    assert sorted(given[2:-1]) == sorted(
        ["--no-self-test", f"--engine-option={option}", "--engine-option=b=-c", "--threads=1,2"]
    )


@pytest.mark.slow
def test_every_board_failed(edgepose, yard, starter_bundle, tmp_path):
    killed, crashed = yard.board("kill -9 $$"), yard.board("echo Traceback >&2; echo 'OSError: gone' >&2; exit 1")
    silent, vanished, odd = yard.board(""), yard.board("kill -9 0"), yard.board('echo "{}" > "$json"')
    names = [word for name in (killed, crashed, silent, vanished, odd) for word in ("--host", name)]
    done = edgepose("bench", starter_bundle, "--ssh-config", yard.config, *names, code=2)
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("error: ")
    for reason in (
        f"{killed}: edgepose was ended there by signal 9: out of memory?",
        f"{crashed}: edgepose failed there with exit code 1: OSError: gone",
        f"{silent}: did not write ",
        f"{vanished}: the command vanished there: was the board started again?",
        f"{odd}: its figures are damaged: is no benchmark of edgepose ('schema' is missing)",
    ):
        assert reason in done.stderr.splitlines()[-1]


def test_ctrl_c_stops_the_board_too(yard, starter_bundle):
    name = yard.board(
        'trap \'echo ended > "$HOME/ended"; exit 130\' TERM; touch "$HOME/begun"; while :; do sleep 0.1; done'
    )
    command = [sys.executable, "-m", "edgepose", "bench", starter_bundle, "--host", name, "--ssh-config", yard.config]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    yard.wait_until((yard.home(name) / "begun").exists)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130
    assert complaint.splitlines()[-1] == "error: interrupted"
    assert (yard.home(name) / "ended").exists()
    assert not yard.jobs(name)
    yard.wait_until(lambda: not yard.sessions())


@pytest.mark.slow
def test_run_sends_the_clip_and_brings_the_outputs(edgepose, yard, starter_bundle, tmp_path):
    name = yard.real()
    done = edgepose(
        *("run", starter_bundle, "--host", name, "--ssh-config", yard.config, "--source", SAMPLE_CLIP),
        *("--variant", "onnx-int8", "--max-frames", 4, "--json", tmp_path / "p.jsonl", "--out", tmp_path / "v.mp4"),
        *("--metrics", tmp_path / "m.json", "--coco", tmp_path / "c.json"),
    )
    assert "4 frames" in done.stdout
    assert f"wrote {tmp_path / 'v.mp4'}" in done.stdout
    assert f"{name}: transpose-r-t onnx-int8 on onnxruntime cpu" in done.stderr
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == 4
    assert (tmp_path / "v.mp4").stat().st_size > 1000
    assert json.loads((tmp_path / "m.json").read_text())["frames"] == 4
    assert isinstance(json.loads((tmp_path / "c.json").read_text()), list)


@pytest.mark.slow
def test_an_interrupted_run_brings_what_it_has(yard, starter_bundle, tmp_path):
    """Several boards write files of their own names; a source that is no file here is one there."""
    body = 'trap \'echo half > "$json"; exit 130\' TERM; touch "$HOME/begun"; while :; do sleep 0.1; done'
    names = [yard.board(body), yard.board(body)]
    command = [sys.executable, "-m", "edgepose", "run", starter_bundle, "--source", "rtsp://cam/1", "--ssh-config"]
    command += [yard.config, "--json", tmp_path / "p.jsonl", "--host", names[0], "--host", names[1]]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    yard.wait_until(lambda: all((yard.home(name) / "begun").exists() for name in names))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--source=rtsp://cam/1" in words(yard, names[0])
    assert sorted(os.listdir(tmp_path)) == sorted(f"p.{name}.jsonl" for name in names)
    assert (tmp_path / f"p.{names[0]}.jsonl").read_text() == "half\n"


@pytest.mark.slow
def test_validate_there_and_its_gate(edgepose, yard, starter_bundle, tmp_path):
    name = yard.real()
    done = edgepose(
        *("validate", starter_bundle, "--host", name, "--ssh-config", yard.config, "--root", SAMPLE_CLIP, "--limit", 4),
        *("--max-drop", 0, "--json", tmp_path / "v.json", "--report", tmp_path / "report"),
        code=1,
    )
    assert f"accuracy on {SAMPLE_CLIP}" in done.stdout
    assert f"wrote {tmp_path / 'report'}" in done.stderr
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "evidence.json",
        "report.html",
        "report.md",
    ]
    data = json.loads((tmp_path / "v.json").read_text())
    assert data["drops"].keys() == {"onnx-int8"}


EVIDENCE = {"drops": {"onnx-int8": 0.25}, "validation": {"baseline": "onnx-fp32"}}


@pytest.mark.slow
def test_drops_side_by_side_and_a_board_that_was_not_measured(edgepose, yard, starter_bundle):
    """With a limit, a board without figures has not kept it."""
    body = f"echo '{json.dumps(EVIDENCE)}' > \"$json\"; echo table"
    names = [yard.board(body), yard.board(body), yard.board("echo 'error: /data/coco: not there' >&2; exit 2")]
    hosts = [word for name in names for word in ("--host", name)]
    arguments = ("validate", starter_bundle, "--ssh-config", yard.config, "--root", "/data/coco", *hosts)
    done = edgepose(*arguments)
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [names[0], "onnx-int8", "+0.25"] in rows
    assert [names[1], "onnx-int8", "+0.25"] in rows
    assert "--root=/data/coco" in words(yard, names[0])
    assert f"{names[2]}   /data/coco: not there" in done.stdout
    edgepose(*arguments, "--max-drop", 1, code=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bench", "B", "--host", "a", "--host", "a"), "--host names the same board twice"),
        (
            ("bench", "B", "--host", "a", "--host", "b", "--html", "x.html"),
            "--html are of one machine: give one --host",
        ),
        (("bench", "B", "--remote-venv", "x"), "--remote-venv and --ssh-config go with --host"),
        (("bench", "B", "--host", "-oProxyCommand=x"), "give user@board, user@board:port or ssh://user@board:port"),
        (("bench", "B/nothing", "--host", "a"), "no such bundle or model file"),
        (("run", "B", "--host", "a", "--source", "0", "--window"), "--window does not go with --host"),
        (("run", "B", "--host", "a", "--source", "-", "--json", "p.jsonl"), "--source - does not go with --host"),
    ],
)
def test_what_cannot_be_is_refused_first(edgepose, starter_bundle, tmp_path, arguments, message):
    given = [word.replace("B", str(starter_bundle), 1) if word.startswith("B") else word for word in arguments]
    done = edgepose(*given, cwd=tmp_path, code=2)
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
