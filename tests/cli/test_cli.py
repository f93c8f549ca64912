"""The command line as a person meets it: exit codes, one-line errors, tables, files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from edgepose.assets import SAMPLE_CLIP, STARTER_MODEL, STARTER_WEIGHTS
from edgepose.models.registry import MODELS
from edgepose.sources import open_source


def test_help_names_every_command(edgepose):
    text = edgepose("--help").stdout
    for name in (
        "convert",
        "run",
        "bench",
        "validate",
        "sensitivity",
        "reproduce",
        "inspect",
        "doctor",
        "targets",
        "models",
        "demo",
    ):
        assert f"\n  {name} " in text
        text_of_command = edgepose(name, "--help").stdout
        assert "Usage: edgepose" in text_of_command
        assert "\\b" not in text_of_command
    assert edgepose(code=2).stdout.startswith("Usage: edgepose")


def test_models_lists_every_row_with_its_address(edgepose):
    text = edgepose("models").stdout
    for row in MODELS.values():
        assert row.name in text
        if row.published:
            assert row.published.url in text
            assert f"{row.published.ap_detected:.1f}" in text
    rows = json.loads(edgepose("models", "--json").stdout)
    assert [row["name"] for row in rows] == list(MODELS)


def test_inspect_shows_specification_and_provenance(edgepose, starter_bundle):
    text = edgepose("inspect", starter_bundle).stdout
    for part in (
        "transpose-r-t",
        "uint8 (N, 128, 96, 3)",
        "lsp14",
        "onnx-int8",
        "transpose-r-t-lspet.pth",
        "16 samples",
    ):
        assert part in text
    lone = edgepose("inspect", starter_bundle / "onnx-int8.onnx", "--json").stdout
    assert json.loads(lone)["spec"]["skeleton"] == "lsp14"
    assert json.loads(edgepose("inspect", starter_bundle, "--json").stdout)["schema_version"] == 1


def test_bench_measures_every_variant(edgepose, starter_bundle, tmp_path):
    arguments = (
        "bench",
        starter_bundle,
        "--iterations",
        5,
        "--warmup",
        1,
        "--threads",
        1,
        "--json",
        tmp_path / "b.json",
    )
    text = edgepose(*arguments).stdout
    assert "onnx-fp32" in text
    assert "onnx-int8" in text
    assert "1.00" in text
    data = json.loads((tmp_path / "b.json").read_text())
    assert [row["variant"] for row in data["rows"]] == ["onnx-fp32", "onnx-int8"]
    assert all(row["threads"] == 1 and row["rss_mib"] > 30 and row["infer_ms"] > 0 for row in data["rows"])
    assert data["rows"][0]["placement"].keys() == {"CPUExecutionProvider"}
    assert data["machine"]["versions"]["onnxruntime"]


def test_a_variant_that_cannot_run_stays_in_the_table(edgepose, starter_bundle, tmp_path):
    shutil.copytree(starter_bundle, tmp_path / "bundle")
    (tmp_path / "bundle" / "onnx-int8.onnx").write_bytes(b"cut")
    for command in (
        ("bench", "--iterations", 2),
        ("validate", "--data", "unlabeled", "--root", SAMPLE_CLIP, "--limit", 8),
    ):
        done = edgepose(command[0], tmp_path / "bundle", *command[1:])
        assert "did not run" in done.stdout
        assert "3 bytes, the manifest says" in done.stdout + done.stderr


def test_validate_without_labels(edgepose, starter_bundle, tmp_path):
    arguments = ("--data", "unlabeled", "--root", SAMPLE_CLIP, "--limit", 12, "--json", tmp_path / "v.json")
    done = edgepose("validate", starter_bundle, *arguments)
    assert "mean OKS" in done.stdout
    assert "moves most" in done.stdout
    assert "onnx-int8: mean OKS 0.9" in done.stdout
    fp32, int8 = json.loads((tmp_path / "v.json").read_text())["validation"]["rows"]
    assert fp32["agreement"]["mean_oks"] == 1
    assert 0.9 < int8["agreement"]["mean_oks"] < 1


def test_run_writes_video_and_poses(edgepose, starter_bundle, tmp_path):
    outputs = ("--out", tmp_path / "out.mp4", "--json", tmp_path / "poses.jsonl")
    done = edgepose("run", starter_bundle, "--source", SAMPLE_CLIP, *outputs)
    assert "80 frames" in done.stdout
    assert "transpose-r-t onnx-int8 on onnxruntime cpu" in done.stderr
    assert len(list(open_source(str(tmp_path / "out.mp4")))) == 80
    rows = [json.loads(line) for line in (tmp_path / "poses.jsonl").read_text().splitlines()]
    assert len(rows) == 80
    assert sum(bool(row["people"]) for row in rows) >= 70


def test_run_with_boxes_on_a_folder(edgepose, starter_bundle, tmp_path, clip_frames):
    (tmp_path / "images").mkdir()
    for i in (50, 60):
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), clip_frames[i])
    boxes = [{"frame": "50.png", "bbox": [380, 0, 165, 410]}, {"frame": "50.png", "bbox": [0, 0, 100, 200]}]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    arguments = ("--boxes", tmp_path / "boxes.json", "--json", tmp_path / "poses.jsonl")
    edgepose("run", starter_bundle, "--source", tmp_path / "images", *arguments)
    rows = [json.loads(line) for line in (tmp_path / "poses.jsonl").read_text().splitlines()]
    assert [(row["name"], len(row["people"])) for row in rows] == [("50.png", 2), ("60.png", 0)]


def one_line(done, message):
    """A bad input is answered in one line on stderr, without a traceback, with exit code 2."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, done.stderr
    assert message in lines[0]
    assert "Traceback" not in done.stderr


