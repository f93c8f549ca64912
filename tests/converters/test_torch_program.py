"""torch.export files: equal to torch, repeatable, free of pickles and of the exporting machine."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

import edgepose
from edgepose import ConversionError
from edgepose.assets import STARTER_MODEL, STARTER_WEIGHTS
from edgepose.bundle import Bundle
from edgepose.cli.convert import _variants
from edgepose.converters.checkpoint import load_checkpoint
from edgepose.converters.contract import deployed
from edgepose.converters.convert import convert
from edgepose.converters.reproduce import reproduce
from edgepose.converters.rewrite import rewrite
from edgepose.converters.torch_program import export_torch
from edgepose.models.registry import get_model
from edgepose.runtimes.load import load_model_file
from edgepose.types import ModelSpec

ROWS = {
    "one head, HRNet": replace(get_model("transpose-h-s"), input_hw=(64, 64)),
    "lifting": replace(get_model("ampose-s"), sizes={"d_model": 32, "layers": 2, "heads": 2}),
}


@pytest.fixture(scope="module")
def starter(starter_torch):
    return starter_torch / "torch-fp32.pt2"


@pytest.fixture(scope="module", params=list(ROWS))
def exported(request, tmp_path_factory):
    """A model with torch's own initialisation, and its file."""
    row = ROWS[request.param]
    torch.manual_seed(0)
    model = row.build()
    path = tmp_path_factory.mktemp("torch") / "model.pt2"
    export_torch(rewrite(model), row.spec, path)
    return model, row.spec, path


def samples(spec, count):
    rng, shape = np.random.default_rng(count), (count, *spec.input.shape[1:])
    if spec.task == "pose2d":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    return rng.uniform(-1, 1, shape).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 3])
