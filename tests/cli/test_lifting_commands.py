"""run --lift, validate --chain and lifting bundles on the command line."""

from __future__ import annotations

import json

from edgepose.assets import SAMPLE_CLIP
from edgepose.sources import open_source


def test_run_lifts(edgepose, starter_bundle, lifter_bundle, tmp_path):
    done = edgepose(
        *("run", starter_bundle, "--lift", lifter_bundle, "--source", SAMPLE_CLIP, "--max-frames", 20),
        *("--out", tmp_path / "v.mp4", "--json", tmp_path / "p.jsonl"),
    )
    assert "ampose-s onnx-int8 on onnxruntime cpu" in done.stderr
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert {line["skeleton_xyz"] for line in lines} == {"h36m17"}
    assert any(person["keypoints_xyz"] for line in lines for person in line["people"])
    frame = next(iter(open_source(str(tmp_path / "v.mp4")))).image_bgr
    assert frame.shape == (432, 768 + 258, 3)


def test_bundles_in_each_others_place_are_refused(edgepose, starter_bundle, lifter_bundle, tmp_path):
    out = ("--source", SAMPLE_CLIP, "--json", tmp_path / "p.jsonl")
    done = edgepose("run", lifter_bundle, *out, code=2)
    assert "ampose-s lifts 2D joints into space" in done.stderr
    assert "--lift" in done.stderr
    done = edgepose("run", starter_bundle, "--lift", starter_bundle, *out, code=2)
    assert "transpose-r-t finds joints in pictures, and a lifting model (2D to 3D) is needed here" in done.stderr
    done = edgepose("validate", lifter_bundle, "--chain", starter_bundle, "--root", SAMPLE_CLIP, code=2)
    assert "--chain begins with a 2D bundle, and this is a lifting one: swap the two" in done.stderr
    done = edgepose("validate", starter_bundle, "--chain", starter_bundle, "--root", SAMPLE_CLIP, code=2)
    assert "--chain: a bundle of a lifting model (2D to 3D) is needed, and this one takes pictures" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_chain_is_a_gate(edgepose, starter_bundle, lifter_bundle, tmp_path):
    arguments = ("validate", starter_bundle, "--chain", lifter_bundle, "--root", SAMPLE_CLIP, "--limit", 20)
    done = edgepose(*arguments, "--max-drop", "500", "--json", tmp_path / "c.json", "--report", tmp_path / "r")
    assert "onnx-int8 > onnx-int8: its joints are" in done.stdout
    assert "within the 500.0 mm allowed" in done.stdout
    figures = json.loads((tmp_path / "c.json").read_text())
    assert figures["drops"].keys() == {
        f"onnx-{a} > onnx-{b}" for a, b in (("fp32", "int8"), ("int8", "fp32"), ("int8", "int8"))
    }
    assert "ampose-s" in json.dumps(figures["provenance"]["lifter"])
    assert {path.name for path in (tmp_path / "r").iterdir()} == {"report.html", "report.md", "evidence.json"}
    assert "FAILED" in edgepose(*arguments, "--max-drop", "0.001", code=1).stdout


def test_lifting_bundles_are_scored_on_poses_alone(edgepose, lifter_bundle, mocap_file):
    done = edgepose("validate", lifter_bundle, "--root", mocap_file)
    assert "MPJPE" in done.stdout
    assert "answers averaged with those for the mirrored pose" in done.stdout
    assert "answers without those" in edgepose("validate", lifter_bundle, "--root", mocap_file, "--no-flip").stdout
    done = edgepose("validate", lifter_bundle, "--root", SAMPLE_CLIP, code=2)
    assert (
        "a lifting model is scored on poses with their truth in space: give --data h36m, mpi-inf-3dhp, mocap"
        in done.stderr
    )
    assert "--chain BUNDLE3D" in done.stderr


def test_lifting_bundles_are_timed_and_shown(edgepose, lifter_bundle):
    assert "onnx-int8" in edgepose("bench", lifter_bundle, "--iterations", 3, "--warmup", 0).stdout
    shown = edgepose("inspect", lifter_bundle).stdout
    for part in ("ampose-s", "float32 (N, 17, 2)", "h36m17", "bbox"):
        assert part in shown


def test_a_normalisation_is_for_lifting_models(edgepose, tmp_path):
    out = ("-o", tmp_path / "b")
    done = edgepose(
        "convert",
        "--random",
        "--model",
        "transpose-r-t",
        "--precision",
        "fp32",
        "--normalisation",
        "bbox",
        *out,
        code=2,
    )
    assert "transpose-r-t: takes pictures and has no normalisation of keypoints" in done.stderr
    done = edgepose("convert", "--random", "--model", "ampose-s", "--input-size", "256x192", *out, code=2)
    assert "ampose-s: lifts keypoints and has no input size" in done.stderr
    edgepose("convert", "--random", "--model", "ampose-s", "--precision", "fp32", "--normalisation", "screen", *out)
    assert json.loads((tmp_path / "b" / "manifest.json").read_text())["spec"]["normalisation"] == "screen"
