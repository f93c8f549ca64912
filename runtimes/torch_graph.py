"""A program of a ``.pt2`` file as a torch module."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgepose.runtimes.pt2_file import Dtype, Node, Program, Ref
from edgepose.types import TensorSpec

__all__ = ["graph_module"]

_PIXELS = 4  # axes of a batch of pictures


def graph_module(program: Program, dtype: torch.dtype, *, channels_last: bool) -> fx.GraphModule:
    """A program as a module that takes the inputs and gives a tuple of float32 answers.

    What depends on weights alone is computed here, in float32; then float weights become ``dtype``. The names of the
    file are not used: fx writes a module's code from the names in its graph.

    Args:
        program: What the file holds.
        dtype: What is computed in.
        channels_last: Whether pictures and the weights of convolutions are (N, H, W, C) in memory.

    Raises:
        Exception: Whatever torch raises where a program's parts do not fit together.
    """
    return _Builder(dtype, channels_last).build(program)


class _Builder:
    def __init__(self, dtype: torch.dtype, channels_last: bool) -> None:
        self._dtype = dtype
        self._channels_last = channels_last
        self._graph = fx.Graph()
        self._root = nn.Module()
        self._values: dict[str, Any] = {}
        self._constants: dict[int, fx.Node] = {}
        self._alive: list[Tensor] = []

    def build(self, program: Program) -> fx.GraphModule:
        for number, spec in enumerate(program.inputs):
            self._values[spec.name] = self._input(self._graph.placeholder(f"input_{number}"), spec)
        self._values |= {name: torch.from_numpy(array) for name, array in program.weights.items()}
        with torch.no_grad():
            for node in program.nodes:
                self._add(node)
            self._graph.output(tuple(self._answer(self._values[spec.name]) for spec in program.outputs))
        self._graph.eliminate_dead_code()
        return fx.GraphModule(self._root, self._graph)

    def _input(self, node: fx.Node, spec: TensorSpec) -> Any:
        """An input as the model computes with it.

        Crops come as (N, H, W, C). Without ``channels_last`` their bytes are put in the order of (N, C, H, W) first.
        """
        if len(spec.shape) == _PIXELS and not self._channels_last:
            planes = self._call("permute.default", node, [0, 3, 1, 2])
            packed = self._call("clone.default", planes, memory_format=torch.contiguous_format)
            return self._call("permute.default", packed, [0, 2, 3, 1])
        return self._call("to.dtype", node, self._dtype) if spec.dtype == "float32" else node

    def _answer(self, value: Any) -> Any:
        node = self._resolved(value)
        return node if self._dtype == torch.float32 else self._call("to.dtype", node, torch.float32)

    def _add(self, node: Node) -> None:
        args = [self._looked_up(value) for value in node.args]
        kwargs = {name: self._looked_up(value) for name, value in node.kwargs.items()}
        if _any_node([*args, *kwargs.values()]):
            named = {name: self._resolved(value) for name, value in kwargs.items()}
            made = self._call(node.operator, *self._resolved(args), **named)
            answers = [self._graph.call_function(operator.getitem, (made, i)) for i in range(len(node.outputs))]
            answers = answers if node.several else [made]
        else:
            folded = _operator(node.operator)(*args, **kwargs)
            answers = list(folded) if node.several else [folded]
        self._values |= dict(zip(node.outputs, answers, strict=True))

    def _looked_up(self, value: Any) -> Any:
        """An argument with what its names stand for: nodes, tensors, sizes."""
        if isinstance(value, list):
            return [self._looked_up(one) for one in value]
        if isinstance(value, Ref):
            return self._values[value.name]
        return getattr(torch, value.name) if isinstance(value, Dtype) else value

    def _resolved(self, value: Any) -> Any:
        """An argument of a node in the graph: weights are stored with the module, FP32 is the model's precision."""
        if isinstance(value, list):
            return [self._resolved(one) for one in value]
        if isinstance(value, Tensor):
            return self._stored(value)
        return self._dtype if value is torch.float32 else value

    def _stored(self, tensor: Tensor) -> fx.Node:
        if id(tensor) not in self._constants:
            name = f"weight_{len(self._constants)}"
            kept = tensor.to(self._dtype) if tensor.is_floating_point() else tensor
            if self._channels_last and kept.ndim == _PIXELS:
                kept = kept.contiguous(memory_format=torch.channels_last)
            self._root.register_buffer(name, kept)
            self._constants[id(tensor)] = self._graph.get_attr(name)
            self._alive.append(tensor)  # or another would come to have its id
        return self._constants[id(tensor)]

    def _call(self, name: str, *args: Any, **kwargs: Any) -> fx.Node:
        return self._graph.call_function(_operator(name), args, kwargs)


def _operator(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload)


def _any_node(value: Any) -> bool:
    return isinstance(value, fx.Node) or (isinstance(value, list) and any(map(_any_node, value)))
