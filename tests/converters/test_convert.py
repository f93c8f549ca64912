"""A checkpoint becomes a bundle, or nothing does."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

from edgepose import BundleError, ConversionError, DatasetError, GateError
from edgepose.assets import SAMPLE_CLIP, STARTER_MODEL, STARTER_WEIGHTS
from edgepose.bundle import Bundle
from edgepose.converters import convert as module
from edgepose.converters import variants
from edgepose.converters.budget import Budget, rank_blocks
from edgepose.converters.checkpoint import build_random, load_checkpoint
from edgepose.converters.convert import convert
from edgepose.converters.recipes import get_recipe
from edgepose.files import sha256_file
from edgepose.models.registry import get_model
from edgepose.runtimes.load import load

ROW = get_model(STARTER_MODEL)
FILES = ("golden.npz", "calibration.json", "evidence.json", "report.html")
BOTH = ["onnx-fp32", "onnx-int8"]


@pytest.fixture(scope="module")
def checkpoint():
    return load_checkpoint(STARTER_WEIGHTS, ROW)


def test_the_bundle_is_complete(starter_bundle):
    bundle = Bundle.open(starter_bundle)
    assert [v.name for v in bundle.variants] == BOTH
    assert set(bundle.files) == {*(v.file for v in bundle.variants), *FILES}
    assert bundle.provenance["checkpoint"]["sha256"] == sha256_file(STARTER_WEIGHTS)
    assert bundle.provenance["versions"]["torch"]
    assert bundle.variant("onnx-int8").recipe["quantizer"]["name"] in ("onnxruntime-x86", "onnxruntime-arm")
    calibration = json.loads((starter_bundle / "calibration.json").read_text())
    used = calibration["calibrated_on"], calibration["verified_on"]
    assert used == (16, len(calibration["crops"]) - 16)
    assert 20 <= used[1] <= 32  # of 80 frames, about half show what another one shows
    assert len({row["file"] for row in calibration["crops"]}) == sum(used)  # none is calibrated on and verified with


def test_int8_is_int8_small_and_close(starter_bundle, clip_frames):
    quantized = onnx.load(starter_bundle / "onnx-int8.onnx")
    assert sum(node.op_type == "QuantizeLinear" for node in quantized.graph.node) > 20
    sizes = [(starter_bundle / f"{name}.onnx").stat().st_size for name in BOTH]
    assert sizes[1] / sizes[0] <= 0.30
    fp32, int8 = (load(starter_bundle, variant=name) for name in BOTH)
    region, _, found = fp32.best_region(clip_frames[40])
    assert found
    shift = fp32.poses_at(clip_frames[40], region).keypoints_xy - int8.poses_at(clip_frames[40], region).keypoints_xy
    assert np.median(np.linalg.norm(shift, axis=-1)) < 3  # frame pixels, a person of 350


def test_the_same_inputs_give_the_same_bytes(starter_bundle, checkpoint, tmp_path):
    convert(checkpoint, tmp_path / "again", BOTH, calibration=SAMPLE_CLIP, calibration_size=16)
    for name in ("onnx-fp32.onnx", "onnx-int8.onnx", "golden.npz", "calibration.json"):
        assert sha256_file(tmp_path / "again" / name) == sha256_file(starter_bundle / name), name


def test_an_existing_bundle_is_replaced_only_by_force(starter_bundle, checkpoint, tmp_path, quick_export):
    target = tmp_path / "bundle"
    shutil.copytree(starter_bundle, target)
    with pytest.raises(BundleError, match="a bundle is there already: choose another output, or --force"):
        convert(checkpoint, target, ["onnx-fp32"])
    assert (target / "onnx-int8.onnx").exists()
    convert(checkpoint, target, ["onnx-fp32"], force=True)
    assert [v.name for v in Bundle.open(target).variants] == ["onnx-fp32"]
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_force_does_not_touch_what_is_no_bundle(checkpoint, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="holds files that are no bundle and is left alone"):
        convert(checkpoint, tmp_path, ["onnx-fp32"], force=True)
    assert (tmp_path / "thesis.txt").exists()


@pytest.fixture
def quick_export(starter_bundle, monkeypatch):
    """Copy the starter's FP32 file instead of exporting it again, where the export is not what is tested."""
    monkeypatch.setattr(
        variants, "export_onnx", lambda model, spec, path, origin: shutil.copy(starter_bundle / "onnx-fp32.onnx", path)
    )


