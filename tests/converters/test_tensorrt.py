"""Models for TensorRT: typed FP16, and INT8 by its rules, which are checked on the graph."""

from __future__ import annotations

import shutil
from collections import defaultdict

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepose import ConversionError, load
from edgepose import bundle as bundles
from edgepose.bundle import Bundle, Variant
from edgepose.converters.half import half_precision
from edgepose.converters.qdq import make_signed
from edgepose.converters.recipes import get_recipe
from edgepose.converters.variants import Job, get_variant
from edgepose.runtimes.load import load_model_file
from edgepose.runtimes.onnxruntime import run_graph


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, starter_bundle):
    """The starter for TensorRT, made from its FP32 model as edgepose convert does."""
    starter, path = Bundle.open(starter_bundle), tmp_path_factory.mktemp("tensorrt") / "bundle"
    golden, made = starter.golden(), []
    with bundles.create(path, force=False) as writer:
        for name in ("tensorrt-fp16", "tensorrt-int8"):
            row, recipe = get_variant(name), get_recipe("tensorrt-qdq")
            file = writer.folder / row.files[0]
            origin = {"recipe": row.recipe(recipe)}
            row.make(Job(starter_bundle / "onnx-fp32.onnx", file, starter.spec, origin, recipe, golden.inputs))
            error = golden.error_of(load_model_file(file).infer(golden.inputs))
            made.append(Variant(name, row.files, origin["recipe"], error))
        writer.write_golden(golden, starter.spec)
        writer.finish(starter.spec, made, starter.provenance)
    return Bundle.open(path)


class Graph:
    """An ONNX graph with the ways through it."""

    def __init__(self, path):
        self.model = onnx.load(path)
        typed = onnx.shape_inference.infer_shapes(self.model, check_type=True, strict_mode=True)
        self.nodes = self.model.graph.node
        self.weights = {t.name: numpy_helper.to_array(t) for t in self.model.graph.initializer}
        self.source = {name: node for node in self.nodes for name in node.output}
        self.readers = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.readers[name].append(node)
        self.types = {v.name: v.type.tensor_type.elem_type for v in typed.graph.value_info}

    def of(self, *kinds):
        return [node for node in self.nodes if node.op_type in kinds]

    def from_int8(self, name):
        """Whether a tensor comes out of a DequantizeLinear, layers that only move data aside."""
        node = self.source.get(name)
        while node is not None and node.op_type in ("MaxPool", "Reshape", "Transpose"):
            node = self.source.get(node.input[0])
        return node is not None and node.op_type == "DequantizeLinear"


@pytest.fixture(scope="module")
def int8(bundle):
    return Graph(bundle.path / "tensorrt-int8.onnx")


@pytest.fixture(scope="module")
def fp16(bundle):
    return Graph(bundle.path / "tensorrt-fp16.onnx")


def test_fp16_is_close_to_fp32_and_int8_as_close_as_for_other_engines(bundle, starter_bundle):
    errors = {row.name: row.golden_error for row in bundle.variants}
    assert 0 < errors["tensorrt-fp16"] < 0.002
    other = next(row.golden_error for row in Bundle.open(starter_bundle).variants if row.name == "onnx-int8")
    assert errors["tensorrt-int8"] < 1.5 * other
    size = {name: row["bytes"] for name, row in bundle.files.items()}
    assert size["tensorrt-fp16.onnx"] < 0.55 * (starter_bundle / "onnx-fp32.onnx").stat().st_size
    assert size["tensorrt-int8.onnx"] < 0.6 * size["tensorrt-fp16.onnx"]


def test_the_contract_is_that_of_every_variant(bundle):
    for variant in ("tensorrt-fp16", "tensorrt-int8"):
        estimator = load(bundle.path, "onnxruntime", "cpu", variant)
        assert (estimator.engine.inputs, estimator.engine.outputs) == ((bundle.spec.input,), (bundle.spec.output,))


@pytest.mark.parametrize("name", ["fp16", "int8"])
def test_everything_between_is_float16_but_layernorm(name, request):
    graph = request.getfixturevalue(name)
    normalised = {n for node in graph.of("LayerNormalization") for n in (*node.input, *node.output)}
    single = {name for name, kind in graph.types.items() if kind == TensorProto.FLOAT}
    assert single == {n for n in normalised if n in graph.types}
    assert len(graph.of("LayerNormalization")) == 6
    halves = [w for name, w in graph.weights.items() if w.dtype == np.float32]
    assert len(halves) == 12  # scale and shift of each LayerNorm


def test_a_picture_is_cast_before_anything_else(fp16):
    (first,) = fp16.readers["image"]
    assert (first.op_type, fp16.types[first.output[0]]) == ("Cast", TensorProto.FLOAT16)


