"""A torch program, run operator by operator: where each of them runs, and how long it takes."""

from __future__ import annotations

import operator
import time
from collections import Counter, defaultdict
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["OperatorTimes", "Placement"]

_SHORT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "uint8": "u8", "int64": "i64", "bool": "bool"}


class Placement(fx.Interpreter):
    """Counts operators by device and by the data type of what they give: ``{"CPU f32": 118}``."""

    def __init__(self, module: fx.GraphModule) -> None:
        """Count in ``seen`` whenever it is run."""
        super().__init__(module)
        self.seen: Counter[str] = Counter()

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run one operator."""
        answer = super().call_function(target, args, kwargs)
        if where := _where(target, answer):
            self.seen[where] += 1
        return answer


class OperatorTimes(fx.Interpreter):
    """Adds up the seconds of operators by name, kind and place; the device is waited for after each."""

    def __init__(self, module: fx.GraphModule) -> None:
        """Add up in ``seconds`` whenever it is run."""
        super().__init__(module)
        self.seconds: defaultdict[tuple[str, str, str], float] = defaultdict(float)

    def run_node(self, n: fx.Node) -> Any:
        """Run one operator."""
        if n.op != "call_function":
            return super().run_node(n)
        _wait()
        start = time.perf_counter()
        answer = super().run_node(n)
        _wait()
        if where := _where(n.target, answer):
            kind = str(n.target).removeprefix("aten.").removesuffix(".default")
            self.seconds[n.name, kind, where] += time.perf_counter() - start
        return answer


def _where(target: Any, answer: Any) -> str | None:
    """Device and data type of an answer; None for what computes nothing."""
    first = answer[0] if isinstance(answer, (list, tuple)) else answer
    if not isinstance(first, Tensor) or target is operator.getitem:
        return None
    name = str(first.dtype).removeprefix("torch.")
    return f"{first.device.type.upper()} {_SHORT.get(name, name)}"


def _wait() -> None:
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