CONVERT = ("--model", STARTER_MODEL, "-o", "bundle")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("convert", "none.pth", *CONVERT, "--calib", "."), "none.pth: no such checkpoint file"),
        (("convert", *CONVERT), "give either a CHECKPOINT or --random"),
        (("convert", "--random", "--model", "alien", "-o", "b"), "unknown model 'alien'; registered: transpose-r-a3"),
        (("convert", "--random", *CONVERT), "onnx-int8: needs samples to calibrate with"),
        (("convert", "--random", *CONVERT, "--precision", "fp31"), "variant 'onnx-fp31': expected"),
        (("convert", "--random", *CONVERT, "--input-size", "big"), "give height x width, for instance 256x192"),
        (("convert", "--random", *CONVERT, "--input-size", "100x90"), "multiples of 32"),
        (
            ("convert", STARTER_WEIGHTS, "--model", "transpose-r-a3", "-o", "b", "--precision", "fp32"),
            "it is transpose-r-t",
        ),
        (("run", "none", "--source", "0", "--json", "a.jsonl"), "none: no such bundle or model file"),
        (("run", "BUNDLE", "--source", "none.mp4", "--json", "a.jsonl"), "none.mp4: no such file, folder or camera"),
        (("run", "BUNDLE", "--source", "98", "--json", "a.jsonl"), "camera 98: not there or in use"),
        (("run", "BUNDLE", "--source", SAMPLE_CLIP), "give --out VIDEO, --json FILE, --serve, --mqtt, --window or"),
        (("run", "BUNDLE", "--source", SAMPLE_CLIP, "--out", "a.gif"), "a.gif: unknown video type"),
        (("run", "BUNDLE", "--source", SAMPLE_CLIP, "--json", "a.jsonl", "--device", "tpu"), "no device 'tpu'"),
        (("run", "BUNDLE", "--source", SAMPLE_CLIP, "--json", "a", "--variant", "onnx-fp16"), "no variant 'onnx-fp16'"),
        (("validate", "BUNDLE", "--root", ".", "--data", "coco"), "needs one person_keypoints_*.json"),
        (("validate", "BUNDLE", "--root", "none"), "none: no such file or folder"),
        (("validate", "BUNDLE", "--root", ".", "--data", "h36m"), "h36m holds 3D poses for lifting models"),
        (("validate", "a.npz", "--root", "."), "3D poses need --data h36m or mpi-inf-3dhp"),
        (("validate", "a.json", "--root", ".", "--data", "lsp"), "keypoint results are scored with --data coco"),
        (("validate", "BUNDLE", "--data", "unlabeled", "--root", "."), "no images here"),
        (("validate", "BUNDLE", "--data", "unlabeled", "--root", ".", "--baseline", "x"), "--baseline x: not among"),
        (("bench", "BUNDLE", "--variants", "onnx-fp16"), "no variant 'onnx-fp16'"),
        (("inspect", "none.onnx"), "none.onnx: no such bundle or model file"),
        (("models", "--download", STARTER_MODEL), "has no published weights to download"),
        (("frobnicate",), "No such command 'frobnicate'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(edgepose, starter_bundle, tmp_path, arguments, message):
    arguments = [starter_bundle if a == "BUNDLE" else a for a in arguments]
    one_line(edgepose(*arguments, cwd=tmp_path, code=2), message)
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_are_there_are_kept(edgepose, starter_bundle, tmp_path):
    (tmp_path / "a.jsonl").write_text("mine")
    arguments = ("run", starter_bundle, "--source", SAMPLE_CLIP, "--json", tmp_path / "a.jsonl", "--max-frames", 2)
    one_line(edgepose(*arguments, code=2), "a.jsonl: exists: give another name, or --force to replace it")
    assert (tmp_path / "a.jsonl").read_text() == "mine"
    edgepose(*arguments, "--force")
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 2


def test_no_permission_to_write(edgepose, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    if os.access(tmp_path / "locked", os.W_OK):
        pytest.skip("this user (root) may write everywhere")
    target = tmp_path / "locked" / "b"
    one_line(
        edgepose("convert", STARTER_WEIGHTS, *CONVERT[:2], "-o", target, "--precision", "fp32", code=2),
        "Permission denied",
    )


@pytest.mark.parametrize("path", ["/proc/edgepose/bundle", "/dev/null/bundle"])
def test_an_output_that_cannot_be_made(edgepose, path):
    arguments = ("convert", STARTER_WEIGHTS, "--model", STARTER_MODEL, "-o", path, "--precision", "fp32")
    one_line(edgepose(*arguments, code=2), "choose another output")


def test_debug_shows_the_traceback(edgepose):
    assert "Traceback" in edgepose("--debug", "inspect", "none", code=1).stderr


def test_an_interrupt_that_a_library_turns_into_another_error(tmp_path):
    """Seen with onnxruntime: interrupted while it is imported, it says "initialization failed"."""
    code = (
        "import os, signal, sys\n"
        "from edgepose.cli import main\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'onnxruntime':\n"
        "            try:\n"
        "                os.kill(os.getpid(), signal.SIGTERM)\n"
        "            except KeyboardInterrupt as error:\n"
        "                raise ImportError('initialization failed') from error\n"
        "sys.meta_path.insert(0, Finder())\n"
        f"main(['inspect', {str(tmp_path / 'model.onnx')!r}])\n"
    )
    (tmp_path / "model.onnx").write_bytes(b"x")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (130, "error: interrupted")


@pytest.mark.parametrize("stop", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_conversion_leaves_nothing(tmp_path, stop):
    command = [sys.executable, "-m", "edgepose", "convert", "--random", "--model", STARTER_MODEL, "-o", "bundle"]
    process = subprocess.Popen(
        [*command, "--calib", str(SAMPLE_CLIP)], cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".bundle.*/onnx-fp32.onnx")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(stop)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.splitlines()[-1]) == (130, "error: interrupted")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_keeps_what_it_has(starter_bundle, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for i in range(4000):
        (images / f"{i:04}.png").symlink_to(tmp_path / "one.png")
    cv2.imwrite(str(tmp_path / "one.png"), np.zeros((600, 800, 3), np.uint8))
    command = [sys.executable, "-m", "edgepose", "run", str(starter_bundle), "--source", str(images)]
    outputs = ["--out", str(tmp_path / "out.avi"), "--json", str(tmp_path / "poses.jsonl")]
    process = subprocess.Popen([*command, *outputs], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.*.avi")) or next(tmp_path.glob(".out.*.avi")).stat().st_size < 10_000:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    written = len((tmp_path / "poses.jsonl").read_text().splitlines())
    assert 0 < written < 4000
    assert abs(len(list(open_source(str(tmp_path / "out.avi")))) - written) <= 1
    assert not list(tmp_path.glob(".*partial*"))


def test_the_demo_shows_the_whole_product(edgepose, tmp_path):
    done = edgepose("demo", "-o", tmp_path / "demo")
    steps = (
        "1. convert",
        "mean OKS",
        "2. convert",
        "shift mm",
        "3. run",
        "80 frames",
        "4. measure",
        "p50 ms",
        "5. compare",
    )
    for part in (*steps, "onnx-int8 > onnx-int8", "Look at"):
        assert part in done.stdout
    names = {p.name for p in (tmp_path / "demo").iterdir()}
    assert names == {"bundle", "lifter", "annotated.mp4", "poses.jsonl"}
    last = json.loads((tmp_path / "demo" / "poses.jsonl").read_text().splitlines()[-1])
    assert np.shape(last["people"][0]["keypoints_xyz"]) == (17, 3)
    one_line(edgepose("demo", "-o", tmp_path / "demo", code=2), "a bundle is there already")
