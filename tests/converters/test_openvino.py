"""OpenVINO IR: equal to ONNX, half the size in FP16, the same bytes from every process and folder."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from edgepose import ConversionError
from edgepose.bundle import Bundle
from edgepose.converters import quantize
from edgepose.converters.openvino import export_openvino, load_openvino, save_openvino
from edgepose.runtimes.load import load
from edgepose.types import ORIGIN_KEY, SPEC_KEY

pytestmark = pytest.mark.usefixtures("starter_openvino")  # which skips where openvino is not installed


@pytest.fixture(scope="module")
def starter(starter_bundle, starter_openvino):
    bundle = Bundle.open(starter_bundle)
    return SimpleNamespace(
        spec=bundle.spec,
        image=bundle.golden().inputs,
        onnx=starter_bundle / "onnx-fp32.onnx",
        fp32=starter_openvino / "openvino-fp32.xml",
        fp16=starter_openvino / "openvino-fp16.xml",
    )


def contents(path):
    return path.read_bytes(), path.with_suffix(".bin").read_bytes()


@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [
        ("fp32", 1e-4),  # the same arithmetic in another order
        ("fp16", 5e-3),  # weights rounded to 11 bits
    ],
)
def test_equal_to_onnx(starter, precision, tolerance):
    expected = load(starter.onnx, self_test=False).heatmaps(starter.image)
    heatmaps = load(getattr(starter, precision)).heatmaps(starter.image)
    assert np.abs(heatmaps - expected).max() <= tolerance


def test_half_precision_is_half_the_size(starter):
    fp32, fp16 = (path.with_suffix(".bin").stat().st_size for path in (starter.fp32, starter.fp16))
    assert fp16 == pytest.approx(fp32 / 2, rel=0.01)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_same_bytes_from_another_process_and_folder(starter, precision, tmp_path):
    """OpenVINO names nodes by a counter of the process; the second model of a process has other numbers."""
    path = tmp_path / "elsewhere.xml"
    script = (
        "import sys; from pathlib import Path\n"
        "from edgepose.converters.openvino import export_openvino\n"
        "from edgepose.runtimes.load import load\n"
        "onnx, first, path = map(Path, sys.argv[1:4]); spec = load(first).spec\n"
        f"export_openvino(onnx, spec, path, {{'made': 'here'}}, fp16={precision == 'fp16'})\n"
    )
    subprocess.run([sys.executable, "-c", script, starter.onnx, starter.fp32, path], check=True)
    assert contents(path) == contents(getattr(starter, precision))
    text = path.read_text()
    assert "elsewhere" not in text
    assert str(starter.onnx.parent) not in text
    assert "onnx-fp32" not in text


def test_loading_and_saving_again_changes_nothing(starter, tmp_path):
    path = tmp_path / "again.xml"
    save_openvino(load_openvino(starter.fp32), starter.spec, path, {"made": "here"}, fp16=False)
    assert contents(path) == contents(starter.fp32)
    save_openvino(load_openvino(path), starter.spec, path, {"made": "here"}, fp16=False)  # over itself
    assert contents(path) == contents(starter.fp32)


def test_a_quantized_model_keeps_what_it_carries_and_its_bytes(starter, tmp_path):
    nncf = quantize._nncf()
    files = []
    for name in ("one.xml", "two.xml"):
        model = load_openvino(starter.fp32)
        dataset = nncf.Dataset(list(starter.image), lambda crop: {"image": crop[None]})
        quantized = nncf.quantize(model, dataset, subset_size=2, model_type=nncf.ModelType.TRANSFORMER)
        assert quantized.get_rt_info([SPEC_KEY]).value == starter.spec.to_json()
        save_openvino(quantized, starter.spec, tmp_path / name, {"bits": 8}, fp16=False)
        files.append(tmp_path / name)
    assert contents(files[0]) == contents(files[1])
    estimator = load(files[0])
    assert estimator.spec == starter.spec
    assert estimator.engine.metadata[ORIGIN_KEY] == '{"bits": 8}'
    placement = estimator.engine.placement()
    assert placement["CPU u8"] + placement["CPU i8"] > 30
    assert files[0].with_suffix(".bin").stat().st_size < 0.3 * starter.fp32.with_suffix(".bin").stat().st_size


def test_a_file_that_is_no_onnx(starter, tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(ConversionError, match=r"broken\.onnx: OpenVINO cannot convert it"):
        export_openvino(path, starter.spec, tmp_path / "out.xml", fp16=False)
    assert not (tmp_path / "out.xml").exists()
    with pytest.raises(ConversionError, match="OpenVINO cannot write it"):
        export_openvino(starter.onnx, starter.spec, path / "out.xml", fp16=False)
