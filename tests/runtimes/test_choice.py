"""Which variant is taken: by preference, and by timing."""

from __future__ import annotations

import json
import shutil
import time

import pytest

import edgepose
from edgepose.bundle import MANIFEST
from edgepose.files import cache_folder
from edgepose.runtimes import load as loading
from edgepose.runtimes.onnxruntime import OnnxRuntimeEngine


@pytest.fixture
def bundle(starter_bundle, tmp_path, monkeypatch):
    """A bundle of several variants, whose files are all the FP32 one: their names alone count."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(starter_bundle, tmp_path / "bundle")
    path = tmp_path / "bundle" / MANIFEST
    data = json.loads(path.read_text())
    source = next(row for row in data["variants"] if row["name"] == "onnx-fp32")
    for name in ("onnx-fp16", "tensorrt-fp16", "tensorrt-int8"):
        file = f"{name}.onnx"
        shutil.copy(tmp_path / "bundle" / "onnx-fp32.onnx", tmp_path / "bundle" / file)
        data["variants"].append({**source, "name": name, "files": [file]})
        data["files"][file] = data["files"]["onnx-fp32.onnx"]
    path.write_text(json.dumps(data))
    return tmp_path / "bundle"


@pytest.mark.parametrize(
    ("engine", "device", "order"),
    [
        # float16 is slow on a CPU, and TensorRT's files are not for onnxruntime
        (None, "auto", ["onnx-int8", "onnx-fp32", "onnx-fp16", "tensorrt-int8", "tensorrt-fp16"]),
        ("onnxruntime", "cuda", ["onnx-fp16", "onnx-fp32", "onnx-int8", "tensorrt-fp16", "tensorrt-int8"]),
        ("tensorrt", "auto", ["tensorrt-fp16", "tensorrt-int8", "onnx-fp16", "onnx-fp32", "onnx-int8"]),
    ],
)
def test_variants_that_are_made_for_the_engine_come_first(bundle, engine, device, order):
    ranked = loading._ranked_variants(edgepose.runtimes.load.Bundle.open(bundle), engine, device)
    assert [row.name for row in ranked] == order


def test_fastest_times_all_once_and_remembers(bundle, monkeypatch, caplog):
    real, slow, opened = OnnxRuntimeEngine.run, {"onnx-fp32", "onnx-int8", "tensorrt-int8", "tensorrt-fp16"}, []

    def run(self, feeds):
        if self._path.stem in slow:
            time.sleep(0.03)
        opened.append(self._path.stem)
        return real(self, feeds)

    monkeypatch.setattr(OnnxRuntimeEngine, "run", run)
    monkeypatch.setattr("edgepose.runtimes.choice._ROUNDS", 5)
    monkeypatch.setattr("edgepose.runtimes.choice._WARMUP", 0)
    assert edgepose.load(bundle, variant="fastest", threads=1).variant == "onnx-fp16"
    assert "onnx-fp16 is the fastest variant here (onnx-int8 " in caplog.text
    assert len(set(opened)) == 5
    opened.clear()
    assert edgepose.load(bundle, variant="fastest", threads=1).variant == "onnx-fp16"
    assert set(opened) == {"onnx-fp16"}  # its self-test alone
    (kept,) = cache_folder("fastest").iterdir()
    kept.write_text("{")
    slow.discard("onnx-fp32")
    slow.add("onnx-fp16")
    assert edgepose.load(bundle, variant="fastest", threads=1).variant == "onnx-fp32"  # damaged: measured again


def test_fastest_of_none_that_runs_says_why(bundle):
    with pytest.raises(edgepose.EngineUnavailable, match="no CUDAExecutionProvider"):
        edgepose.load(bundle, "onnxruntime", "cuda", "fastest")
