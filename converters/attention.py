"""Which products of softmax with values survive 8 bits: softmax is what collapses when everything is INT8.

A softmax over thousands of tokens may have rows whose largest value is 0.01 beside rows where it is 1: eight bits for
both leave nothing of the first. Layers in which rows are alike lose nothing and gain a third of their time. So each
layer is measured on calibration crops, with its own values, which may have outliers as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.runtimes.openvino import import_openvino

__all__ = ["fragile_products"]

_SAMPLES = 8  # of the calibration set: each needs all attention maps of the model in memory
_ENOUGH_DB = 40.0
"""Ten times better than a whole INT8 model is against FP32: products that keep this do not show in its answers."""


@dataclass
class _Product:
    """A product of softmax with values, where its operands come out of the probed model, and what it loses."""

    name: str
    softmax: int
    values: int
    largest_softmax: float = 0.0
    largest_value: float = 0.0
    signal: float = 0.0
    noise: float = 0.0

    def see(self, answers: Any) -> None:
        """Note the largest operands: they set the steps of the quantizer."""
        self.largest_softmax = max(self.largest_softmax, float(answers[self.softmax].max()))
        self.largest_value = max(self.largest_value, float(np.abs(answers[self.values]).max()))

    def compare(self, answers: Any) -> None:
        """Add up the squares of the product, and of its error with 8-bit operands."""
        softmax, values = answers[self.softmax], answers[self.values]
        exact = softmax @ values
        rounded = _rounded(softmax, self.largest_softmax / 255) @ _rounded(values, self.largest_value / 127)
        self.signal += float(np.square(exact).sum())
        self.noise += float(np.square(rounded - exact).sum())

    @property
    def decibels(self) -> float:
        """How far the product is above its error."""
        return 10 * math.log10(self.signal / self.noise) if self.signal and self.noise else math.inf


def _rounded(x: NDArray[np.float32], step: float) -> NDArray[np.float32]:
    size = np.float32(step or 1)
    rounded: NDArray[np.float32] = np.rint(x / size) * size
    return rounded


def fragile_products(model: Any, samples: NDArray[Any]) -> list[str]:
    """Names of the products of softmax with values that lose too much in 8 bits.

    Args:
        model: An ``openvino.Model`` in FP32 behind the contract; it stays as it is.
        samples: (N, ...) inputs of the model; a few of them are used.

    Returns:
        Names of ``MatMul`` nodes, in the order of the graph.
    """
    probed = model.clone()
    products = _probe(probed)
    if not products:
        return []
    request = import_openvino().Core().compile_model(probed, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    chosen = samples[:_SAMPLES, None]
    for sample in chosen:
        answers = request(sample)
        for product in products:
            product.see(answers)
    for sample in chosen:
        answers = request(sample)
        for product in products:
            product.compare(answers)
    return [product.name for product in products if not product.decibels >= _ENOUGH_DB]


def _probe(model: Any) -> list[_Product]:
    """Make the operands of the products outputs of the model."""
    products = []
    for node in model.get_ordered_ops():
        if node.get_type_name() == "MatMul" and node.input_value(0).get_node().get_type_name() == "Softmax":
            first = len(model.outputs)
            model.add_outputs([node.input_value(0), node.input_value(1)])
            products.append(_Product(node.get_friendly_name(), first, first + 1))
    return products