@pytest.mark.parametrize(
    ("when", "what"),
    [
        ("variants.export_onnx", KeyboardInterrupt),
        ("variants.quantize", KeyboardInterrupt),
        ("tasks.compare_on_crops", RuntimeError),
    ],
)
def test_nothing_is_left_of_a_conversion_that_stops_in_the_middle(
    checkpoint, tmp_path, monkeypatch, quick_export, when, what
):
    def stop(*_args, **_kwargs):
        raise what

    monkeypatch.setattr(f"edgepose.converters.{when}", stop)
    with pytest.raises(what):
        convert(checkpoint, tmp_path / "bundle", BOTH, calibration=SAMPLE_CLIP, calibration_size=8)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_replacement_keeps_the_old_bundle(starter_bundle, checkpoint, tmp_path, monkeypatch):
    target = tmp_path / "bundle"
    shutil.copytree(starter_bundle, target)
    monkeypatch.setattr(variants, "export_onnx", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint, target, ["onnx-fp32"], force=True)
    assert len(Bundle.open(target).variants) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_a_wrong_export_is_not_shipped(checkpoint, tmp_path, monkeypatch):
    """A planted fault: the exporter writes a model with one weight changed."""
    export = variants.export_onnx

    def broken(model, spec, path, origin):
        export(model, spec, path, origin)
        proto = onnx.load(path)
        tensor = next(t for t in proto.graph.initializer if t.name.endswith("final_layer.maps.bias"))
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) + 0.1, tensor.name))
        onnx.save(proto, path)

    monkeypatch.setattr(variants, "export_onnx", broken)
    with pytest.raises(ConversionError, match=r"the exported ONNX model is \d+\.\d+% off the torch model"):
        convert(checkpoint, tmp_path / "bundle", ["onnx-fp32"])
    assert list(tmp_path.iterdir()) == []


def test_random_weights_are_marked(tmp_path):
    conversion = convert(build_random(ROW, 3), tmp_path / "bundle", ["onnx-fp32"], seed=3)
    assert Bundle.open(tmp_path / "bundle").provenance["checkpoint"] == {
        "file": None,
        "sha256": None,
        "random": True,
        "seed": 3,
    }
    assert conversion.notes == ("no --calib: verified on seeded noise, not on pictures",)


@pytest.mark.parametrize(
    ("variants", "error", "message"),
    [
        (["onnx-int8"], ConversionError, "onnx-int8: needs samples to calibrate with: --calib"),
        (
            ["tensorrt-fp32"],
            ConversionError,
            "tensorrt-fp32: this version converts to onnx-fp32, onnx-int8",
        ),
        (["onnx-int3"], BundleError, "variant 'onnx-int3': expected <format>-<precision>"),
        ([], ConversionError, "nothing to convert to"),
    ],
)
def test_variants_that_cannot_be_made(checkpoint, tmp_path, variants, error, message):
    with pytest.raises(error, match=message):
        convert(checkpoint, tmp_path / "bundle", variants)
    assert list(tmp_path.iterdir()) == []


def pictures(folder: Path, good: int, bad: int, frames) -> Path:
    folder.mkdir()
    for i in range(good):
        cv2.imwrite(str(folder / f"good{i:02}.jpg"), cv2.add(frames[3 * i + 20], (2.0 * i,) * 4))
    for i in range(bad):
        (folder / f"bad{i:02}.jpg").write_bytes(b"no picture")
    return folder


def test_unreadable_pictures_are_skipped_and_counted(checkpoint, tmp_path, clip_frames, quick_export):
    folder = pictures(tmp_path / "pictures", 14, 3, clip_frames)
    conversion = convert(checkpoint, tmp_path / "bundle", BOTH, calibration=folder)
    assert conversion.notes == ("3 calibration files could not be read: bad00.jpg, bad01.jpg, bad02.jpg",)
    assert conversion.calibrated_on + conversion.verified_on == 14


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        (0, 0, "no images here"),
        (3, 2, r"3 usable crops of 5 candidates, 2 files unreadable \(bad00.jpg, bad01.jpg\); at least 9 different"),
    ],
)
def test_too_few_pictures(checkpoint, tmp_path, clip_frames, quick_export, good, bad, message):
    folder = pictures(tmp_path / "pictures", good, bad, clip_frames)
    with pytest.raises(DatasetError, match=message):
        convert(checkpoint, tmp_path / "bundle", BOTH, calibration=folder)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("name", ["none", "video.mp4", "annotations.json"])
def test_calibration_paths_that_do_not_work(checkpoint, tmp_path, quick_export, name):
    path = tmp_path / name
    if "." in name:
        path.write_bytes(b"{}")
    with pytest.raises(DatasetError, match=name):
        convert(checkpoint, tmp_path / "bundle", BOTH, calibration=path)