def test_quantization_is_signed_and_symmetric(int8):
    """TensorRT knows no other: the parser refuses zero points, and takes unsigned ones for signed."""
    pairs = int8.of("QuantizeLinear", "DequantizeLinear")
    assert len(pairs) > 100
    for node in pairs:
        scale, zero = int8.weights[node.input[1]], int8.weights[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
        assert scale.dtype == np.float16  # strongly typed: a float32 scale would make a float32 layer
        assert (scale > 0).all()
        assert scale.shape == zero.shape


def test_weights_are_int8_by_channel_and_biases_are_not_quantized(int8):
    quantized = 0
    for node in int8.of("Conv", "MatMul"):
        weight = int8.source.get(node.input[1])
        if weight is None or weight.input[0] not in int8.weights:
            continue
        quantized += 1
        assert int8.weights[weight.input[0]].dtype == np.int8
        axis = next(a.i for a in weight.attribute if a.name == "axis")
        assert axis in {"Conv": (0,), "MatMul": (1, -1)}[node.op_type]
        assert len(int8.weights[weight.input[1]]) == int8.weights[weight.input[0]].shape[axis]
        assert all(int8.weights[name].dtype == np.float16 for name in node.input[2:])
    assert quantized > 35


def test_the_picture_and_attention_stay_in_float(int8):
    first = next(node for node in int8.of("Conv") if node.name == "conv1/Conv")
    assert int8.weights[first.input[1]].dtype == np.float16
    products = [node for node in int8.of("MatMul") if node.input[1] not in int8.weights]
    attention = [n for n in products if not int8.from_int8(n.input[0]) and not int8.from_int8(n.input[1])]
    assert len(attention) == 6


def test_residual_sums_are_one_kernel_with_their_convolution(int8):
    """A sum behind an 8-bit convolution takes its other operand in 8 bits, and the convolution's result as it is."""
    sums = 0
    for node in int8.of("Add"):
        sides = [int8.source.get(name) for name in node.input]
        convolutions = [s for s in sides if s is not None and s.op_type == "Conv" and int8.from_int8(s.input[0])]
        if not convolutions:
            continue
        sums += 1
        assert len(convolutions) == 1
        assert sum(int8.from_int8(name) for name in node.input) == 1
    assert sums == 7  # the blocks of the ResNet stem


def small(nodes, weights, inputs=("x",)):
    """A model of a few nodes over float32 (1, 2)."""
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in inputs]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "small", info, [out], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_float_inputs_and_outputs_keep_their_type():
    """As lifting models have them."""
    model = half_precision(small([helper.make_node("Mul", ["x", "w"], ["y"])], {"w": np.array([1 / 3, 3], np.float32)}))
    ends = [*model.graph.input, *model.graph.output]
    assert [end.type.tensor_type.elem_type for end in ends] == [TensorProto.FLOAT, TensorProto.FLOAT]
    x = np.array([[1.5, -2]], np.float32)
    answer = next(run_graph(model.SerializeToString(), [{"x": x}], ["y"]))["y"]
    np.testing.assert_allclose(answer, [[0.5, -6]], rtol=2**-11)
    assert answer[0, 0] != x[0, 0] * np.float32(1 / 3)  # it was rounded on the way


def test_a_weight_that_float16_has_not_is_named():
    model = small([helper.make_node("Mul", ["x", "w"], ["y"])], {"w": np.array([1e5, 1], np.float32)})
    with pytest.raises(ConversionError, match=r"^w: holds 1e\+05, float16 ends at 65504: use FP32"):
        half_precision(model)


def test_a_weight_that_float32_layers_share_stays_for_them():
    nodes = [
        helper.make_node("LayerNormalization", ["x", "w"], ["n"], name="norm"),
        helper.make_node("Mul", ["n", "w"], ["y"]),
    ]
    model = half_precision(small(nodes, {"w": np.array([1, 2], np.float32)}))
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert kinds == {"w": TensorProto.FLOAT16, "w_float32": TensorProto.FLOAT}


def test_a_range_from_zero_upwards_keeps_its_end_when_it_gets_a_sign():
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    model = make_signed(small(nodes, {"s": np.float32(2 / 255), "z": np.uint8(0)}))
    scale, zero = (numpy_helper.to_array(tensor) for tensor in model.graph.initializer)
    assert float(scale) * 127 == pytest.approx(2)
    assert zero.dtype == np.int8
    with pytest.raises(ConversionError, match="z is not zero: quantize with the preset performance"):
        make_signed(small(nodes, {"s": np.float32(1), "z": np.uint8(3)}))


def test_a_bundle_of_tensorrt_files_alone_runs_on_onnxruntime_for_checking(bundle, clip_frames):
    estimator = load(bundle.path)
    assert estimator.variant == "tensorrt-int8"
    assert estimator.engine.name == "onnxruntime"
    assert len(estimator.estimate(clip_frames[40])) == 1


def test_a_copy_under_another_name_computes_the_same(bundle, tmp_path):
    """The file itself says how it is quantized."""
    shutil.copy(bundle.path / "tensorrt-int8.onnx", tmp_path / "model.onnx")
    inputs = bundle.golden().inputs
    answers = [load_model_file(path).infer(inputs) for path in (tmp_path / "model.onnx", int8_file(bundle))]
    np.testing.assert_array_equal(*answers)


def int8_file(bundle):
    return bundle.path / "tensorrt-int8.onnx"
