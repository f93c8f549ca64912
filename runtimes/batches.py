"""Feeds and answers of engines that take their tensors in the model's order, and batches in parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.errors import EngineError
from edgepose.types import TensorSpec

__all__ = ["Arrays", "check_free", "joined", "ordered", "split"]

Arrays = Sequence[NDArray[Any]]
"""One array per tensor, in the model's order."""


def check_free(specs: Sequence[TensorSpec], path: Path) -> None:
    """Check that tensors are all of one batch size and free in nothing else: what static shapes need.

    Raises:
        EngineError: They are not.
    """
    for spec in specs:
        if not spec.shape or None in spec.shape[1:] or spec.shape[0] != specs[0].shape[0]:
            raise EngineError(f"{path}: {spec.name} is {spec.shape}, where only the batch may be free: convert again")


def ordered(inputs: Sequence[TensorSpec], feeds: Mapping[str, NDArray[Any]]) -> Arrays:
    """The inputs in the model's order.

    Raises:
        ValueError: One is missing, unknown, or of another dtype or shape.
    """
    arrays = [feeds[spec.name] for spec in inputs if spec.name in feeds]
    if len(arrays) != len(inputs) or len(feeds) != len(arrays):
        raise ValueError(f"it takes {', '.join(spec.name for spec in inputs)}, got {', '.join(feeds) or 'nothing'}")
    count = inputs[0].shape[0] or len(arrays[0])
    for spec, array in zip(inputs, arrays, strict=True):
        if array.dtype != spec.dtype or array.shape != (count, *spec.shape[1:]):
            shape = str((count, *spec.shape[1:]))
            raise ValueError(f"{spec.name}: expected {spec.dtype} {shape}, got {array.dtype} {array.shape}")
    return arrays


def split(arrays: Arrays, sizes: Sequence[int]) -> Iterator[tuple[int, Arrays]]:
    """Cut a batch into the sizes, largest first: 13 with powers of two is 8, 4 and 1."""
    start = 0
    for size in sizes:
        while len(arrays[0]) - start >= size:
            yield size, [array[start : start + size] for array in arrays]
            start += size


def joined(outputs: Sequence[TensorSpec], parts: Sequence[Arrays]) -> dict[str, NDArray[Any]]:
    """The answers of all parts of a batch by name; of no part, empty ones."""
    names = [spec.name for spec in outputs]
    if not parts:
        empty = [np.zeros([side or 0 for side in spec.shape], spec.dtype) for spec in outputs]
        return dict(zip(names, empty, strict=True))
    whole = parts[0] if len(parts) == 1 else [np.concatenate(column) for column in zip(*parts, strict=True)]
    return dict(zip(names, whole, strict=True))