def test_equal_to_torch_and_read_by_torch(exported, batch):
    model, spec, path = exported
    inputs = samples(spec, batch)
    with torch.inference_mode():
        expected = deployed(model, spec)(torch.from_numpy(inputs)).numpy()
    answers = load_model_file(path, device="cpu").infer(inputs)
    assert np.linalg.norm(answers - expected) <= 1e-5 * np.linalg.norm(expected)
    with torch.no_grad():
        stock = torch.export.load(path).module()(torch.from_numpy(inputs)).numpy()
    np.testing.assert_allclose(stock, answers, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_module_stays_as_it_is(tmp_path):
    row = get_model(STARTER_MODEL)
    model = rewrite(load_checkpoint(STARTER_WEIGHTS, row).model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grads = [parameter.requires_grad for parameter in model.parameters()]
    export_torch(model, row.spec, tmp_path / "model.pt2")
    assert [parameter.requires_grad for parameter in model.parameters()] == grads
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_same_bytes_from_another_process_and_under_another_name(starter, tmp_path):
    script = (
        "import sys, pathlib\n"
        "from edgepose.assets import STARTER_MODEL, STARTER_WEIGHTS\n"
        "from edgepose.converters.checkpoint import load_checkpoint\n"
        "from edgepose.converters.rewrite import rewrite\n"
        "from edgepose.converters.torch_program import export_torch\n"
        "from edgepose.models.registry import get_model\n"
        "row = get_model(STARTER_MODEL)\n"
        "model = rewrite(load_checkpoint(STARTER_WEIGHTS, row).model)\n"
        "export_torch(model, row.spec, pathlib.Path(sys.argv[1]), {'made': 'here'})\n"
    )
    other = tmp_path / "other name.pt2"
    subprocess.run([sys.executable, "-c", script, str(other)], check=True, capture_output=True)
    assert other.read_bytes() == starter.read_bytes()


def test_nothing_of_the_exporting_machine_is_inside(starter):
    with zipfile.ZipFile(starter) as archive:
        texts = {row.filename: archive.read(row) for row in archive.infolist() if "weight_" not in row.filename}
    assert texts["archive/data/sample_inputs/model.pt"] == b""  # would be a pickle
    for name, text in texts.items():
        for leak in (b"/", b".py", b"stack_trace", b"edgepose.converters", b"from_node"):
            assert leak not in text, name
    nodes = json.loads(texts["archive/models/model.json"])["graph_module"]["graph"]["nodes"]
    assert {tuple(node["metadata"]) for node in nodes} <= {(), ("nn_module_stack",)}
    assert any("model.layer2.0.conv1" in str(node["metadata"]) for node in nodes)


def test_the_specification_and_the_origin_are_inside(starter):
    with zipfile.ZipFile(starter) as archive:
        spec = archive.read("archive/extra/edgepose").decode()
        assert json.loads(archive.read("archive/extra/edgepose.origin")) == {"made": "here"}
    assert ModelSpec.from_json(spec, "file") == get_model(STARTER_MODEL).spec


def test_attention_is_torchs_and_positions_are_stored_once(starter):
    program = torch.export.load(starter)
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets.count("aten.scaled_dot_product_attention.default") == 3
    assert not any("softmax" in target or "assert" in target for target in targets)
    assert not any("pos_embedding" in name for name in program.state_dict)


@pytest.mark.slow
def test_a_bundle_with_torch_is_made_loaded_and_made_again(tmp_path):
    checkpoint = load_checkpoint(STARTER_WEIGHTS, get_model(STARTER_MODEL))
    told = []
    conversion = convert(checkpoint, tmp_path / "b", ["torch-fp32"], progress=lambda stage, *_: told.append(stage))
    assert "rewrite and export to torch" in told
    assert conversion.rows[0].agreement.mean_oks == pytest.approx(1, abs=1e-4)
    variant = Bundle.open(tmp_path / "b").variant("torch-fp32")
    assert variant.files == ("torch-fp32.pt2",)
    assert variant.recipe == {"exporter": "torch.export, rewritten"}
    assert variant.golden_error < 1e-5
    engine = edgepose.load(tmp_path / "b", device="cpu").engine
    assert engine.name == "torch"
    origin = json.loads(engine.metadata["edgepose.origin"])
    assert set(origin["versions"]) == {"edgepose", "torch"}
    assert origin["checkpoint"]["file"] == STARTER_WEIGHTS.name
    assert reproduce(tmp_path / "b", STARTER_WEIGHTS, None).same


class Odd(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, keypoints):
        return self.function(torch.cat([keypoints, keypoints[..., :1]], dim=-1))


def test_an_operator_that_the_engine_refuses_is_a_conversion_error(tmp_path):
    spec = get_model("ampose-s").spec
    with pytest.raises(
        ConversionError, match=r"ampose-s: uses aten.sin.default, which is not in OPERATORS of runtimes"
    ):
        export_torch(Odd(torch.sin), spec, tmp_path / "odd.pt2")
    assert not (tmp_path / "odd.pt2").exists()


def test_a_module_that_cannot_be_exported(tmp_path):
    spec = get_model("ampose-s").spec
    with pytest.raises(ConversionError, match=r"ampose-s: torch.export cannot export it \([^\n]+\)$"):
        export_torch(Odd(lambda xyz: xyz * (1 if float(xyz.sum()) > 0 else 2)), spec, tmp_path / "odd.pt2")


@pytest.mark.parametrize(
    ("formats", "precision", "names"),
    [
        (["torch"], None, ["torch-fp32"]),
        (["torch", "onnx"], None, ["torch-fp32", "onnx-fp32", "onnx-int8"]),
        (["torch"], "auto", ["torch-fp32"]),
        (["tensorrt", "tflite"], None, ["tensorrt-fp16", "tensorrt-int8", "tflite-fp32", "tflite-int8"]),
        (["torch"], "fp32,int8", ["torch-fp32", "torch-int8"]),  # asked for by name: an error that names it follows
    ],
)
def test_the_usual_precisions_are_those_that_a_format_has(formats, precision, names):
    assert _variants(formats, precision) == names
