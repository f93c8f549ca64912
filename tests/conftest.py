"""Fixtures: golden answers, shared data where it is there, and one small bundle for all tests."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("EDGEPOSE_SHARED", ROOT.parent / "shared"))

Array = NDArray[np.float32]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave slow tests out unless they are asked for, and let no test inherit a log that another silenced."""
    if item.get_closest_marker("slow") and not os.environ.get("EDGEPOSE_SLOW"):
        pytest.skip("slow: make test-all, or EDGEPOSE_SLOW=1, runs it")
    _let_logs_through()


def _let_logs_through() -> None:
    """Undo what libraries do to the logs of the process, and to the handlers of pytest, which serve all tests."""
    logging.disable(logging.NOTSET)
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    for handler in root.handlers:
        handler.setLevel(logging.NOTSET)
    for name, logger in list(root.manager.loggerDict.items()):
        if name.startswith("edgepose") and isinstance(logger, logging.Logger):
            logger.setLevel(logging.NOTSET)
            logger.disabled, logger.propagate = False, True


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small steps, and tests side by side: torch's threads would wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Mapping[str, NDArray[np.float32]]]:
    """Reference answers in tests/golden by file name."""

    def load(name: str) -> Mapping[str, NDArray[np.float32]]:
        with np.load(Path(__file__).parent / "golden" / name, allow_pickle=False) as data:
            return dict(data)

    return load


