"""Reading and extending .tflite files without an engine; the oracles are LiteRT's interpreter and schema code."""

from __future__ import annotations

import json
import struct
from collections import Counter

import numpy as np
import pytest

from edgepose import BundleError
from edgepose.runtimes.flatbuffer import Damaged, Reader
from edgepose.runtimes.tflite import TfliteEngine
from edgepose.runtimes.tflite_file import read_tflite, tensor_specs, with_metadata
from edgepose.runtimes.tflite_ops import BUILTIN_OPERATORS, TENSOR_TYPES, int8_readiness
from edgepose.types import TensorSpec

NAMES = ("fp32", "int8", "dynamic", "batch")
ENTRIES = {"edgepose": b'{"name":"tiny"}', "edgepose.origin": '{"f\u00fcr":1}'.encode()}


@pytest.mark.parametrize("name", NAMES)
def test_it_sees_what_the_interpreter_sees(tiny, name):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    path = tiny / f"{name}.tflite"
    kinds = interpreter.OpResolverType
    oracle = interpreter.Interpreter(str(path), experimental_op_resolver_type=kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
    model = read_tflite(path)
    assert [op.name for op in model.operators] == [row["op_name"] for row in oracle._get_ops_details()]
    for mine, theirs in ((model.inputs, oracle.get_input_details()), (model.outputs, oracle.get_output_details())):
        assert [(t.dtype, t.shape[1:]) for t in mine] == [
            (np.dtype(row["dtype"]).name, tuple(row["shape"][1:])) for row in theirs
        ]
        assert [t.shape[0] for t in mine] == [
            None if row["shape_signature"][0] < 0 else row["shape"][0] for row in theirs
        ]


def test_names_of_operators_and_types_are_the_schema_s():
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    for number, name in enumerate(BUILTIN_OPERATORS):
        assert getattr(schema.BuiltinOperator, name) == number
    for number, name in enumerate(TENSOR_TYPES):
        assert getattr(schema.TensorType, name.upper()) == number


def test_inputs_and_outputs_go_by_the_signature_s_names(tiny):
    model = read_tflite(tiny / "fp32.tflite")
    assert [t.name for t in model.inputs + model.outputs] == ["image", "heatmaps"]


def test_one_input_and_one_output_go_by_the_specification_s_names(tiny):
    path = tiny / "fp32.tflite"
    named = json.dumps({"input": {"name": "frame"}, "output": {"name": "maps"}}).encode()
    for text, names in ((named, ("frame", "maps")), (b"[", ("image", "heatmaps")), (b"[1]", ("image", "heatmaps"))):
        inputs, outputs = tensor_specs(read_tflite(path, with_metadata(path.read_bytes(), {"edgepose": text})))
        assert inputs == (TensorSpec(names[0], "uint8", (1, 32, 32, 3)),)
        assert outputs == (TensorSpec(names[1], "float32", (1, 14, 8, 8)),)


@pytest.mark.parametrize("name", NAMES)
def test_attached_metadata_is_read_back_and_nothing_else_changes(tiny, name):
    path = tiny / f"{name}.tflite"
    before, data = read_tflite(path), path.read_bytes()
    changed = with_metadata(data, ENTRIES)
    after = read_tflite(path, changed)
    assert after.metadata == {**before.metadata, **ENTRIES}
    assert after.text()["edgepose.origin"] == '{"für":1}'
    assert (after.operators, after.inputs, after.outputs) == (before.operators, before.inputs, before.outputs)
    assert changed.endswith(data)


@pytest.mark.parametrize("name", NAMES)
def test_the_schema_s_own_code_reads_what_was_attached(tiny, name):
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    data = (tiny / f"{name}.tflite").read_bytes()
    old, new = (
        schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
        for content in (data, with_metadata(data, ENTRIES))
    )
    found = {row.name.decode(): bytes(new.buffers[row.buffer].data) for row in new.metadata}
    assert ENTRIES.items() <= found.items()
    assert len(new.buffers) == len(old.buffers) + 2
    for was, now in zip(old.buffers, new.buffers, strict=False):
        np.testing.assert_array_equal(was.data, now.data)
    assert (new.version, new.description) == (old.version, old.description)
    assert [row.signatureKey for row in new.signatureDefs] == [row.signatureKey for row in old.signatureDefs]


@pytest.mark.parametrize("name", NAMES)
def test_the_interpreter_answers_as_before(tiny, name):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    data = (tiny / f"{name}.tflite").read_bytes()
    with np.load(tiny / "fp32.npz") as golden:
        image = golden["image"]

    def answer(content):
        made = interpreter.Interpreter(model_content=content)
        made.allocate_tensors()
        made.set_tensor(made.get_input_details()[0]["index"], image)
        made.invoke()
        return made.get_tensor(made.get_output_details()[0]["index"])

    np.testing.assert_array_equal(answer(with_metadata(data, ENTRIES)), answer(data))


def test_new_buffers_are_at_multiples_of_16_and_old_ones_stay_as_aligned_as_they_were(tiny):
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")

    def places(content):
        model = schema.Model.GetRootAs(content, 0)
        tables = [model.Buffers(i)._tab for i in range(model.BuffersLength())]
        return [table.Vector(table.Offset(4)) % 16 if table.Offset(4) else 0 for table in tables]

    for name in NAMES:
        data = (tiny / f"{name}.tflite").read_bytes()
        for size in (0, 1, 15, 16, 17, 5000):
            assert places(with_metadata(data, {"x": b"a" * size, "y": b"b"})) == [*places(data), 0, 0]


@pytest.fixture(scope="module")
def outside(tiny):
    """The float model with its weights behind the FlatBuffer, where ai-edge-quantizer puts those of larger models."""
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    flatbuffers = pytest.importorskip("flatbuffers")
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs((tiny / "fp32.tflite").read_bytes(), 0))
    stored = {i: bytes(buffer.data) for i, buffer in enumerate(model.buffers) if buffer.data is not None}
    places = dict.fromkeys(stored, 2)
    for _ in range(2):  # the first round tells how long the FlatBuffer is
        for i, content in stored.items():
            model.buffers[i].data, model.buffers[i].offset, model.buffers[i].size = None, places[i], len(content)
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        head = bytes(builder.Output())
        end = len(head) + -len(head) % 16
        tail = b""
        for i, content in stored.items():
            places[i] = end + len(tail)
            tail += content + bytes(-len(content) % 16)
    return head + bytes(end - len(head)) + tail


