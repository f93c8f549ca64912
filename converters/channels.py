"""Which channels of a model can only go together: groups, found by following the channels through the graph.

A convolution makes channels; norms, activations and pooling hand them on; a sum makes two groups one, as in residuals
and in HRNet's fusion. What goes in, what comes out, and what the Transformer encoder takes stays whole: its d_model
features are added to the position embedding and normalised together, so that leaving some out would change the rest.
Inside a Transformer layer the hidden features of the feed-forward and whole heads can go, and in AMPose's graph blocks
the features between the two convolutions.

This is what torch-pruning's dependency graph finds too, from a trace of gradients; following modules is enough for
these models, exact, and takes no library.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgepose.models.ampose import GraphBlock
from edgepose.models.blocks import Encoder, MultiheadSelfAttention
from edgepose.models.narrow import keep_channels, width_of

__all__ = ["Group", "Member", "channel_groups", "keep"]


@dataclass(frozen=True)
class Member:
    """One side of a layer: ``in`` or ``out``; ``copies`` times the group's channels, one copy behind the other."""

    module: str
    side: str
    copies: int = 1


@dataclass(frozen=True)
class Group:
    """Channels that go together.

    Attributes:
        name: The first layer that makes them: ``layer1.0.conv1``; of heads, the attention.
        width: How many there are.
        members: Every layer that makes, normalises or takes them.
        unit: They go by so many: 1, or the features of a head.
    """

    name: str
    width: int
    members: tuple[Member, ...]
    unit: int = 1

    @property
    def block(self) -> str:
        """The part of the model that it belongs to: ``layer1``."""
        return self.name.partition(".")[0]


def channel_groups(model: nn.Module) -> tuple[Group, ...]:
    """All groups of a model, convolutions first, in the order of the graph."""
    convolutions = any(isinstance(module, nn.Conv2d) for module in model.modules())
    return (*(_convolutional(model) if convolutions else ()), *_inside_layers(model))


def keep(model: nn.Module, group: Group, kept: Tensor) -> None:
    """Leave a group only some of its channels (numbers, rising), in place."""
    for member in group.members:
        module = model.get_submodule(member.module)
        copies = torch.cat([kept + copy * group.width for copy in range(member.copies)])
        keep_channels(module, **{"inputs" if member.side == "in" else "outputs": copies})


def _inside_layers(model: nn.Module) -> list[Group]:
    """Groups inside of Transformer layers and graph blocks."""
    groups = []
    for name, module in model.named_modules():
        linear1 = getattr(module, "linear1", None)
        if isinstance(module, MultiheadSelfAttention):
            members: tuple[Member, ...] = (Member(name, "out"), Member(f"{name}.out_proj", "in"))
            groups.append(Group(name, module.inner, members, module.head_dim))
        elif isinstance(linear1, nn.Linear):
            members = (Member(f"{name}.linear1", "out"), Member(f"{name}.linear2", "in"))
            groups.append(Group(f"{name}.linear1", linear1.out_features, members))
        elif isinstance(module, GraphBlock) and module.conv2 is not None and not module.first_residual:
            hidden = Member(f"{name}.conv2.linear", "in", module.conv2.groups)
            members = (Member(f"{name}.conv1.linear", "out"), Member(f"{name}.norm", "out"), hidden)
            groups.append(Group(f"{name}.conv1.linear", module.conv1.linear.out_features, members))
    return groups


def _convolutional(model: nn.Module) -> list[Group]:
    spaces = _Spaces(model)
    for node in _Tracer().trace(model).nodes:
        spaces.visit(node)
    return spaces.groups()


class _Tracer(fx.Tracer):
    """The encoder is one step: its features are not pruned."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Encoder) or super().is_leaf_module(m, module_qualified_name)


_PASSING = (nn.ReLU, nn.MaxPool2d, nn.Upsample, nn.Identity)


class _Spaces:
    """Channel spaces while the graph is walked: numbers, of which sums make one out of two."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._of: dict[fx.Node, int] = {}
        self._merged: list[int] = []
        self._whole: list[int] = []
        self._members: list[tuple[int, Member]] = []

    def visit(self, node: fx.Node) -> None:
        sources = [source for source in node.all_input_nodes if source.op != "get_attr"]
        if node.op == "call_module":
            self._of[node] = self._through(str(node.target), sources[0])
        elif node.op == "call_function" and node.target in (operator.add, operator.iadd, torch.relu):
            self._of[node] = self._merge([self._of[source] for source in sources])
        else:  # what comes in and goes out, and anything that we do not know
            self._whole += [self._of[source] for source in sources]
            self._of[node] = self._new()
            self._whole.append(self._of[node])

    def _through(self, name: str, source: fx.Node) -> int:
        """The space of what a module gives."""
        module, space = self._model.get_submodule(name), self._of[source]
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            self._members.append((space, Member(name, "in")))
            space = self._new()
        elif isinstance(module, Encoder):
            self._whole.append(space)
            return space
        if width_of(module) is not None:
            self._members.append((space, Member(name, "out")))
        elif not isinstance(module, _PASSING):
            self._whole.append(space)
        return space

    def _new(self) -> int:
        self._merged.append(len(self._merged))
        return self._merged[-1]

    def _merge(self, spaces: list[int]) -> int:
        roots = [self._root(space) for space in spaces]
        for root in roots:
            self._merged[root] = min(roots)
        return min(roots)

    def _root(self, space: int) -> int:
        while self._merged[space] != space:
            space = self._merged[space]
        return space

    def groups(self) -> list[Group]:
        """One for each space that may lose channels."""
        whole = {self._root(space) for space in self._whole}
        found: dict[int, list[Member]] = defaultdict(list)
        for space, member in self._members:
            if self._root(space) not in whole:
                found[self._root(space)].append(member)
        return [self._group(found[root]) for root in sorted(found)]

    def _group(self, members: list[Member]) -> Group:
        first = next(member for member in members if member.side == "out")
        width: Any = width_of(self._model.get_submodule(first.module))
        return Group(first.module, width[1], tuple(dict.fromkeys(members)))