@pytest.fixture(scope="session")
def shared() -> Path:
    """Data that is not part of the project; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip(f"no development data at {SHARED} (set EDGEPOSE_SHARED)")
    return SHARED


@pytest.fixture(scope="session")
def deterministic_weights() -> Callable[[Mapping[str, tuple[int, ...]]], dict[str, NDArray[np.float32]]]:
    """Weights that depend on nothing but each key's name and shape: those that the golden answers were made with."""

    def weight(key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        g = np.random.default_rng(zlib.crc32(key.encode()))
        if key.endswith("num_batches_tracked"):
            return np.array(1)
        if key.endswith("running_var"):
            return g.uniform(0.5, 1.5, shape).astype(np.float32)
        if key.endswith("running_mean"):
            return (0.1 * g.standard_normal(shape)).astype(np.float32)
        if len(shape) >= 2:
            return (g.standard_normal(shape) * np.sqrt(1 / np.prod(shape[1:]))).astype(np.float32)
        if key.endswith("weight"):
            return g.uniform(0.5, 1.5, shape).astype(np.float32)
        return (0.1 * g.standard_normal(shape)).astype(np.float32)

    return lambda shapes: {key: weight(key, tuple(shape)) for key, shape in shapes.items()}


@pytest.fixture(scope="session")
def starter_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The starter model as a bundle of FP32 and INT8, made from the sample clip. Do not change it: copy it."""
    from edgepose.assets import SAMPLE_CLIP, STARTER_MODEL, STARTER_WEIGHTS
    from edgepose.converters.checkpoint import load_checkpoint
    from edgepose.converters.convert import convert
    from edgepose.models.registry import get_model

    path = tmp_path_factory.mktemp("starter") / "bundle"
    checkpoint = load_checkpoint(STARTER_WEIGHTS, get_model(STARTER_MODEL))
    convert(checkpoint, path, ["onnx-fp32", "onnx-int8"], calibration=SAMPLE_CLIP, calibration_size=16)
    return path


@pytest.fixture(scope="session")
def starter_openvino(tmp_path_factory: pytest.TempPathFactory, starter_bundle: Path) -> Path:
    """A folder with openvino-fp32 and openvino-fp16 of the starter model. Do not change it: copy it."""
    from edgepose.bundle import Bundle
    from edgepose.converters.openvino import export_openvino
    from edgepose.runtimes.openvino import import_openvino

    try:
        import_openvino()
    except ImportError as error:
        if "openvino" in os.environ.get("EDGEPOSE_TEST_ENGINES", "").split(","):
            raise
        pytest.skip(f"{error}: pip install 'edgepose[openvino]'")
    path = tmp_path_factory.mktemp("openvino")
    spec = Bundle.open(starter_bundle).spec
    for precision in ("fp32", "fp16"):
        file = path / f"openvino-{precision}.xml"
        export_openvino(starter_bundle / "onnx-fp32.onnx", spec, file, {"made": "here"}, fp16=precision == "fp16")
    return path


@pytest.fixture(scope="session")
def starter_tflite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tflite-fp32 of the starter model. Do not change it: copy it."""
    from edgepose.assets import STARTER_MODEL, STARTER_WEIGHTS
    from edgepose.converters.checkpoint import load_checkpoint
    from edgepose.converters.convert import convert
    from edgepose.models.registry import get_model

    required = "tflite" in os.environ.get("EDGEPOSE_TEST_ENGINES", "").split(",")
    if importlib.util.find_spec("litert_torch") is None and not required:
        pytest.skip("litert-torch is not installed: pip install 'edgepose[convert]'")
    path = tmp_path_factory.mktemp("tflite") / "bundle"
    convert(load_checkpoint(STARTER_WEIGHTS, get_model(STARTER_MODEL)), path, ["tflite-fp32"])
    return path


@pytest.fixture(scope="session")
def starter_torch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with torch-fp32 of the starter model. Do not change it: copy it."""
    from edgepose.assets import STARTER_MODEL, STARTER_WEIGHTS
    from edgepose.converters.checkpoint import load_checkpoint
    from edgepose.converters.rewrite import rewrite
    from edgepose.converters.torch_program import export_torch
    from edgepose.models.registry import get_model

    path, row = tmp_path_factory.mktemp("torch"), get_model(STARTER_MODEL)
    model = rewrite(load_checkpoint(STARTER_WEIGHTS, row).model)
    export_torch(model, row.spec, path / "torch-fp32.pt2", {"made": "here"})
    return path


@pytest.fixture(scope="session")
def mocap_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3D poses of people who stand about and move arms and legs: eight sequences of 20. Do not change it."""
    from edgepose.skeletons import get_skeleton

    places = {
        "pelvis": (0, 0), "hip": (0.13, 0), "knee": (0.13, -0.44), "ankle": (0.13, -0.89), "spine": (0, 0.23),
        "thorax": (0, 0.49), "neck": (0, 0.61), "head": (0, 0.73), "shoulder": (0.16, 0.49), "elbow": (0.18, 0.21),
        "wrist": (0.19, -0.04),
    }  # fmt: skip
    joints = get_skeleton("h36m17").joints
    rng = np.random.default_rng(0)
    poses = np.zeros((160, len(joints), 3), np.float32)
    for k, name in enumerate(joints):
        across, up = places[name.rpartition("_")[2]]
        poses[:, k] = [across if name.startswith("left") else -across, 0, up]
        if name.endswith(("elbow", "wrist", "knee", "ankle")):
            poses[:, k] += rng.normal(0, 0.12, (160, 3))
    path = tmp_path_factory.mktemp("mocap") / "poses.npz"
    np.savez(path, poses=poses, seq_id=np.repeat(np.arange(8), 20))
    return path


@pytest.fixture(scope="session")
def keypoints(mocap_file: Path) -> Array:
    """Those poses as a lifting model sees them (40, 17, 2), joints missing in some."""
    from edgepose.calibration.datasets.mocap import IMAGE_WH, noisy, read_poses, view
    from edgepose.lifting import normalise

    rng = np.random.default_rng(1)
    xy, _ = view(read_poses(mocap_file)[0][:40], rng, wide=0.5)
    return normalise(noisy(xy, rng), IMAGE_WH, "bbox")


@pytest.fixture(scope="session")
def lifter_bundle(tmp_path_factory: pytest.TempPathFactory, mocap_file: Path) -> Path:
    """The starter that lifts as a bundle of FP32 and INT8. Do not change it: copy it."""
    from edgepose.assets import LIFTER_MODEL, LIFTER_WEIGHTS
    from edgepose.converters.checkpoint import load_checkpoint
    from edgepose.converters.convert import convert
    from edgepose.models.registry import get_model

    path = tmp_path_factory.mktemp("lifter") / "bundle"
    checkpoint = load_checkpoint(LIFTER_WEIGHTS, get_model(LIFTER_MODEL))
    convert(checkpoint, path, ["onnx-fp32", "onnx-int8"], calibration=mocap_file, calibration_size=32)
    return path


@pytest.fixture(scope="session")
def tiny() -> Path:
    """Folder of tiny TFLite models; see its README."""
    return Path(__file__).parent / "data" / "tflite"


@pytest.fixture(scope="session")
def clip_frames() -> list[NDArray[np.uint8]]:
    """All frames of the sample clip."""
    from edgepose.assets import SAMPLE_CLIP
    from edgepose.sources import open_source

    return [frame.image_bgr for frame in open_source(str(SAMPLE_CLIP))]


@pytest.fixture
def edgepose() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in a process of its own."""

    def run(*arguments: object, cwd: Path | None = None, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edgepose", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, timeout=300)
        assert code is None or done.returncode == code, done.stdout + done.stderr
        return done

    return run
