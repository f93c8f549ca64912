"""edgepose.load: what it opens, what it prefers, and what it refuses."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest

import edgepose
from edgepose import BundleError, EngineError
from edgepose.bundle import MANIFEST
from edgepose.files import sha256_file


@pytest.fixture
def bundle(starter_bundle, tmp_path):
    """A copy that a test may spoil."""
    shutil.copytree(starter_bundle, tmp_path / "bundle")
    return tmp_path / "bundle"


def edit_manifest(bundle, edit):
    path = bundle / MANIFEST
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def rehash(bundle, name):
    """Make the manifest agree with an edited file: what an unlucky driver looks like, not what a person edits."""

    def edit(data):
        data["files"][name] = {"bytes": (bundle / name).stat().st_size, "sha256": sha256_file(bundle / name)}

    edit_manifest(bundle, edit)


def test_a_bundle_gives_int8_on_a_cpu_and_any_variant_by_name(starter_bundle):
    assert edgepose.load(starter_bundle).variant == "onnx-int8"
    assert edgepose.load(starter_bundle, variant="onnx-fp32").variant == "onnx-fp32"
    assert edgepose.load(str(starter_bundle / "onnx-fp32.onnx"), threads=1).variant == "onnx-fp32"


def test_a_lone_file_runs(starter_bundle, tmp_path, clip_frames):
    shutil.copy(starter_bundle / "onnx-int8.onnx", tmp_path / "model.onnx")
    lone, whole = edgepose.load(tmp_path / "model.onnx"), edgepose.load(starter_bundle)
    assert lone.spec == whole.spec
    poses = lone.estimate(clip_frames[40])
    np.testing.assert_array_equal(poses.keypoints_xy, whole.estimate(clip_frames[40]).keypoints_xy)


def test_an_edited_file_is_refused(bundle):
    data = bytearray((bundle / "onnx-int8.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "onnx-int8.onnx").write_bytes(data)
    with pytest.raises(
        BundleError, match=r"onnx-int8.onnx: SHA-256 differs from the manifest: edited since conversion"
    ):
        edgepose.load(bundle)


def test_a_truncated_file_is_refused(bundle):
    data = (bundle / "onnx-int8.onnx").read_bytes()
    (bundle / "onnx-int8.onnx").write_bytes(data[:1000])
    with pytest.raises(BundleError, match=rf"onnx-int8.onnx: 1,000 bytes, the manifest says {len(data):,}: truncated"):
        edgepose.load(bundle)


def test_a_lone_truncated_file_is_refused(starter_bundle, tmp_path):
    (tmp_path / "cut.onnx").write_bytes((starter_bundle / "onnx-int8.onnx").read_bytes()[:100_000])
    with pytest.raises(EngineError, match=r"cut.onnx: onnxruntime cannot load it"):
        edgepose.load(tmp_path / "cut.onnx")


def test_a_missing_file_is_named(bundle):
    (bundle / "onnx-int8.onnx").unlink()
    with pytest.raises(BundleError, match=r"onnx-int8.onnx: missing from the bundle: copy the whole folder"):
        edgepose.load(bundle)


def test_a_file_without_a_specification_is_refused(starter_bundle, tmp_path):
    model = onnx.load(starter_bundle / "onnx-fp32.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(BundleError, match=r"bare.onnx: carries no edgepose specification: convert the checkpoint"):
        edgepose.load(tmp_path / "bare.onnx")


def test_a_specification_of_another_model_is_refused(starter_bundle, tmp_path):
    model = onnx.load(starter_bundle / "onnx-fp32.onnx")
    spec = edgepose.ModelSpec.pose2d("other", (256, 192), "coco17")
    model.metadata_props[0].value = spec.to_json()
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(BundleError, match=r"other.onnx: its tensors .* do not fit its specification"):
        edgepose.load(tmp_path / "other.onnx")


def scale_one_weight(path):
    """A planted fault: one layer's weights are doubled, as a broken kernel or a wrong scale would have it."""
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if "layer2.0.conv3.weight" in t.name and len(t.dims) == 4)
    array = onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(onnx.numpy_helper.from_array((array * 2).astype(array.dtype), tensor.name))
    onnx.save(model, path)


