"""What a board installs: the TFLite extra in a fresh environment, without torch; its size is printed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOST_SIDE = {"torch", "jax", "tensorflow", "onnx", "onnxscript", "nncf", "openvino", "litert-torch", "transformers"}
SOURCES = ("edgepose", "runtimes", "calibration", "converters", "pyproject.toml", "README.md", "LICENSE")

SIZES = """
import json, pathlib
from importlib.metadata import distributions
sizes = {}
for package in distributions():
    files = [package.locate_file(file) for file in package.files or ()]
    there = [pathlib.Path(file) for file in files if pathlib.Path(file).is_file()]
    sizes[package.metadata["Name"].lower()] = sum(file.stat().st_size for file in there)
print(json.dumps(sizes))
"""


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """The Python of a fresh environment with nothing but edgepose[tflite]."""
    folder = tmp_path_factory.mktemp("board")
    source = folder / "source"
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    done = subprocess.run([*pip, *constraints, f"{source}[tflite]"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        if "No matching distribution" in reason or "Connection" in done.stderr:
            pytest.skip(f"pip reaches no packages here ({reason})")
        pytest.fail(done.stderr)
    return python


def test_the_tflite_extra_brings_no_torch_and_its_size_is_printed(board, capsys):
    done = subprocess.run([str(board), "-c", SIZES], capture_output=True, text=True, check=True)
    sizes = {name: size / 1e6 for name, size in json.loads(done.stdout).items() if name not in ("pip", "setuptools")}
    assert not HOST_SIDE & set(sizes)
    assert {"ai-edge-litert", "numpy", "opencv-python-headless"} <= set(sizes)
    largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:5]
    parts = ", ".join(f"{name} {sizes[name]:.0f}" for name in largest)
    with capsys.disabled():
        sys.stdout.write(f"\npip install 'edgepose[tflite]': {sum(sizes.values()):.0f} MB on disk ({parts})\n")
    assert sum(sizes.values()) < 450  # measured 350; a host-side package would add hundreds


def test_it_runs_there(board, tiny, tmp_path):
    from edgepose.runtimes.tflite_file import with_metadata
    from edgepose.types import SPEC_KEY, ModelSpec

    spec = ModelSpec.pose2d("tiny", (32, 32), "lsp14").to_json().encode()
    model = tmp_path / "model.tflite"
    model.write_bytes(with_metadata((tiny / "int8.tflite").read_bytes(), {SPEC_KEY: spec}))
    command = [str(board), "-m", "edgepose", "bench", str(model), "--iterations", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "tflite cpu" in done.stdout
