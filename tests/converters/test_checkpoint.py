"""Checkpoints: every wrapper that is in use, and every way in which a file can be wrong."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch

from edgepose import CheckpointError
from edgepose.assets import STARTER_MODEL, STARTER_WEIGHTS
from edgepose.converters.checkpoint import build_random, load_checkpoint
from edgepose.models.registry import get_model

ROW = get_model(STARTER_MODEL)


@pytest.fixture(scope="module")
def weights():
    return torch.load(STARTER_WEIGHTS, weights_only=True)


def saved(tmp_path, data, **options):
    path = tmp_path / "model.pth"
    torch.save(data, path, **options)
    return path


def module(weights):
    return {f"module.{key}": tensor for key, tensor in weights.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        module,
        lambda w: {"state_dict": w},
        lambda w: {"model": module(w)},
        lambda w: {"best_state_dict": w},
        # What the reference's training loop saves: "model" is a name there, "perf" a numpy number.
        lambda w: {
            "epoch": 3,
            "model": "transpose_r",
            "state_dict": module(w),
            "perf": np.float64(0.7),
            "optimizer": {},
        },
    ],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_wrappers_and_prefixes(tmp_path, weights, wrap, zipped):
    path = saved(tmp_path, wrap(weights), _use_new_zipfile_serialization=zipped)
    checkpoint = load_checkpoint(path, ROW)
    for key, tensor in checkpoint.model.state_dict().items():
        assert torch.equal(tensor, weights[key])
    assert checkpoint.source["file"] == "model.pth"
    assert not checkpoint.model.training


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_code_is_not_run(tmp_path):
    trap = tmp_path / "trap"
    path = saved(tmp_path, {"state_dict": Evil(str(trap))})
    with pytest.raises(CheckpointError, match=r"could run code and was not opened \(posix.mkdir\): save the weights"):
        load_checkpoint(path, ROW)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil(str(trap))))
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "plain.pth", ROW)
    assert not trap.exists()


def test_missing(tmp_path):
    with pytest.raises(CheckpointError, match=r"none.pth: no such checkpoint file"):
        load_checkpoint(tmp_path / "none.pth", ROW)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_truncated(tmp_path, share):
    data = STARTER_WEIGHTS.read_bytes()
    path = tmp_path / "cut.pth"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(
        CheckpointError, match=r"cut.pth: (truncated or damaged|not a PyTorch checkpoint, or damaged).*again"
    ):
        load_checkpoint(path, ROW)


@pytest.mark.parametrize("content", [b"hello", b"\x80\x02}q\x00.", b"\x89PNG\r\n"])
def test_other_files(tmp_path, content):
    path = tmp_path / "other.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"other.pth"):
        load_checkpoint(path, ROW)


def test_no_weights_inside(tmp_path):
    with pytest.raises(CheckpointError, match=r"no weights found: .* the file has epoch, lr"):
        load_checkpoint(saved(tmp_path, {"epoch": 1, "lr": 0.1}), ROW)


def test_another_registered_model_is_named(tmp_path):
    path = saved(tmp_path, get_model("transpose-r-a4").build().state_dict())
    message = (
        r"does not fit transpose-r-a3: 12 unexpected \(global_encoder.layers.3.linear1.bias, .*\); "
        r"it is transpose-r-a4 \(202 of 202 tensors\): use --model transpose-r-a4"
    )
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path, get_model("transpose-r-a3"))


def test_a_mis_shaped_key_is_named_with_both_shapes(tmp_path, weights):
    path = saved(tmp_path, {**weights, "final_layer.weight": torch.zeros(16, 128, 1, 1)})
    message = (
        r"1 mis-shaped \(final_layer.weight: file 16x128x1x1, model 14x128x1x1\); "
        r"the closest registered model is transpose-r-t"
    )
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path, ROW)


def test_a_missing_key_is_named(tmp_path, weights):
    path = saved(tmp_path, {key: tensor for key, tensor in weights.items() if key != "reduce.weight"})
    with pytest.raises(CheckpointError, match=r"1 missing \(reduce.weight\)"):
        load_checkpoint(path, ROW)


def test_a_stranger_is_told_so(tmp_path):
    path = saved(tmp_path, {"backbone.conv.weight": torch.zeros(3, 3), "head.bias": torch.zeros(3)})
    with pytest.raises(CheckpointError, match="no registered model is close"):
        load_checkpoint(path, ROW)


def test_diverged_weights_are_refused(tmp_path, weights):
    path = saved(tmp_path, {**weights, "reduce.weight": weights["reduce.weight"] * float("nan")})
    with pytest.raises(CheckpointError, match=r"reduce\.weight holds NaN or infinity"):
        load_checkpoint(path, ROW)


def test_another_input_size_rebuilds_the_position_embedding_and_says_so():
    checkpoint = load_checkpoint(STARTER_WEIGHTS, ROW.resized((160, 128)))
    assert checkpoint.notes == ("position embedding rebuilt for 160x128 (the file's is for 128x96)",)
    assert checkpoint.model.state_dict()["pos_embedding"].shape == (20 * 16, 1, 128)


def test_a_learned_position_embedding_cannot_be_rebuilt(tmp_path, weights):
    path = saved(tmp_path, {**weights, "pos_embedding": torch.randn_like(weights["pos_embedding"])})
    load_checkpoint(path, ROW)
    with pytest.raises(CheckpointError, match="was learned for 128x96"):
        load_checkpoint(path, ROW.resized((160, 128)))


def test_random_weights_are_marked_and_repeatable():
    first, second, other = (build_random(ROW, seed).model.state_dict()["conv1.weight"] for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert build_random(ROW, 1).source["random"] is True


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t.to_sparse(),
        lambda t: t.to(torch.complex64),
        lambda t: t.to("meta"),
        lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_odd_tensors_are_refused(tmp_path, weights, spoil):
    path = saved(tmp_path, {**weights, "reduce.weight": spoil(weights["reduce.weight"].float())})
    with pytest.raises(CheckpointError, match=r"reduce\.weight is no plain tensor|not opened|damaged"):
        load_checkpoint(path, ROW)


def test_damaged_bytes_never_escape_as_another_error(tmp_path, weights):
    """Byte flips all over a small legacy checkpoint: each loads, or is a CheckpointError."""
    path = saved(tmp_path, {"state_dict": {"a": torch.zeros(3)}}, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(data)
        for position in rng.integers(0, len(data), 3):
            broken[position] = rng.integers(0, 256)
        path.write_bytes(broken)
        with pytest.raises(CheckpointError):  # at best it loads, and has none of the model's keys
            load_checkpoint(path, ROW)
