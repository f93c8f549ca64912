"""The accuracy search, on models whose losses are known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from edgepose.converters.budget import blocks_of, meet_budget, rank_blocks
from edgepose.converters.recipes import RECIPES, Recipe, default_recipe, get_recipe, recipe_from_dict
from edgepose.errors import ConversionError, GateError

LAYERS = [f"layer{i}.{j}.conv{k}/Conv" for i in (1, 2) for j in (0, 1, 2, 3) for k in (1, 2)]
LOSS = {"layer1.2": 5.0, "layer2.0": 2.0, "layer2.3": 0.6}
RECIPE = Recipe("test")


class Fake:
    """Loses the points of every block that is not in float."""

    def __init__(self, recipe):
        in_float = {layer.rpartition(".")[0] for layer in recipe.float_layers}
        self.drop = 0.1 + sum(points for block, points in LOSS.items() if block not in in_float)

    def close(self):
        pass


def search(max_drop, **options):
    ranking = rank_blocks(Fake, RECIPE, LAYERS, lambda model: model.drop)
    judge = SimpleNamespace(
        max_drop=max_drop, unit="points", drop_of=lambda model: model.drop, latency_of=lambda model: 7.0
    )
    return meet_budget(Fake, RECIPE, ranking, judge, **options)


def test_blocks_are_modules_up_to_their_number():
    names = [
        "conv1/Conv",
        "layer1.0.downsample.0/Conv",
        "layer1.0.conv1/Conv",
        "global_encoder.layers.2.linear1/MatMul",
    ]
    assert blocks_of([*names, "stage3.1.branches.0.2.conv1/Conv/WithoutBiases"]) == {
        "conv1": ("conv1/Conv",),
        "layer1.0": ("layer1.0.downsample.0/Conv", "layer1.0.conv1/Conv"),
        "global_encoder.layers.2": ("global_encoder.layers.2.linear1/MatMul",),
        "stage3.1": ("stage3.1.branches.0.2.conv1/Conv/WithoutBiases",),
    }


def test_blocks_are_ranked_by_what_they_lose_alone():
    ranking = rank_blocks(Fake, RECIPE, LAYERS, lambda model: model.drop)
    assert [row.block for row in ranking[:3]] == ["layer1.2", "layer2.0", "layer2.3"]
    assert [row.drop for row in ranking[:4]] == pytest.approx([5.1, 2.1, 0.7, 0.1])
    assert ranking[0].layers == ("layer1.2.conv1/Conv", "layer1.2.conv2/Conv")


@pytest.mark.parametrize(("max_drop", "blocks"), [(3, 1), (1, 2), (0.5, 3)])
def test_as_few_blocks_as_keep_the_budget_go_back_to_float(max_drop, blocks):
    seen = []
    found = search(max_drop, log=seen.append)
    assert found.recipe.float_layers == tuple(layer for row in found.ranking[:blocks] for layer in row.layers)
    assert list(found.attempts) == seen
    assert all(attempt.latency_ms == 7 for attempt in seen)
    assert min(attempt.drop for attempt in seen) <= max_drop


def test_a_budget_that_cannot_be_kept_is_said_with_the_best():
    with pytest.raises(
        GateError, match=r"cannot keep within 0.05 points: the best of 4 attempts loses 0.10, .* 7 of 8"
    ):
        search(0.05)


def test_layers_that_are_float_already_are_not_ranked():
    recipe = RECIPE.with_float(["layer1.2.conv1/Conv", "layer1.2.conv2/Conv"])
    ranking = rank_blocks(Fake, recipe, LAYERS, lambda model: model.drop)
    assert "layer1.2" not in [row.block for row in ranking]
    assert ranking[0].drop == pytest.approx(2.1)  # what is float stays float


def test_recipes_are_named_by_engine_and_survive_the_manifest():
    for name, recipe in RECIPES.items():
        assert name == recipe.name
        assert name.split("-")[0] in ("onnxruntime", "openvino", "tensorrt", "tflite")
        assert recipe_from_dict(recipe.to_dict()) == recipe
    assert default_recipe("onnxruntime").name.startswith("onnxruntime-")
    with pytest.raises(ConversionError, match="unknown recipe 'fast'; known: onnxruntime-x86"):
        get_recipe("fast")
    with pytest.raises(TypeError):
        recipe_from_dict({"name": "x", "surprise": 1})


@pytest.mark.parametrize(
    ("isa", "expected"),
    [
        (["avx2", "avx512_vnni"], "openvino-vnni"),
        (["avx2", "avx_vnni"], "openvino-vnni"),
        (["avx2"], "openvino-avx2"),
        (["asimd", "asimddp"], "openvino-vnni"),
    ],
)
def test_the_recipe_follows_the_processor(monkeypatch, isa, expected):
    monkeypatch.setattr("edgepose.converters.recipes.instruction_sets", lambda: isa)
    assert default_recipe("openvino").name == expected
    assert get_recipe("openvino-avx2").narrow_weights  # 8-bit sums saturate there
