"""edgepose run with detectors, several outputs and figures."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgepose.assets import SAMPLE_CLIP
from edgepose.cli import run
from edgepose.detector_layouts import LAYOUTS


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A model of the layout ``end2end`` that always sees the man of the sample clip, and a dog."""
    boxes = np.array([[[315, 30, 455, 370, 0.9, 0], [0, 0, 50, 50, 0.8, 16]]], np.float32)  # in 640 x 384
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 384, 640])
    answer = helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 2, 6])
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["boxes", "nothing"], ["output0"]),
    ]
    constants = [
        onnx.numpy_helper.from_array(boxes, "boxes"),
        onnx.numpy_helper.from_array(np.float32(0), "zero"),
    ]
    graph = helper.make_graph(nodes, "detector", [image], [answer], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path = tmp_path_factory.mktemp("detector") / "people.onnx"
    onnx.save(model, path)
    return path


def test_a_detector_gives_people_with_ids_and_every_output_is_written(edgepose, starter_bundle, detector, tmp_path):
    done = edgepose(
        *("run", starter_bundle, "--source", SAMPLE_CLIP, "--detector", detector, "--detector-layout", "end2end"),
        *("--smooth", "--json", tmp_path / "p.jsonl", "--coco", tmp_path / "c.json", "--metrics", tmp_path / "m.json"),
        *("--out", tmp_path / "v.mp4"),
    )
    assert "people.onnx as end2end on onnxruntime cpu" in done.stderr
    for stage in ("read", "detect", "pose", "follow", "smooth", "write", "camera to result"):
        assert re.search(rf"^{stage} ", done.stdout, re.MULTILINE), stage
    assert "80 frames" in done.stdout
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    ids = [person["track_id"] for row in rows[40:] for person in row["people"]]
    assert len(ids) > 30
    assert len(set(ids)) == 1
    results = json.loads((tmp_path / "c.json").read_text())
    assert len(results) == sum(len(row["people"]) for row in rows)
    figures = json.loads((tmp_path / "m.json").read_text())
    assert figures["frames"] == 80
    assert figures["stages_ms"]["detect"]["count"] >= 8
    assert (tmp_path / "v.mp4").stat().st_size > 10_000


def test_a_target_gives_a_plan(edgepose, starter_bundle, detector, tmp_path):
    """At 20 frames per second there is time for somebody; at 1000 for nobody, and that is said."""
    given = (
        "run",
        starter_bundle,
        "--source",
        SAMPLE_CLIP,
        "--max-frames",
        "5",
        "--json",
        tmp_path / "p.jsonl",
        "--force",
    )
    done = edgepose(*given, "--detector", detector, "--detector-layout", "end2end", "--most", "3", "--target-fps", "20")
    plan = re.search(r"plan for 20 FPS: (\d) (person|people) at most, the detector looks every \d+", done.stdout)
    assert plan
    assert 1 <= int(plan[1]) <= 3
    assert re.search(r"^ +1 +[\d.]+ +[\d.]+ +\d+ +(yes|no)$", done.stdout, re.MULTILINE)
    done = edgepose(*given, "--target-fps", "1000")
    assert "plan for 1000 FPS: 1 person at most, 1 per engine call" in done.stdout
    assert "1000 FPS cannot be reached here: about " in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--boxes", "b.json", "--detector", "d.onnx"), "--boxes and --detector both say where people are"),
        (("--detector-layout", "yolox"), "--detector-layout goes with --detector"),
        (("--boxes", "b.json", "--smooth"), "--smooth needs people who are followed"),
        (("--size", "big"), "'big': give width x height, for instance 1280x720"),
        (("--fps", "30"), "raw frames on standard input have no header: their size is needed (--size 1280x720"),
        (("--coco", "p.jsonl"), "two outputs name the same file"),
        (("--metrics", "prometheus://nowhere"), "expected prometheus://:9100"),
        (("--serve", "0.0.0.0:0"), "token"),
        (("--mqtt", "mqtt://127.0.0.1:1/x"), "127.0.0.1:1"),
        (("--detector", "none.onnx"), "none.onnx"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(edgepose, starter_bundle, tmp_path, arguments, message):
    source = "-" if "--fps" in arguments else SAMPLE_CLIP
    done = edgepose("run", starter_bundle, "--source", source, "--json", "p.jsonl", *arguments, cwd=tmp_path, code=2)
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert message in done.stderr
    assert not list(tmp_path.glob("*"))


def test_help_names_every_layout():
    """The command does not import them to say so."""
    assert run._LAYOUTS.split(", ") == list(LAYOUTS)


def test_the_live_page_and_the_figures_answer_while_it_runs(starter_bundle, tmp_path):
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    command = [
        *(sys.executable, "-m", "edgepose", "run", starter_bundle, "--source", SAMPLE_CLIP, "--loop", "--pace"),
        *("--serve", f"127.0.0.1:{ports[0]}", "--metrics", f"prometheus://:{ports[1]}"),
    ]
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            text = asked(f"http://127.0.0.1:{ports[1]}/metrics", "edgepose_frames_total [1-9]", process)
            assert "edgepose_dropped_total" in text
            assert "<html" in asked(f"http://127.0.0.1:{ports[0]}/", "edgepose", process)
        finally:
            process.terminate()
            process.communicate(timeout=60)
    assert process.returncode == 130


def asked(url, pattern, process):
    """The answer, as soon as it holds the pattern."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                text = answer.read().decode()
        except OSError:
            text = ""
        if re.search(pattern, text):
            return text
        time.sleep(0.2)
    raise AssertionError(f"{url} never said {pattern}")
