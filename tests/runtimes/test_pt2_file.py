"""A .pt2 file is untrusted: it is read without running anything in it, or refused in one line."""

from __future__ import annotations

import json
import logging
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from edgepose import BundleError
from edgepose.runtimes.pt2_file import read_pt2

MODEL, SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
WEIGHTS, CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"


@pytest.fixture(scope="module")
def good(starter_torch):
    return starter_torch / "torch-fp32.pt2"


@pytest.fixture
def edited(good, tmp_path):
    """Write the starter's file with members replaced or added; a function changes what is there."""

    def edit(changes, compression=zipfile.ZIP_STORED):
        path = tmp_path / "edited.pt2"
        with zipfile.ZipFile(good) as old, zipfile.ZipFile(path, "w", compression) as new:
            members = {row.filename.partition("/")[2]: old.read(row) for row in old.infolist()}
            for name, change in changes.items():
                members[name] = change(members[name]) if callable(change) else change
            for name, content in members.items():
                new.writestr(f"archive/{name}", content)
        return path

    return edit


def changed(*keys, to):
    """A change of one value in a JSON member."""

    def change(content):
        data = json.loads(content)
        place = data
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = to
        return json.dumps(data).encode()

    return change


class Mark:
    """Its pickle makes a folder when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


FIRST = ("config", "model.conv1.weight")
GRAPH = ("graph_module", "graph")


def test_what_is_read_is_what_torch_reads(good):
    program, stock = read_pt2(good), torch.export.load(good)
    assert [spec.name for spec in program.inputs + program.outputs] == ["image", "heatmaps"]
    assert len(program.nodes) == sum(
        node.op == "call_function" and "getitem" not in node.name for node in stock.graph.nodes
    )
    weights = {**dict(stock.named_parameters()), **dict(stock.named_buffers())}
    names = {**stock.graph_signature.inputs_to_parameters, **stock.graph_signature.inputs_to_buffers}
    assert len(program.weights) == len(weights)
    for name, array in program.weights.items():
        np.testing.assert_array_equal(array, weights[names[name]].detach().numpy())
    assert json.loads(program.metadata["edgepose.origin"]) == {"made": "here"}


def pickled_samples(mark):
    return {SAMPLES: pickle.dumps(Mark(mark))}


def pickled_weight(mark):
    return {"data/weights/weight_0": pickle.dumps(Mark(mark)), WEIGHTS: changed(*FIRST, "use_pickle", to=True)}


def opaque_constant(mark):
    row = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    return {"data/constants/opaque_obj_0": pickle.dumps(Mark(mark)), CONSTANTS: changed("config", "x", to=row)}


def calls_anything(mark):
    given = [{"name": "cmd", "arg": {"as_string": f"touch {mark}"}, "kind": 1}]
    node = {"target": "torch.os.system", "inputs": given, "outputs": [{"as_tensor": {"name": "x"}}], "metadata": {}}
    return {MODEL: changed(*GRAPH, "nodes", 0, to=node)}


def compiled_code(mark):
    return {"data/aotinductor/model/wrapper.so": b"\x7fELF"}


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (pickled_samples, "holds pickled sample inputs"),
        (pickled_weight, "holds pickled weights"),
        (opaque_constant, "holds 'archive/data/constants/opaque_obj_0'"),
        (calls_anything, "calls 'torch.os.system'"),
        (compiled_code, "holds 'archive/data/aotinductor/model/wrapper.so'"),
    ],
)
def test_code_in_a_file_is_refused_and_does_not_run(edited, tmp_path, attack, message):
    path = edited(attack(tmp_path / "mark"))
    with pytest.raises(BundleError, match=rf"edited.pt2: {message}, and only what edgepose writes is loaded"):
        read_pt2(path)
    assert not (tmp_path / "mark").exists()


def evaluated_shape(mark):
    bad = {"as_expr": {"expr_str": f"__import__('os').mkdir({str(mark)!r})", "hint": {"as_int": 2}}}
    return {MODEL: changed(*GRAPH, "tensor_values", "image", "sizes", 0, to=bad)}


@pytest.mark.parametrize("attack", [pickled_samples, pickled_weight, opaque_constant, evaluated_shape])
def test_the_attacks_are_real_ones(edited, tmp_path, attack):
    """Torch's own loader runs them: the day it does not, this module may have become needless."""
    path = edited(attack(tmp_path / "mark"))
    logging.disable(logging.ERROR)
    try:
        torch.export.load(path)
    except Exception:  # what it makes of the rest is no matter
        pass
    finally:
        logging.disable(logging.NOTSET)
    assert (tmp_path / "mark").exists()


