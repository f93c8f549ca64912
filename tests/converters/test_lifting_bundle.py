"""A lifting model becomes a bundle: parity, INT8, golden inputs with a missing joint, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import edgepose
from edgepose import BundleError, ConversionError, EngineError
from edgepose.assets import LIFTER_MODEL, LIFTER_WEIGHTS, SAMPLE_CLIP, STARTER_MODEL, STARTER_WEIGHTS
from edgepose.bundle import Bundle
from edgepose.calibration.datasets.mocap import MocapPoses
from edgepose.calibration.lifting import lift_agreement, validate_lifting
from edgepose.converters.budget import Budget
from edgepose.converters.checkpoint import build_random, load_checkpoint
from edgepose.converters.convert import convert
from edgepose.converters.recipes import default_recipe
from edgepose.converters.reproduce import reproduce
from edgepose.converters.sensitivity import sensitivity
from edgepose.errors import GateError
from edgepose.lifting import MISSING
from edgepose.models.registry import get_model
from edgepose.runtimes.latency import measure_latency
from edgepose.runtimes.load import load_model

FLOAT = ("onnx-fp32", "openvino-fp32", "openvino-fp16", "tflite-fp32", "tflite-fp16", "torch-fp32")
INT8 = ("onnx-int8", "openvino-int8", "tflite-int8")
TINY = replace(get_model("ampose-s"), sizes={"d_model": 32, "layers": 1, "heads": 2})


@pytest.fixture(scope="module")
def checkpoint():
    return load_checkpoint(LIFTER_WEIGHTS, get_model(LIFTER_MODEL))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, mocap_file, checkpoint):
    """Every variant of the starter."""
    path = tmp_path_factory.mktemp("lifter") / "bundle"
    convert(checkpoint, path, [*FLOAT, *INT8], calibration=mocap_file, calibration_size=64)
    return path


def lifters(bundle, names):
    return {name: edgepose.load_lifter(bundle, variant=name) for name in names}


def test_every_float_variant_answers_as_torch_does(bundle, checkpoint, keypoints):
    with torch.inference_mode():
        truth = checkpoint.model(torch.from_numpy(keypoints)).numpy()
    for name, lifter in lifters(bundle, FLOAT).items():
        off_mm = 1000 * np.abs(lifter.lifted(keypoints, flip=False) - truth).max()
        assert off_mm < (0.1 if name.endswith("fp32") else 5), name


def test_int8_moves_joints_by_millimetres_and_missing_ones_do_no_harm(bundle, keypoints):
    truth = edgepose.load_lifter(bundle, variant="onnx-fp32").lifted(keypoints, flip=False)
    whole = (keypoints != MISSING).all(axis=(1, 2))
    assert 0 < whole.sum() < len(whole)
    for name, lifter in lifters(bundle, INT8).items():
        xyz = lifter.lifted(keypoints, flip=False)
        for part in (whole, ~whole):
            a = lift_agreement(truth[part], xyz[part], lifter.spec.joints.joints)
            assert a.mean_mm < 15, (name, a.mean_mm)


def test_the_pelvis_is_the_origin_in_every_variant(bundle, keypoints):
    for name, lifter in lifters(bundle, (*FLOAT, *INT8)).items():
        assert np.abs(lifter.lifted(keypoints)[:, 0]).max() < 1e-6, name


def test_no_recipe_touches_what_reads_the_keypoints(bundle):
    """A missing joint lies at -10: in 8 bits beside it, keypoints would be known to 2 % of the box."""
    for variant in Bundle.open(bundle).variants:
        if variant.name in INT8:
            layers = variant.recipe["quantizer"]["float_layers"]
            assert any(layer.startswith("embed/") for layer in layers), variant.name
    assert default_recipe("openvino", "lift3d").attention == "float"
    assert default_recipe("openvino").attention == "auto"


def test_the_golden_inputs_have_a_missing_joint_and_are_replayed(bundle, tmp_path):
    golden = Bundle.open(bundle).golden()
    assert golden.inputs.shape == (4, 17, 2)
    assert (golden.inputs[3, -1] == MISSING).all()
    shutil.copytree(bundle, tmp_path / "b")
    with np.load(tmp_path / "b" / "golden.npz") as data:
        spoilt = {name: data[name] for name in data.files}
    assert set(spoilt) == {"keypoints", "keypoints_xyz"}
    spoilt["keypoints_xyz"] = spoilt["keypoints_xyz"] * 1.5
    np.savez_compressed(tmp_path / "b" / "golden.npz", **spoilt)
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    from edgepose.files import sha256_file

    file = tmp_path / "b" / "golden.npz"
    manifest["files"]["golden.npz"] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        EngineError, match=r"self-test failed on onnxruntime cpu: keypoints_xyz are 33\.\d% off the FP32"
    ):
        edgepose.load_lifter(tmp_path / "b", variant="onnx-fp32")


def test_evidence_is_in_millimetres(bundle):
    rows = Bundle.open(bundle).read_json("evidence.json")["validation"]["rows"]
    assert {row["variant"] for row in rows} == {*FLOAT, *INT8}
    assert all(row["agreement"]["mean_mm"] < 15 for row in rows)
    assert "mm" in (bundle / "report.html").read_text()


def test_3d_is_refused_as_2d_and_the_reverse(bundle, starter_bundle):
    with pytest.raises(
        BundleError, match=r"bundle: ampose-s lifts 2D joints into space, and a model that takes pictures is"
    ):
        edgepose.load(bundle)
    with pytest.raises(BundleError, match="transpose-r-t finds joints in pictures, and a lifting model"):
        edgepose.load_lifter(starter_bundle)
    assert load_model(bundle).spec.task == "lift3d"


def test_a_lone_file_runs(bundle, tmp_path, keypoints):
    shutil.copy(bundle / "tflite-int8.tflite", tmp_path / "lifter.tflite")
    lone = edgepose.load_lifter(tmp_path / "lifter.tflite")
    np.testing.assert_array_equal(
        lone.lifted(keypoints), lifters(bundle, ["tflite-int8"])["tflite-int8"].lifted(keypoints)
    )


def test_latency_of_lifting_models_is_measured(bundle):
    rows = measure_latency(lifters(bundle, ("onnx-fp32", "onnx-int8")), iterations=3, warmup=1, batch=2)
    assert [row.variant for row in rows] == ["onnx-fp32", "onnx-int8"]
    assert all(row.infer_ms > 0 and row.pre_ms > 0 for row in rows)


def test_variants_are_scored_against_the_truth(bundle, mocap_file):
    found = validate_lifting(
        lifters(bundle, ("onnx-fp32", "onnx-int8")), MocapPoses(mocap_file), baseline="onnx-fp32", flip=False
    )
    base, int8 = found.rows
    assert (base.accuracy.metric, base.accuracy.unit) == ("MPJPE", "mm")
    assert found.drop_of(base) == 0
    assert base.agreement.mean_mm == 0
    assert found.drop_of(int8) == pytest.approx(int8.accuracy.value - base.accuracy.value)
    assert 0 < int8.agreement.mean_mm <= int8.agreement.worst_mm


def test_reproduce_makes_the_bundle_again(lifter_bundle, mocap_file):
    request = Bundle.open(lifter_bundle).provenance["request"]
    assert (request["input_hw"], request["normalisation"], request["keypoints_from"]) == (None, "bbox", None)
    again = reproduce(lifter_bundle, LIFTER_WEIGHTS, mocap_file)
    assert again.same, again


def test_the_lifter_calibrates_on_what_a_quantized_2d_model_finds(tmp_path, checkpoint, starter_bundle):
    path = tmp_path / "b"
    convert(
        checkpoint,
        path,
        ["onnx-int8"],
        calibration=SAMPLE_CLIP,
        keypoints_from=starter_bundle,
        calibration_size=16,
    )
    record = Bundle.open(path).read_json("calibration.json")
    assert record["keypoints_from"]["variant"] == "onnx-int8"
    assert record["keypoints_from"]["model"] == "transpose-r-t"
    assert record["calibrated_on"] + record["verified_on"] <= record["count"]
    with pytest.raises(
        ConversionError, match="was calibrated on joints that bundle found: give that bundle with --keypoints"
    ):
        reproduce(path, LIFTER_WEIGHTS, SAMPLE_CLIP)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs samples to calibrate with: --calib FOLDER, VIDEO or COCO.json, for a lifting model POSES.npz"),
        ({"calibration": SAMPLE_CLIP}, "calibrates on keypoints: give poses .*--keypoints-from"),
        (
            {"calibration": "mocap", "keypoints_from": "starter"},
            "holds poses: --keypoints-from goes with pictures or a",
        ),
        (
            {"calibration": SAMPLE_CLIP, "keypoints_from": "lifter"},
            "lifts 2D joints into space, and a model that takes",
        ),
    ],
)
def test_wrong_calibration_is_refused_and_leaves_nothing(
    tmp_path, mocap_file, starter_bundle, bundle, arguments, message
):
    given = {"mocap": mocap_file, "starter": starter_bundle, "lifter": bundle}
    arguments = {key: given.get(value, value) if isinstance(value, str) else value for key, value in arguments.items()}
    with pytest.raises((ConversionError, BundleError), match=message):
        convert(build_random(TINY, 0), tmp_path / "b", ["onnx-fp32", "onnx-int8"], **arguments)
    assert not list(tmp_path.iterdir())


def test_a_2d_model_takes_no_keypoints(tmp_path, starter_bundle):
    starter = load_checkpoint(STARTER_WEIGHTS, get_model(STARTER_MODEL))
    with pytest.raises(ConversionError, match="takes pictures: --keypoints-from is for lifting models"):
        convert(starter, tmp_path / "b", ["onnx-fp32"], calibration=SAMPLE_CLIP, keypoints_from=starter_bundle)


def test_the_budget_is_in_millimetres(tmp_path, mocap_file):
    with pytest.raises(GateError, match=r"INT8 cannot keep within 1e-06 mm: the best of \d attempts loses \d\.\d\d, "):
        convert(
            build_random(TINY, 0),
            tmp_path / "b",
            ["onnx-int8"],
            calibration=mocap_file,
            calibration_size=16,
            budget=Budget(1e-6),
        )
    convert(
        build_random(TINY, 0),
        tmp_path / "b",
        ["onnx-int8"],
        calibration=mocap_file,
        calibration_size=16,
        budget=Budget(20.0, MocapPoses(mocap_file)),
    )


def test_sensitivity_ranks_the_blocks_of_a_lifting_model(tmp_path, mocap_file):
    convert(
        build_random(TINY, 0), tmp_path / "b", ["onnx-fp32", "onnx-int8"], calibration=mocap_file, calibration_size=16
    )
    ranking = sensitivity(tmp_path / "b", "onnx-int8", mocap_file)
    assert {row.block for row in ranking} == {"blocks.0", "blocks.1"}
    assert all(row.drop > 0 for row in ranking)
