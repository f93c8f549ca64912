"""``edgepose finetune`` as a person meets it."""

from __future__ import annotations

import json

import click
import numpy as np
import pytest

from edgepose import EdgePoseError
from edgepose.assets import STARTER_WEIGHTS
from edgepose.cli.finetune import command
from edgepose.converters.checkpoint import load_checkpoint
from edgepose.models.registry import get_model


@pytest.fixture
def mocap(tmp_path):
    """A body of bars that leans about: metres, Z up."""
    rng = np.random.default_rng(0)
    xyz = rng.normal(0, 0.05, (40, 17, 3))
    xyz[:, :, 2] += [0, 0, -0.4, -0.8, 0, -0.4, -0.8, 0.2, 0.5, 0.6, 0.7, 0.5, 0.3, 0, 0.5, 0.3, 0]
    np.savez(tmp_path / "poses.npz", poses=(xyz - xyz[:, :1]).astype(np.float32), seq_id=np.arange(40) // 10)
    return tmp_path / "poses.npz"


def test_trains_resumes_and_says_how_well(edgepose, mocap, tmp_path):
    out, figures = tmp_path / "w.pth", tmp_path / "f.json"
    start = ("finetune", "none", "--model", "ampose-s", "--data", mocap, "-o", out, "--batch", 15, "--threads", 1)
    done = edgepose(*start, "--epochs", 2, "--json", figures)
    assert f"ampose-s -> {out}" in done.stdout
    assert "MPJPE any camera" in done.stdout
    assert "epoch 2: loss" in done.stderr
    load_checkpoint(out, get_model("ampose-s"))
    data = json.loads(figures.read_text())
    assert [row["number"] for row in data["epochs"]] == [1, 2]
    assert data["settings"]["lr"] == 1e-3
    assert data["machine"]["versions"]
    again = edgepose(*start, "--epochs", 2, code=2)
    assert again.stderr.strip().endswith(f"{out}: exists: give another name, or --force to replace it")
    edgepose(*start, "--epochs", 2, "--resume")  # nothing is left to do
    changed = edgepose(*start, "--epochs", 3, "--resume", code=2)
    assert "cannot go on: epochs was 2 and is 3" in changed.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none", "--model", "ampose-x", "--data", "D"), "unknown model 'ampose-x'"),
        (("none", "--model", "ampose-s", "--data", "D/no.npz"), "no such file: an .npz file with poses"),
        (("none", "--model", "ampose-s", "--data", "D/poses.npz", "--held-out", "D"), "whole sequences are held out"),
        (("none", "--model", "ampose-s", "--data", "D/poses.npz", "--resume"), "nothing to resume"),
        ((str(STARTER_WEIGHTS), "--model", "ampose-s", "--data", "D/poses.npz"), "it is transpose-r-t"),
        (("none", "--model", "transpose-r-t", "--data", "D"), "no train.zip and val.zip in it: give --held-out"),
        (("none", "--model", "transpose-r-t", "--data", "D/no", "--held-out", "D"), "no such file or folder"),
        (("none", "--model", "transpose-r-t", "--data", "D", "--held-out", "D"), "no images here"),
        (
            ("none", "--model", "ampose-s", "--data", "D/poses.npz", "--device", "cuda"),
            "PyTorch finds no CUDA device here",
        ),
        (("none", "--model", "ampose-s", "--data", "D/poses.npz", "-o", "D/poses.npz"), "is part of the input"),
        (("none", "--model", "ampose-s", "--data", "D/poses.npz", "--lr", "0"), "0.0 is not in the range 0<x<=1"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(mocap, tmp_path_factory, monkeypatch, arguments, message):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    out = tmp_path_factory.mktemp("out")
    given = [a.replace("D", str(mocap.parent), 1) if a.startswith("D") else a for a in arguments]
    with pytest.raises((EdgePoseError, click.UsageError)) as error:
        command.main(["-o", str(out / "w.pth"), *given], standalone_mode=False)
    text = error.value.format_message() if isinstance(error.value, click.UsageError) else str(error.value)
    assert message in text
    assert "\n" not in text
    assert list(out.iterdir()) == []


def test_bad_input_exits_with_2(edgepose, mocap, tmp_path):
    done = edgepose("finetune", "none", "--model", "ampose-s", "--data", tmp_path / "no", "-o", tmp_path / "w", code=2)
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
