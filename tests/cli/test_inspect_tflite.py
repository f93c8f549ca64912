"""``edgepose inspect`` of .tflite files: operators, INT8 readiness, and attaching a specification."""

from __future__ import annotations

import json
import shutil

import pytest

from edgepose.bundle import MANIFEST
from edgepose.runtimes.tflite_file import read_tflite, with_metadata
from edgepose.types import ORIGIN_KEY, SPEC_KEY, ModelSpec

SPEC = ModelSpec.pose2d("tiny", (32, 32), "lsp14")


@pytest.fixture
def model(tiny, tmp_path):
    """A file without a specification."""
    return shutil.copy(tiny / "int8.tflite", tmp_path / "other.tflite")


@pytest.fixture
def spec_file(tmp_path):
    path = tmp_path / "spec.json"
    path.write_text(SPEC.to_json())
    return path


def test_operators_and_what_would_leave_an_int8_delegate(edgepose, model):
    done = edgepose("inspect", model)
    assert "CONV_2D" in done.stdout
    assert "float32 tensors" in done.stdout
    assert "16 of 19 operators (84%) would leave an INT8-only delegate" in done.stdout
    assert f"attach one with edgepose inspect {model} --attach spec.json" in done.stderr


def test_json(edgepose, model):
    data = json.loads(edgepose("inspect", model, "--json").stdout)
    assert (data["spec"], data["origin"]) == (None, {})
    assert data["inputs"] == [{"name": "image", "dtype": "uint8", "shape": [1, 32, 32, 3]}]
    assert data["outputs"] == [{"name": "heatmaps", "dtype": "float32", "shape": [1, 14, 8, 8]}]
    assert sum(data["operators"].values()) == data["int8_delegate"]["operators"] == 19
    assert data["int8_delegate"]["leaving"] == sum(row["count"] for row in data["int8_delegate"]["rows"]) == 16
    assert data["int8_delegate"]["share"] == pytest.approx(16 / 19)


def test_a_specification_is_attached_and_the_file_runs(edgepose, model, spec_file, tmp_path):
    before = model.read_bytes()
    message = edgepose("bench", model, code=2).stderr
    assert "other.tflite: carries no edgepose specification: convert the checkpoint with edgepose convert" in message
    assert f", or attach one: edgepose inspect {model} --attach spec.json" in message
    text = edgepose("inspect", model, "--attach", spec_file).stdout
    assert "tiny (pose2d)" in text
    assert model.read_bytes().endswith(before)
    assert json.loads(edgepose("inspect", model, "--json").stdout)["spec"] == json.loads(SPEC.to_json())
    assert not list(tmp_path.glob("*.partial*"))
    assert "other" in edgepose("bench", model, "--iterations", "1", "--warmup", "0").stdout


def test_attaching_again_needs_force_or_another_file(edgepose, model, spec_file, tmp_path):
    edgepose("inspect", model, "--attach", spec_file)
    written = model.read_bytes()
    assert (
        "has a specification already: give --output, or --force"
        in edgepose("inspect", model, "--attach", spec_file, code=2).stderr
    )
    edgepose("inspect", model, "--attach", spec_file, "--force")
    assert model.read_bytes() == written
    copy = tmp_path / "copy.tflite"
    edgepose("inspect", model, "--attach", spec_file, "--output", copy)
    assert copy.read_bytes() == written
    assert (
        "copy.tflite: exists: give another name, or --force"
        in edgepose("inspect", model, "--attach", spec_file, "--output", copy, code=2).stderr
    )


def test_the_specification_may_come_from_what_inspect_prints(edgepose, model, tmp_path):
    (tmp_path / "printed.json").write_text(json.dumps({"file": "x", "spec": json.loads(SPEC.to_json())}))
    edgepose("inspect", model, "--attach", tmp_path / "printed.json")
    assert read_tflite(model).text()[SPEC_KEY] == SPEC.to_json()


def test_origin_is_shown(edgepose, model):
    entries = {SPEC_KEY: SPEC.to_json().encode(), ORIGIN_KEY: b'{"checkpoint": "model.pth"}'}
    model.write_bytes(with_metadata(model.read_bytes(), entries))
    assert "model.pth" in edgepose("inspect", model).stdout


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ModelSpec.pose2d("x", (64, 64), "lsp14").to_json(), "image uint8 (N, 64, 64, 3) and heatmaps"),
        (ModelSpec.pose2d("x", (32, 32), "coco17").to_json(), "heatmaps float32 (N, 17, 8, 8): nothing was attached"),
        ("{", "spec.json: is no JSON"),
        ("[]", "spec.json: the embedded model specification is damaged"),
        ("{}", "spec.json: the embedded model specification is damaged"),
        ('{"version": 99}', "spec.json: model specification version 99, this edgepose reads 1"),
        (None, "spec.json: cannot be read (No such file or directory)"),
    ],
)
def test_specifications_that_are_refused_leave_the_file_as_it_is(edgepose, model, spec_file, spec, message):
    before = model.read_bytes()
    spec_file.unlink() if spec is None else spec_file.write_text(spec)
    error = edgepose("inspect", model, "--attach", spec_file, code=2).stderr
    assert message in error
    assert len(error.splitlines()) == 1
    assert model.read_bytes() == before


def test_other_refusals(edgepose, model, spec_file, tmp_path):
    assert "--output and --force go with --attach" in edgepose("inspect", model, "--force", code=2).stderr
    other = tmp_path / "model.onnx"
    other.write_bytes(b"x")
    assert "attached to .tflite files alone" in edgepose("inspect", other, "--attach", spec_file, code=2).stderr
    none = tmp_path / "none.tflite"
    assert "none.tflite: cannot be read" in edgepose("inspect", none, "--attach", spec_file, code=2).stderr
    assert "none.tflite: no such bundle or model file" in edgepose("inspect", none, code=2).stderr
    model.write_bytes(model.read_bytes()[:999])
    for arguments in ((), ("--attach", spec_file)):
        assert "other.tflite: damaged TFLite file" in edgepose("inspect", model, *arguments, code=2).stderr


def test_a_file_of_a_bundle_is_not_edited(edgepose, tiny, starter_bundle, spec_file, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(starter_bundle, bundle)
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["files"]["tflite-fp32.tflite"] = {"bytes": 1, "sha256": "0"}
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    shutil.copy(tiny / "fp32.tflite", bundle / "tflite-fp32.tflite")
    error = edgepose("inspect", bundle / "tflite-fp32.tflite", "--attach", spec_file, code=2).stderr
    assert "tflite-fp32.tflite: is part of a bundle, whose manifest holds its hash: give --output" in error