def test_weights_behind_the_flatbuffer_are_found_after_metadata_was_attached(tiny, tmp_path, outside):
    path = tmp_path / "outside.tflite"
    within = read_tflite(tiny / "fp32.tflite")
    assert read_tflite(path, outside).operators == within.operators
    assert read_tflite(path, outside).metadata == within.metadata
    changed = with_metadata(with_metadata(outside, {"edgepose": b"first " * 100}), ENTRIES)
    assert changed == with_metadata(outside, ENTRIES)
    with np.load(tiny / "fp32.npz") as golden:
        image, heatmaps = golden["image"], golden["heatmaps"]
    for content in (outside, changed):
        path.write_bytes(content)
        np.testing.assert_allclose(TfliteEngine(path).run({"image": image})["heatmaps"], heatmaps, atol=1e-6)
    with pytest.raises(BundleError, match=r"truncated: .* bytes of weights at byte"):
        read_tflite(path, changed[:-200])


def test_the_same_entries_are_the_same_bytes_however_they_came(tiny):
    data = (tiny / "fp32.tflite").read_bytes()
    once = with_metadata(data, ENTRIES)
    assert with_metadata(data, dict(reversed(ENTRIES.items()))) == once
    assert with_metadata(once, ENTRIES) == once
    steps = with_metadata(with_metadata(data, {"edgepose": b"another" * 99}), {"edgepose.origin": b"x"})
    assert with_metadata(steps, ENTRIES) == once
    own = next(iter(read_tflite(tiny / "fp32.tflite").metadata))  # an entry that the converter wrote
    replaced = read_tflite(tiny / "fp32.tflite", with_metadata(data, {own: b"new"}))
    assert replaced.metadata[own] == b"new"


