"""Which products of softmax with values may be 8-bit."""

from __future__ import annotations

import numpy as np
import pytest

from edgepose import ConversionError
from edgepose.bundle import Bundle
from edgepose.converters.attention import fragile_products
from edgepose.converters.onnx import load_onnx
from edgepose.converters.openvino import convert_openvino
from edgepose.converters.quantize import linear_layers, quantize
from edgepose.converters.recipes import Recipe

ov = pytest.importorskip("openvino", reason="openvino is not installed")
ops = ov.opset13


def attention(scores, values):
    """A model of one product: softmax over scores (1, T, T), which the image shifts a little, with values (1, T, d)."""
    image = ops.parameter([1, 2, 2, 3], np.uint8, name="image")
    shift = ops.multiply(ops.reduce_mean(ops.convert(image, np.float32), [1, 2, 3]), np.float32(1e-3))
    softmax = ops.softmax(ops.add(ops.constant(scores.astype(np.float32)), shift), -1)
    product = ops.matmul(softmax, ops.constant(values.astype(np.float32)), False, False)
    product.set_friendly_name("the product")
    return ov.Model([product], [image])


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def crops(rng):
    return rng.integers(0, 256, (3, 2, 2, 3), dtype=np.uint8)


def test_rows_that_are_alike_survive(rng, crops):
    scores, values = 0.3 * rng.normal(size=(1, 256, 256)), rng.uniform(-1, 1, size=(1, 256, 8))
    assert fragile_products(attention(scores, values), crops) == []


def test_a_sharp_row_beside_flat_ones_does_not(rng, crops):
    scores = 0.3 * rng.normal(size=(1, 256, 256))
    scores[0, 0, 0] = 20  # a probability of one: the others, about 1/256, are one step of 8 bits
    assert fragile_products(attention(scores, rng.uniform(-1, 1, size=(1, 256, 8))), crops) == ["the product"]


def test_neither_do_values_with_an_outlier(rng, crops):
    values = rng.uniform(-1, 1, size=(1, 256, 8))
    values[0, 0] = 1e4  # hardly seen by any row, and far from all others
    scores = 0.3 * rng.normal(size=(1, 256, 256))
    scores[0, :, 0] = -30
    assert fragile_products(attention(scores, values), crops) == ["the product"]


def test_the_starter_keeps_softmax_in_float(starter_bundle):
    """Its attention, trained, has sharp rows beside flat ones in every layer."""
    model = convert_openvino(starter_bundle / "onnx-fp32.onnx")
    image = Bundle.open(starter_bundle).golden().inputs
    products = [name for name in linear_layers(model) if name.endswith("self_attn/MatMul_2")]
    assert fragile_products(model, image) == products
    assert len(products) == 3


def test_every_product_in_8_bits_by_the_fast_recipe(starter_bundle):
    model = convert_openvino(starter_bundle / "onnx-fp32.onnx")
    image = Bundle.open(starter_bundle).golden().inputs
    quantized = quantize(model, image, Recipe("openvino-vnni-fast", attention="int8"))
    by_name = {op.get_friendly_name(): op for op in quantized.get_ops()}
    for layer in range(3):
        product = by_name[f"global_encoder.layers.{layer}.self_attn/MatMul_2"]
        assert product.input_value(0).get_node().get_type_name() == "FakeQuantize"
        norm = by_name[f"global_encoder.layers.{layer}.norm1/LayerNormalization"]
        assert norm.input_value(0).get_node().get_type_name() == "Multiply"  # the norm is in float


def test_onnx_has_no_such_recipe(starter_bundle):
    with pytest.raises(ConversionError, match="attention 'auto' is for OpenVINO"):
        quantize(
            load_onnx(starter_bundle / "onnx-fp32.onnx"),
            np.zeros((1, 2, 2, 3), np.uint8),
            Recipe("x", attention="auto"),
        )
