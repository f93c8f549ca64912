"""Which parts of a model INT8 hurts most, in pose units, and which of them have to stay float to keep a budget.

A block is quantized alone, everything else left in float, and the poses are compared with FP32's: this ranks the
blocks by what people lose, not by the noise of tensors. Then blocks go back to float, worst first, until the model
with all the others in INT8 is within the budget.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.calibration.agreement import Comparison
from edgepose.calibration.datasets.base import LiftingData, PictureData
from edgepose.calibration.lifting import validate_lifting
from edgepose.calibration.metrics_3d import joint_errors_mm
from edgepose.calibration.validate import validate
from edgepose.converters.recipes import Recipe
from edgepose.errors import GateError
from edgepose.model import LoadedModel
from edgepose.runtimes.latency import measure_latency

__all__ = [
    "Attempt",
    "Budget",
    "Judge",
    "LiftJudge",
    "PictureJudge",
    "Search",
    "Sensitivity",
    "blocks_of",
    "meet_budget",
    "rank_blocks",
]

Make = Callable[[Recipe], LoadedModel]
"""Quantizes by a recipe and loads the result."""
DropOf = Callable[[LoadedModel], float]
"""How much a model loses against FP32: points or millimetres."""
Progress = Callable[[int, int], None]

_BLOCK = re.compile(r"^(?:[A-Za-z_]\w*\.)*?[A-Za-z_]\w*\.\d+|^\w+")


@dataclass(frozen=True)
class Sensitivity:
    """One block: its layers, and the points (or millimetres) that are lost when it alone is INT8."""

    block: str
    layers: tuple[str, ...]
    drop: float


@dataclass(frozen=True)
class Attempt:
    """One model of the search: the blocks in float, what is lost in ``unit``, and median milliseconds of one sample."""

    float_blocks: tuple[str, ...]
    drop: float
    latency_ms: float
    unit: str = "points"

    def __str__(self) -> str:
        blocks = ", ".join(self.float_blocks)
        return f"with {blocks} in float it loses {self.drop:.2f} {self.unit} and takes {self.latency_ms:.1f} ms"


@dataclass(frozen=True)
class Search:
    """What the search found: the recipe that keeps the budget, every attempt on the way, and the ranking."""

    recipe: Recipe
    attempts: tuple[Attempt, ...]
    ranking: tuple[Sensitivity, ...]


@dataclass(frozen=True)
class Budget:
    """What may be lost against FP32.

    Attributes:
        max_drop: Points of the labels' metric, or of agreement (100 (1 - mean OKS)) without labels; of a lifting
            model millimetres, of MPJPE or of the mean distance from FP32.
        data: Labelled pictures, or poses with their truth, to measure on; without them, agreement on the samples held
            back from calibration.
        limit: At most so many of those pictures, or clips.
    """

    max_drop: float
    data: PictureData | LiftingData | None = None
    limit: int | None = None


class Judge(ABC):
    """Measures what variants lose against FP32, whose answers are kept.

    Attributes:
        max_drop: What may be lost.
        unit: Of that: ``points`` or ``mm``.
    """

    unit = "points"

    def __init__(self, fp32: LoadedModel, samples: NDArray[Any], budget: Budget) -> None:
        self.max_drop = budget.max_drop
        self._budget = budget
        self._fp32 = fp32
        self._samples = samples
        self._answers = [fp32.infer(sample[None]) for sample in samples] if budget.data is None else []

    def drop_of(self, model: LoadedModel) -> float:
        """What is lost, in ``unit``."""
        if self._budget.data is None:
            return self._disagreement(model)
        found = self._validated({"fp32": self._fp32, "candidate": model}, self._budget.data)
        row = next((row for row in found.rows if row.variant == "candidate"), None)
        return math.inf if row is None else float(found.drop_of(row))  # it does not run

    def latency_of(self, model: LoadedModel) -> float:
        """Median milliseconds of one sample."""
        (row,) = measure_latency({"candidate": model}, iterations=15, warmup=3)
        return row.infer_ms

    @abstractmethod
    def _disagreement(self, model: LoadedModel) -> float:
        """Without labels."""

    @abstractmethod
    def _validated(self, pair: Mapping[str, Any], data: Any) -> Any:
        """By labels: ``candidate`` beside ``fp32``."""


class PictureJudge(Judge):
    """Of 2D models."""

    def _validated(self, pair: Mapping[str, Any], data: Any) -> Any:
        return validate(pair, data, baseline="fp32", limit=self._budget.limit)

    def _disagreement(self, model: LoadedModel) -> float:
        comparison = Comparison(model.spec, ("fp32", "candidate"), "fp32")
        for i, answer in enumerate(self._answers):
            crop = self._samples[i : i + 1]
            comparison.add({"fp32": answer, "candidate": model.infer(crop)}, crop, ("",))
        return 100 * (1 - comparison.result()["candidate"].mean_oks)


class LiftJudge(Judge):
    """Of lifting models."""

    unit = "mm"

    def _validated(self, pair: Mapping[str, Any], data: Any) -> Any:
        return validate_lifting(pair, data, baseline="fp32", flip=False, limit=self._budget.limit)

    def _disagreement(self, model: LoadedModel) -> float:
        return float(joint_errors_mm(np.concatenate(self._answers), model.infer(self._samples)).mean())


def blocks_of(layers: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Layers by block, in the order of the graph.

    A block is a torch module up to the first number in its path (``layer1.0``, ``global_encoder.layers.2``,
    ``stage3.1``), or a module of its own (``reduce``).
    """
    blocks: dict[str, list[str]] = defaultdict(list)
    for layer in layers:
        found = _BLOCK.match(layer.partition("/")[0])
        blocks[found[0] if found else layer].append(layer)
    return {block: tuple(names) for block, names in blocks.items()}


