"""``edgepose prune`` as a person meets it: a small model of pictures, and one that lifts."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from types import MappingProxyType

import click
import cv2
import numpy as np
import pytest
import torch

from edgepose import EdgePoseError
from edgepose.bundle import Bundle
from edgepose.cli import convert as convert_command
from edgepose.cli.prune import command
from edgepose.converters import checkpoint, pruning_latency
from edgepose.converters.checkpoint import build_random, load_checkpoint
from edgepose.files import sha256_file
from edgepose.models import registry

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = replace(registry.get_model("transpose-r-t"), input_hw=(64, 64), sizes={
    "d_model": 32, "feedforward": 64, "heads": 2, "layers": 2, "stem": 16, "planes": (16, 16), "deconv": 32
})  # fmt: skip


def known_by_name(monkeypatch, row):
    """Register a small model under the name of a large one; time it briefly."""
    rows = MappingProxyType({**registry.MODELS, row.name: row})
    monkeypatch.setattr(registry, "MODELS", rows)
    monkeypatch.setattr(checkpoint, "MODELS", rows)
    monkeypatch.setattr(pruning_latency, "_SECONDS", 0.5)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A small TransPose-R under the starter's name, with its weights, and a folder of pictures."""
    known_by_name(monkeypatch, SMALL)
    torch.save(build_random(SMALL, 0).model.state_dict(), tmp_path / "w.pth")
    (tmp_path / "frames").mkdir()
    rng = np.random.default_rng(0)
    for i in range(20):
        noise = rng.integers(0, 256, (8, 8, 3), np.uint8)
        cv2.imwrite(str(tmp_path / "frames" / f"{i:02d}.png"), cv2.resize(noise, (64, 64)))
    return tmp_path


def run(*arguments: object) -> None:
    command.main([str(a) for a in arguments], standalone_mode=False)


def test_prunes_recovers_and_tells_the_bundle(small, capsys):
    out = small / "pruned.pth"
    start = (
        small / "w.pth",
        "--model",
        SMALL.name,
        "--ratio",
        0.4,
        "--kv-pool",
        2,
        "--engine",
        "onnxruntime",
        "--frames",
        small / "frames",
    )
    run(*start, "-o", out, "--epochs", 2, "--batch", 8, "--json", small / "f.json", "--threads", 1)
    printed = capsys.readouterr()
    assert f"{SMALL.name} -> {out}" in printed.out
    assert "onnx-int8 (1 thread): " in re.sub(r"\s+", " ", printed.out)
    for stage in ("before", "pruned", "recovered"):
        assert re.search(rf"{stage} +0\.\d\d +\d+\.\d\d", printed.out)
    assert "20 crops of people are few to recover on" in printed.err
    assert re.search(r"plan: \S+ keeps \d+ channels", printed.err)
    assert re.search(r"epoch 2: loss \S+, agreement \S+, shift px \S+, \d+ s", printed.err)
    assert not (small / "pruned.pth.work").exists()

    made = load_checkpoint(out, SMALL)
    whole = load_checkpoint(small / "w.pth", SMALL)
    assert sum(p.numel() for p in made.model.parameters()) < sum(p.numel() for p in whole.model.parameters())
    told = made.source["parent"]
    assert told["sha256"] == sha256_file(small / "w.pth")
    assert told["plan"]["kv_pool"] == 2
    assert set(told["scores"]) == {"before", "pruned", "recovered"}
    assert told["scores"]["before"]["agreement"] == pytest.approx(100)
    assert told["recovery"]["data"]["trained_on"] == 18
    assert len(told["recovery"]["data"]["sha256"]) == 64
    assert told["recovery"]["settings"]["seed"] == 0
    assert json.loads((small / "f.json").read_text())["scores"] == told["scores"]

    convert_command.convert_checkpoint(out, SMALL.name, small / "b", small / "frames", 8)
    bundle = Bundle.open(small / "b")
    kept = bundle.provenance["pruning"]
    assert kept["sha256"] == told["sha256"]
    assert kept["scores"]["recovered"] == told["scores"]["recovered"]
    assert 0 < kept["scores"]["converted"]["onnx-int8"]["agreement with FP32"] <= 100
    evidence = json.loads((small / "b" / "evidence.json").read_text())
    assert evidence["provenance"]["converted"]["pruning"]["plan"]["kv_pool"] == 2
    assert f"pruned from w.pth ({told['sha256'][:12]}), before agreement 100.0" in (
        small / "b" / "report.html"
    ).read_text(encoding="utf-8")