def test_a_truncated_file_is_an_error_wherever_it_is_cut(tiny):
    path = tiny / "int8.tflite"
    data = with_metadata(path.read_bytes(), ENTRIES)
    for length in range(0, len(data) - 64, 61):
        with pytest.raises(BundleError, match=r"int8.tflite: damaged TFLite file \(.*\): copy it again, or convert"):
            read_tflite(path, data[:length])


def test_any_bytes_are_a_model_or_one_error(tiny):
    path = tiny / "fp32.tflite"
    data = with_metadata(path.read_bytes(), ENTRIES)
    rng = np.random.default_rng(0)
    errors = Counter()
    for _ in range(1500):
        damaged = bytearray(data)
        for at in rng.integers(8, len(data), rng.integers(1, 6)):
            damaged[at] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
        try:
            read_tflite(path, bytes(damaged))
            with_metadata(bytes(damaged), {"edgepose": b"new"})
        except BundleError as error:
            errors[str(error)[:60]] += 1
    assert sum(errors.values()) > 100


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"PK\3\4 and more", "no TFLite model"),
        (b"\xff\xff\xff\xffTFL3", "truncated, or an offset leads to byte"),
        (b"\x08\0\0\0TFL3" + struct.pack("<i", -8) + b"\0" * 16, "no table at byte 8"),
        (b"\x0c\0\0\0TFL3" + struct.pack("<HHi", 4, 4, 4), "it has no graph"),
    ],
)
def test_what_is_no_model(tmp_path, content, message):
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=rf"model.tflite: damaged TFLite file \({message}"):
        read_tflite(path)
    if message != "it has no graph":
        with pytest.raises(BundleError, match=rf"metadata cannot be attached to this TFLite model \({message}"):
            with_metadata(content, {})


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(BundleError, match=r"none.tflite: cannot be read \(No such file or directory\)"):
        read_tflite(tmp_path / "none.tflite")


def test_vectors_that_are_shared_do_not_multiply():
    """A small file can point at one large vector a million times."""
    reader = Reader(b"\0" * 100)
    reader.spend(4000)
    with pytest.raises(Damaged, match="it describes more than its size can hold"):
        reader.spend(4000)


def test_dynamic_range_is_told_from_static_int8(tiny):
    found = {
        name: [op.name for op in read_tflite(tiny / f"{name}.tflite").operators if op.dynamic_range] for name in NAMES
    }
    assert found == {"fp32": [], "int8": [], "batch": [], "dynamic": ["CONV_2D", "FULLY_CONNECTED", "CONV_2D"]}


def test_what_leaves_an_int8_only_delegate(tiny):
    rows = {
        name: {
            (row.name, row.reason): row.count for row in int8_readiness(read_tflite(tiny / f"{name}.tflite").operators)
        }
        for name in ("fp32", "int8", "custom")
    }
    assert rows["fp32"]["CONV_2D", "float32 tensors"] == 2
    assert sum(rows["fp32"].values()) == 13  # all
    assert not {("CONV_2D", "float32 tensors"), ("FULLY_CONNECTED", "float32 tensors")} & set(rows["int8"])
    assert rows["int8"]["SOFTMAX", "float32 tensors"] == 1
    assert rows["custom"]["edgetpu-custom-op", "custom operator"] == 1


def test_operators_that_no_int8_delegate_knows(tiny):
    from dataclasses import replace

    from edgepose.runtimes.tflite_file import TfliteTensor

    inside = TfliteTensor("x", "int8", (1, 4), constant=False)
    base = replace(read_tflite(tiny / "int8.tflite").operators[0], inputs=(inside,), outputs=(inside,))
    operators = [replace(base, name=name) for name in ("GELU", "CONV_2D", "GELU")]
    assert [(row.name, row.count, row.reason) for row in int8_readiness(operators)] == [
        ("GELU", 2, "not an operator of INT8-only delegates")
    ]
    wide = replace(operators[1], outputs=(replace(inside, dtype="int16"),))
    assert int8_readiness([wide])[0].reason == "int16 tensors"