def rank_blocks(
    make: Make,
    recipe: Recipe,
    layers: Sequence[str],
    drop_of: DropOf,
    progress: Progress = lambda done, total: None,
) -> list[Sensitivity]:
    """Quantize each block alone and measure it; worst first.

    Args:
        make: Quantizes by a recipe and loads the result.
        recipe: How; layers that it leaves in float already are not ranked.
        layers: All layers that can be quantized (``quantize.linear_layers``).
        drop_of: Measures what a model loses.
        progress: Told how many blocks are done, and out of how many.
    """
    blocks = blocks_of([layer for layer in layers if layer not in recipe.float_layers])
    ranking = []
    for done, (block, members) in enumerate(blocks.items(), start=1):
        alone = recipe.with_float(layer for layer in layers if layer not in members)
        model = make(alone)
        ranking.append(Sensitivity(block, members, drop_of(model)))
        model.close()
        progress(done, len(blocks))
    return sorted(ranking, key=lambda row: -row.drop)


def meet_budget(
    make: Make,
    recipe: Recipe,
    ranking: Sequence[Sensitivity],
    judge: Judge,
    log: Callable[[Attempt], None] = lambda attempt: None,
) -> Search:
    """Put blocks back to float, worst first, as few as keep the budget.

    Their number doubles until the budget is kept, and is then halved in between: a model in which much is wrong is
    not searched block by block.

    Args:
        make: Quantizes by a recipe and loads the result.
        recipe: The one that misses the budget.
        ranking: From :func:`rank_blocks`.
        judge: Measures, and knows what may be lost.
        log: Told about each attempt.

    Raises:
        GateError: Not even with all but one block in float is the budget kept.
    """
    attempts: dict[int, Attempt] = {}

    def keeps(count: int) -> bool:
        if count not in attempts:
            model = make(_with_float(recipe, ranking[:count]))
            blocks = tuple(row.block for row in ranking[:count])
            attempts[count] = Attempt(blocks, judge.drop_of(model), judge.latency_of(model), judge.unit)
            log(attempts[count])
            model.close()
        return attempts[count].drop <= judge.max_drop

    most = len(ranking) - 1
    kept = next((count for count in _doubled(most) if keeps(count)), None)
    if kept is None:
        best = min((attempt.drop for attempt in attempts.values()), default=float("nan"))
        raise GateError(
            f"INT8 cannot keep within {judge.max_drop:g} {judge.unit}: the best of {len(attempts)} attempts loses "
            f"{best:.2f}, the last with {most} of {len(ranking)} blocks in float: allow more, calibrate on other "
            "samples, or ship the float model"
        )
    missed = max((count for count in attempts if count < kept), default=0)
    while kept - missed > 1:
        middle = (kept + missed) // 2
        kept, missed = (middle, missed) if keeps(middle) else (kept, middle)
    return Search(_with_float(recipe, ranking[:kept]), tuple(attempts.values()), tuple(ranking))


def _doubled(most: int) -> Iterator[int]:
    """1, 2, 4, ... and at last ``most``."""
    count = 1
    while count < most:
        yield count
        count *= 2
    if most > 0:
        yield most


def _with_float(recipe: Recipe, rows: Sequence[Sensitivity]) -> Recipe:
    return recipe.with_float(layer for row in rows for layer in row.layers)