@pytest.mark.slow
def test_quantizing_sends_and_stores_no_usage_statistics(tmp_path, edgepose, monkeypatch):
    """NNCF brings openvino_telemetry, which would leave its client id in the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = ("--random", "--model", STARTER_MODEL, "--calib", SAMPLE_CLIP, "--calib-size", 8, "-o", tmp_path / "b")
    edgepose("convert", *arguments)
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".")) == ["b"]


@pytest.fixture
def hard(checkpoint):
    """The starter with one encoder layer whose hidden units differ by a factor of 400: the same function in float."""
    model = copy.deepcopy(checkpoint.model)
    layer = model.global_encoder.layers[1]
    factor = torch.ones(layer.linear1.out_features)
    factor[::16] = 400
    with torch.no_grad():
        layer.linear1.weight.mul_(factor[:, None])
        layer.linear1.bias.mul_(factor)
        layer.linear2.weight.div_(factor)
    return dataclasses.replace(checkpoint, model=model)


@pytest.mark.slow
def test_the_search_finds_the_layer_that_hurts_and_keeps_the_budget(hard, tmp_path, monkeypatch):
    def rank_some(make, recipe, layers, *rest):  # for time
        return rank_blocks(make, recipe, [name for name in layers if name.startswith(("global", "reduce"))], *rest)

    monkeypatch.setattr(module, "rank_blocks", rank_some)
    plain = convert(hard, tmp_path / "plain", ["onnx-int8"], calibration=SAMPLE_CLIP, calibration_size=16)
    lost = 100 * (1 - plain.rows[0].agreement.mean_oks)
    assert lost > 2
    found = convert(
        hard, tmp_path / "b", ["onnx-int8"], calibration=SAMPLE_CLIP, calibration_size=16, budget=Budget(lost / 4)
    )
    assert 100 * (1 - found.rows[0].agreement.mean_oks) <= lost / 4
    recipe = Bundle.open(tmp_path / "b").variant("onnx-int8").recipe["quantizer"]
    assert all(layer.startswith("global_encoder.layers.1.") for layer in recipe["float_layers"])
    assert len(recipe["float_layers"]) == 6  # four layers with weights, and the two products of attention
    assert any("with global_encoder.layers.1 in float it loses" in note for note in found.notes)


def test_a_budget_that_nothing_keeps_makes_no_bundle(hard, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "rank_blocks", lambda *a: [])
    with pytest.raises(GateError, match="INT8 cannot keep within 0 points"):
        convert(hard, tmp_path / "b", ["onnx-int8"], calibration=SAMPLE_CLIP, calibration_size=8, budget=Budget(0.0))
    assert list(tmp_path.iterdir()) == []


def test_half_precision_passes_the_same_gate(checkpoint, tmp_path):
    pytest.importorskip("openvino", reason="openvino is not installed")
    with pytest.raises(
        GateError,
        match=r"no variant keeps .* openvino-fp16 is left out: openvino-fp16 loses 0\.00 points, 0 are allowed",
    ):
        convert(
            checkpoint,
            tmp_path / "b",
            ["openvino-fp16"],
            calibration=SAMPLE_CLIP,
            calibration_size=8,
            budget=Budget(0.0),
            keep_fastest=True,
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_auto_keeps_one_variant_per_format_and_says_what_lost(checkpoint, tmp_path):
    conversion = convert(
        checkpoint,
        tmp_path / "b",
        BOTH,
        calibration=SAMPLE_CLIP,
        calibration_size=8,
        budget=Budget(1.0),
        keep_fastest=True,
    )
    bundle = Bundle.open(tmp_path / "b")
    assert len(bundle.variants) == len(conversion.rows) == 1
    assert {p.suffix for p in bundle.path.iterdir() if p.stem.startswith("onnx-")} == {".onnx"}
    assert any("is the fastest onnx model within the budget" in note for note in conversion.notes)
    assert any("is left out: " in note for note in conversion.notes)


def test_a_recipe_for_an_engine_that_is_not_asked_for_is_an_error(checkpoint, tmp_path):
    recipes = {"openvino": get_recipe("openvino-avx2")}
    with pytest.raises(ConversionError, match="recipe openvino-avx2: none of onnx-fp32 is for that engine"):
        convert(checkpoint, tmp_path / "b", ["onnx-fp32"], recipes=recipes)
    assert list(tmp_path.iterdir()) == []