def test_shapes_are_not_evaluated(edited, tmp_path):
    """Torch's own loader gives them to sympify, which evaluates Python."""
    program = read_pt2(edited(evaluated_shape(tmp_path / "mark")))
    assert program.inputs[0].shape == (None, 128, 96, 3)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({MODEL: b"{}"}, "damaged .pt2 file"),
        ({MODEL: b"[" * 100_000}, "damaged .pt2 file"),
        ({MODEL: changed("schema_version", "major", to=9)}, "has schema version 9, not 8"),
        (
            {MODEL: changed(*GRAPH, "nodes", 0, "target", to="torch.ops.aten.from_file.default")},
            "calls 'torch.ops.aten.f",
        ),
        (
            {MODEL: changed(*GRAPH, "nodes", 1, "inputs", 0, "arg", to={"as_tensor": {"name": "y"}})},
            "'y' is used before",
        ),
        ({MODEL: changed(*GRAPH, "nodes", 1, "inputs", 0, "arg", to={"as_string": "x"})}, "argument of the kind 'as_s"),
        (
            {MODEL: changed(*GRAPH, "nodes", 1, "outputs", 0, to={"as_tensor": {"name": "image"}})},
            "'image' is made twice",
        ),
        (
            {WEIGHTS: changed(*FIRST, "tensor_meta", "sizes", 0, to={"as_int": 10**9})},
            "not contiguous|buffer is smaller",
        ),
        ({WEIGHTS: changed(*FIRST, "tensor_meta", "strides", 0, to={"as_int": 1})}, "weight_0 is not contiguous"),
        ({WEIGHTS: changed(*FIRST, "tensor_meta", "storage_offset", to={"as_int": 7})}, "buffer is smaller"),
        ({WEIGHTS: changed(*FIRST, "path_name", to="../../secret")}, "damaged .pt2 file"),
        ({"byteorder": b"big"}, "weights are not little-endian"),
        ({"extra/edgepose": b"\xff\xfe"}, "damaged .pt2 file"),
        ({"models/other.json": b"{}"}, "holds 'archive/models/other.json'"),
    ],
)
def test_what_is_damaged_or_strange_is_one_line(edited, changes, message):
    with pytest.raises(BundleError, match=message) as caught:
        read_pt2(edited(changes))
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("edited.pt2") == 1


def test_a_compressed_archive_is_refused(edited):
    """Or a small file could become a large one in memory."""
    path = edited({"extra/x": b"0" * 10_000_000}, zipfile.ZIP_DEFLATED)
    with pytest.raises(BundleError, match="its files overlap, or are compressed"):
        read_pt2(path)


@pytest.mark.parametrize("keep", [0, 3, 1000, 4_000_000])
def test_a_truncated_file(good, tmp_path, keep):
    path = tmp_path / "cut.pt2"
    path.write_bytes(good.read_bytes()[:keep])
    with pytest.raises(BundleError, match=r"cut.pt2: damaged .pt2 file \(.*\): copy it again, or convert again"):
        read_pt2(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(BundleError, match=r"none.pt2: cannot be read \(No such file"):
        read_pt2(tmp_path / "none.pt2")


@pytest.mark.parametrize("member", [MODEL, WEIGHTS])
def test_bytes_at_random_are_an_error_or_another_model(edited, member):
    rng = np.random.default_rng(0)

    def spoil(content):
        spoilt = bytearray(content)
        for place in rng.integers(0, len(spoilt), 3):
            spoilt[place] = rng.integers(32, 127)
        return bytes(spoilt)

    refused = 0
    for _ in range(20):
        try:
            read_pt2(edited({member: spoil}))
        except BundleError as error:
            refused += "\n" not in str(error)
    assert refused > 5