@pytest.mark.slow
def test_stopped_and_resumed(small, monkeypatch, capsys):
    from edgepose.cli import prune

    def stop(epoch):
        raise KeyboardInterrupt

    out = small / "p.pth"
    start = (small / "w.pth", "--model", SMALL.name, "--ratio", 0.4, "--frames", small / "frames", "-o", out)
    options = ("--engine", "onnxruntime", "--epochs", 2, "--batch", 8, "--threads", 1, "--qat")
    with monkeypatch.context() as patched:
        patched.setattr(prune, "_line", stop)
        with pytest.raises((KeyboardInterrupt, click.Abort)):
            run(*start, *options)
    assert not out.exists()
    with monkeypatch.context() as patched:  # people were found before
        patched.setattr("edgepose.converters.training.frames.collect_frames", None)
        run(*start, *options, "--resume")
    printed = capsys.readouterr().err
    assert "epoch 2: loss" in printed
    assert "epoch 1: loss" not in printed
    record = load_checkpoint(out, SMALL).source["parent"]["recovery"]
    assert [epoch["number"] for epoch in record["epochs"]] == [1, 2]
    assert record["quantization_aware"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to prune: give --ratio"),
        (("--ratio", "0.4"), "no frames to recover on: give --frames with a folder of pictures or a video"),
        (("--ratio", "0.4", "--frames", "D/none"), "none: no such file or folder"),
        (("--ratio", "0.4", "--frames", "D/frames", "--keep", "layer9"), "no layer 'layer9' to keep"),
        (("--ratio", "0.99", "--frames", "D/frames"), "cannot keep 0.01 of the channels"),
        (("--target-latency", "1.5x", "--frames", "D/frames"), "'1.5x': give a part of what the model takes now"),
        (("--target-latency", "0.6x", "--kv-pool", "2", "--frames", "D/frames"), "chooses --kv-pool and"),
        (("--ratio", "0.4", "--target-latency", "0.6x", "--frames", "D/frames"), "give either --ratio or"),
        (("--ratio", "0.4", "--frames", "D/frames", "--held-out", "D/frames"), "--held-out goes with --data"),
        (("--drop-layers", "2", "--frames", "D/frames"), "all its 2 layers would go: leave one"),
        (("--ratio", "0.4", "--frames", "D/few"), "few: 2 usable crops of 2 candidates"),
        (("--ratio", "0.4", "--frames", "D/frames", "--resume"), "nothing to resume: start without --resume"),
        (("--ratio", "0.4", "--frames", "D/frames", "--data", "D/frames"), "no train.zip and val.zip in it"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(small, tmp_path_factory, arguments, message):
    (small / "few").mkdir()
    for i in range(2):
        (small / "few" / f"{i}.png").write_bytes((small / "frames" / f"0{i}.png").read_bytes())
    out = tmp_path_factory.mktemp("out")
    given = [a.replace("D", str(small), 1) if a.startswith("D") else a for a in arguments]
    with pytest.raises((EdgePoseError, click.UsageError)) as error:
        run(small / "w.pth", "--model", SMALL.name, "-o", out / "p.pth", "--threads", 1, *given)
    text = error.value.format_message() if isinstance(error.value, click.UsageError) else str(error.value)
    assert message in text
    assert "\n" not in text
    assert not (out / "p.pth").exists()


@pytest.mark.parametrize("others", [1.9, 0.0])
def test_a_busy_machine_is_told(small, monkeypatch, capsys, others):
    from edgepose.runtimes import cpu_load

    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(
        pruning_latency, "engine_latency", lambda *given, **options: lambda models: dict.fromkeys(models, 1.0)
    )
    monkeypatch.setattr(cpu_load, "load_between", lambda before, after: cpu_load.CpuLoad(others, 0.0))
    arguments = ("--model", SMALL.name, "--kv-pool", 2, "--engine", "onnxruntime", "--frames", small / "frames")
    run(small / "w.pth", *arguments, "-o", small / "p.pth", "--epochs", 0, "--threads", 1)
    told = "other processes kept 1.9 of 2 cores busy" in re.sub(r"\s+", " ", capsys.readouterr().err)
    assert told == bool(others)


def test_a_file_that_is_there_stays(small):
    (small / "there.pth").write_bytes(b"mine")
    with pytest.raises(EdgePoseError, match=r"there.pth: exists: give another name, or --force"):
        run(
            small / "w.pth",
            "--model",
            SMALL.name,
            "--ratio",
            0.4,
            "--frames",
            small / "frames",
            "-o",
            small / "there.pth",
        )
    assert (small / "there.pth").read_bytes() == b"mine"


def test_a_lifting_model(tmp_path, monkeypatch, capsys):
    row = replace(registry.get_model("ampose-s"), sizes={"d_model": 32, "layers": 2, "heads": 2})
    known_by_name(monkeypatch, row)
    torch.save(build_random(row, 0).model.state_dict(), tmp_path / "w.pth")
    rng = np.random.default_rng(0)
    xyz = rng.normal(0, 0.05, (80, 17, 3))
    xyz[:, :, 2] += [0, 0, -0.4, -0.8, 0, -0.4, -0.8, 0.2, 0.5, 0.6, 0.7, 0.5, 0.3, 0, 0.5, 0.3, 0]
    np.savez(tmp_path / "poses.npz", poses=(xyz - xyz[:, :1]).astype(np.float32), seq_id=np.arange(80) // 8)
    out = tmp_path / "p.pth"
    run(tmp_path / "w.pth", "--model", "ampose-s", "--ratio", 0.3, "--frames", tmp_path / "poses.npz", "-o", out,
        "--epochs", 1, "--batch", 16, "--threads", 1, "--engine", "onnxruntime")  # fmt: skip
    printed = capsys.readouterr().out
    assert "from parent" in printed
    assert "millimetres" in printed
    told = load_checkpoint(out, row).source["parent"]
    assert told["scores"]["before"]["from parent"] == pytest.approx(0)
    assert told["scores"]["pruned"]["from parent"] > 0
    assert told["recovery"]["data"]["sha256"] == sha256_file(tmp_path / "poses.npz")
