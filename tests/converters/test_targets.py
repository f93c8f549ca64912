"""Targets: every row can be made and run, several make one bundle, and the target decides, not this machine."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from edgepose.assets import SAMPLE_CLIP, STARTER_MODEL, STARTER_WEIGHTS
from edgepose.bundle import Bundle, parse_variant
from edgepose.converters.recipes import RECIPES, get_recipe
from edgepose.converters.targets import plan
from edgepose.converters.variants import CALIBRATED, VARIANTS
from edgepose.errors import ConversionError
from edgepose.runtimes.registry import engines
from edgepose.targets import TARGETS, get_target

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("row", TARGETS.values(), ids=lambda row: row.name)
def test_every_row_can_be_made(row):
    assert set(row.variants) <= set(VARIANTS)
    quantized = {VARIANTS[name].engine for name in row.variants if parse_variant(name)[1] in CALIBRATED}
    assert {name.partition("-")[0] for name in row.recipes} == quantized
    assert set(row.recipes) <= set(RECIPES)


@pytest.mark.parametrize("row", TARGETS.values(), ids=lambda row: row.name)
def test_every_row_can_be_run(row):
    engine = engines()[row.engine]
    assert engine.has_device(row.device)
    assert VARIANTS[row.variants[0]].suffixes[0] in engine.suffixes
    engine.check(row.options)


@pytest.mark.parametrize("row", TARGETS.values(), ids=lambda row: row.name)
def test_every_row_is_documented(row):
    (line,) = re.findall(rf"^\| `{row.name}` \|.*$", (ROOT / "docs/targets.md").read_text(), re.MULTILINE)
    assert all(f"`{name}`" in line for name in (*row.variants, *row.recipes))


def test_several_targets_are_one_bundle():
    rows = [get_target(name) for name in ("raspberrypi5", "raspberrypi-32bit", "intel-npu")]
    got = plan(rows, "pose2d", list(VARIANTS))
    assert got.variants == ("tflite-int8", "tflite-fp32", "onnx-int8", "onnx-fp32", "openvino-int8", "openvino-fp16")
    assert {engine: recipe.name for engine, recipe in got.recipes.items()} == {
        "tflite": "tflite-xnnpack",
        "onnxruntime": "onnxruntime-arm",
        "openvino": "openvino-vnni",
    }


def test_a_lifting_model_gets_the_recipe_for_lifting():
    got = plan([get_target("raspberrypi5"), get_target("intel-cpu-old")], "lift3d", list(VARIANTS))
    assert got.recipes["openvino"].name == "openvino-avx2-lift"
    assert got.recipes["tflite"].name == "tflite-xnnpack"  # which has none for lifting


def test_targets_that_want_one_file_by_two_recipes_are_refused():
    rows = [get_target("intel-cpu"), get_target("intel-cpu-old")]
    with pytest.raises(ConversionError) as error:
        plan(rows, "pose2d", list(VARIANTS))
    assert str(error.value) == (
        "targets intel-cpu and intel-cpu-old want INT8 for openvino by different recipes "
        "(openvino-vnni, openvino-avx2): make two bundles, or choose one with --recipe"
    )
    chosen = {"openvino": get_recipe("openvino-avx2")}
    assert plan(rows, "pose2d", list(VARIANTS), chosen).recipes["openvino"].name == "openvino-avx2"


def test_what_this_version_cannot_make_is_one_line():
    with pytest.raises(ConversionError) as error:
        plan([get_target("raspberrypi5")], "pose2d", ["onnx-fp32", "onnx-int8"])
    assert str(error.value) == (
        "target raspberrypi5: this version cannot make tflite-int8, tflite-fp32; choose with --to and --precision"
    )
    with pytest.raises(ConversionError, match=r"^unknown target 'jetson'; known: jetson-orin, .*, cuda$"):
        get_target("jetson")


def test_the_command_of_a_lifting_model_names_the_bundle_before_it():
    assert get_target("intel-npu").command("my bundle") == (
        "edgepose run 'my bundle' --variant openvino-int8 --engine openvino --device npu --source 0"
    )
    assert get_target("intel-npu").command("lifter", "lift3d") == (
        "edgepose run BUNDLE2D --lift lifter --lift-variant openvino-int8 --lift-device npu --source 0"
    )


@pytest.mark.slow
def test_a_target_decides_the_recipe_and_not_this_machine(edgepose, tmp_path):
    convert = ("convert", STARTER_WEIGHTS, "--model", STARTER_MODEL, "--calib", SAMPLE_CLIP, "--calib-size", 8)
    done = edgepose(*convert, "--target", "intel-cpu-old", "-o", tmp_path / "b")
    rows = {row.name: row for row in Bundle.open(tmp_path / "b").variants}
    assert list(rows) == ["openvino-int8", "openvino-fp32"]
    assert rows["openvino-int8"].recipe["quantizer"]["name"] == "openvino-avx2"
    assert rows["openvino-int8"].recipe["quantizer"]["narrow_weights"]
    assert "on intel-cpu-old (x86-64 with AVX2 alone" in done.stdout
    command = f"edgepose run {tmp_path / 'b'} --variant openvino-int8 --engine openvino --device cpu --source 0"
    assert f"\n  run      {command}\n" in done.stdout
    arguments = command.replace("--source 0", f"--source {SAMPLE_CLIP} --max-frames 3 --json {tmp_path / 'p.jsonl'}")
    edgepose(*arguments.split()[1:])
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == 3


REFUSED = [
    (("--to", "onnx"), "--target chooses formats and precisions: leave out --to and --precision"),
    (("--precision", "auto"), "--target chooses formats and precisions: leave out --to and --precision"),
    ((), "openvino-int8: needs samples to calibrate with"),
]


@pytest.mark.parametrize(("more", "message"), REFUSED)
def test_bad_combinations_are_refused_before_anything_is_written(edgepose, tmp_path, more, message):
    convert = ("convert", "--random", "--model", STARTER_MODEL, "--target", "intel-cpu", "-o", tmp_path / "b")
    done = edgepose(*convert, *more, code=2)
    assert f"error: {message}" in done.stderr
    assert not (tmp_path / "b").exists()


def test_targets_lists_every_row_with_its_command(edgepose):
    text = edgepose("targets").stdout
    for row in TARGETS.values():
        assert row.summary in text
        assert row.command("BUNDLE") in text
    rows = json.loads(edgepose("targets", "--json").stdout)
    assert [row["name"] for row in rows] == list(TARGETS)
    assert rows[0]["variants"] == list(TARGETS["jetson-orin"].variants)