@pytest.mark.parametrize("variant", ["onnx-fp32", "onnx-int8"])
def test_the_self_test_catches_a_wrong_answer(bundle, variant):
    scale_one_weight(bundle / f"{variant}.onnx")
    rehash(bundle, f"{variant}.onnx")
    with pytest.raises(
        EngineError, match=r"self-test failed on onnxruntime cpu: heatmaps are .*% off the FP32 answers"
    ):
        edgepose.load(bundle, variant=variant)
    assert edgepose.load(bundle, variant=variant, self_test=False)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "no such bundle or model file"),
        (lambda b: (b / MANIFEST).unlink(), "not a bundle .no manifest.json.: make one with edgepose convert"),
        (lambda b: (b / MANIFEST).write_text("{"), "manifest.json: damaged"),
        (lambda b: (b / MANIFEST).write_text("[]"), "manifest.json: damaged"),
        (lambda b: edit_manifest(b, lambda d: d.update(schema_version=99)), "schema version 99, this edgepose reads 1"),
        (lambda b: edit_manifest(b, lambda d: d.pop("variants")), "manifest.json: damaged"),
        (
            lambda b: edit_manifest(b, lambda d: d["variants"][0].update(files=["../x.onnx"])),
            "is not a plain file name",
        ),
        (lambda b: edit_manifest(b, lambda d: d["variants"][0].update(name="onnx")), "variant 'onnx': expected"),
        (lambda b: edit_manifest(b, lambda d: d.update(variants=[])), "has no variants"),
        (lambda b: edit_manifest(b, lambda d: d["variants"][1].update(golden_error=None)), "manifest.json: damaged"),
        (lambda b: edit_manifest(b, lambda d: d["variants"][1].update(recipe=[])), "manifest.json: damaged"),
        (lambda b: edit_manifest(b, lambda d: d["files"]["golden.npz"].update(bytes="x")), "manifest.json: damaged"),
        (lambda b: edit_manifest(b, lambda d: d.update(provenance={})), "manifest.json: damaged"),
        (lambda b: (b / MANIFEST).write_text("[" * 99999), "manifest.json: damaged"),
        (
            lambda b: edit_manifest(b, lambda d: d["spec"].update(crop_padding=1.5)),
            "specification is not the manifest's",
        ),
        (lambda b: (b / "golden.npz").write_bytes(b"x"), "golden.npz: 1 bytes, the manifest says"),
    ],
)
def test_damaged_bundles(bundle, spoil, message):
    spoil(bundle)
    with pytest.raises(BundleError, match=message):
        edgepose.load(bundle)


def test_golden_inputs_cannot_carry_code(bundle):
    np.savez(bundle / "golden.npz", image=np.array([{}], dtype=object), heatmaps=np.zeros(1))
    rehash(bundle, "golden.npz")
    with pytest.raises(BundleError, match=r"golden.npz: damaged \(Object arrays cannot be loaded"):
        edgepose.load(bundle)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04"])
def test_golden_inputs_that_are_no_archive(bundle, content):
    (bundle / "golden.npz").write_bytes(content)
    rehash(bundle, "golden.npz")
    with pytest.raises(BundleError, match=r"golden.npz: damaged"):
        edgepose.load(bundle)


def test_a_model_in_a_bundle_needs_its_specification_too(bundle):
    model = onnx.load(bundle / "onnx-int8.onnx")
    del model.metadata_props[:]
    onnx.save(model, bundle / "onnx-int8.onnx")
    rehash(bundle, "onnx-int8.onnx")
    with pytest.raises(BundleError, match=r"onnx-int8.onnx: carries no edgepose specification"):
        edgepose.load(bundle)


def test_a_file_has_no_other_variants(starter_bundle):
    with pytest.raises(BundleError, match="is one model file, variant 'onnx-int8' cannot be chosen from it"):
        edgepose.load(starter_bundle / "onnx-fp32.onnx", variant="onnx-int8")


def test_a_lone_file_says_where_it_comes_from(starter_bundle):
    metadata = edgepose.load(starter_bundle / "onnx-int8.onnx").engine.metadata
    origin = json.loads(metadata["edgepose.origin"])
    assert origin["checkpoint"]["file"] == "transpose-r-t-lspet.pth"
    assert origin["recipe"]["quantizer"]["name"] in ("onnxruntime-x86", "onnxruntime-arm")
    assert origin["versions"]["nncf"]


def test_an_unknown_variant_is_named_with_the_known_ones(starter_bundle):
    with pytest.raises(BundleError, match="no variant 'onnx-fp16'; there are: onnx-fp32, onnx-int8"):
        edgepose.load(starter_bundle, variant="onnx-fp16")
