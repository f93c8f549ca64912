"""The five published models, key by key and value by value."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edgepose.assets import STARTER_MODEL, STARTER_WEIGHTS
from edgepose.models.registry import MODELS, get_model

KEYS = json.loads((Path(__file__).parent.parent / "golden" / "state_dict_keys.json").read_text())


@pytest.mark.parametrize("name", KEYS)
def test_keys_and_shapes_are_those_of_the_published_checkpoints(name):
    state = get_model(name).build().state_dict()
    assert {key: list(tensor.shape) for key, tensor in state.items()} == KEYS[name]


@pytest.mark.parametrize("name", KEYS)
def test_heatmaps_equal_the_reference(name, golden, deterministic_weights):
    model = get_model(name).build()
    weights = {key: torch.from_numpy(array) for key, array in deterministic_weights(KEYS[name]).items()}
    weights["pos_embedding"] = model.state_dict()["pos_embedding"]
    model.load_state_dict(weights)
    image = np.random.default_rng(7).standard_normal((1, 3, 256, 192)).astype(np.float32)
    with torch.inference_mode():
        heatmaps = model(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(heatmaps, golden(f"{name}.npz")["heatmaps"], atol=1e-4)


@pytest.mark.parametrize("row", [row for row in MODELS.values() if row.task == "pose2d"], ids=lambda row: row.name)
def test_a_row_says_what_its_model_is(row):
    model = row.build()
    assert sum(p.numel() for p in model.parameters()) == row.parameters
    height, width = row.input_hw
    with torch.inference_mode():
        shape = tuple(model(torch.zeros(1, 3, height, width)).shape)
    assert shape == (1, *row.spec.output.shape[1:])


def test_the_starters_position_embedding_is_our_sine():
    """As it is stored: in 16 bits."""
    state = torch.load(STARTER_WEIGHTS, weights_only=True)
    own = get_model(STARTER_MODEL).build().state_dict()["pos_embedding"].half()
    np.testing.assert_array_equal(state["pos_embedding"], own)
