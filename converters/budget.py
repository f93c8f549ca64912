"""Which parts of a model INT8 hurts most, in pose units, and which of them have to stay float to keep a budget.

A block is quantized alone, everything else left in float, and the poses are compared with FP32's: this ranks the
blocks by what people lose, not by the noise of tensors. Then blocks go back to float, worst first, until the model
with all the others in INT8 is within the budget.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgepose.calibration.agreement import Comparison
from edgepose.calibration.datasets.base import PictureData
from edgepose.calibration.validate import validate
from edgepose.converters.recipes import Recipe
from edgepose.errors import GateError
from edgepose.pipeline import Estimator
from edgepose.runtimes.latency import measure_latency

__all__ = ["Attempt", "Budget", "Judge", "Search", "Sensitivity", "blocks_of", "meet_budget", "rank_blocks"]

Make = Callable[[Recipe], Estimator]
"""Quantizes by a recipe and loads the result."""
DropOf = Callable[[Estimator], float]
"""How many points an estimator loses against FP32."""
Progress = Callable[[int, int], None]

_BLOCK = re.compile(r"^(?:[A-Za-z_]\w*\.)*?[A-Za-z_]\w*\.\d+|^\w+")


@dataclass(frozen=True)
class Sensitivity:
    """One block: its layers, and the points that are lost when it alone is INT8."""

    block: str
    layers: tuple[str, ...]
    drop: float


@dataclass(frozen=True)
class Attempt:
    """One model of the search: the blocks in float, the points lost, and the median milliseconds of one crop."""

    float_blocks: tuple[str, ...]
    drop: float
    latency_ms: float

    def __str__(self) -> str:
        blocks = ", ".join(self.float_blocks)
        return f"with {blocks} in float it loses {self.drop:.2f} points and takes {self.latency_ms:.1f} ms"


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
        max_drop: Points of the labels' metric, or of agreement (100 (1 - mean OKS)) without labels.
        data: Labelled pictures to measure on; without them, agreement on the crops held back from calibration.
        limit: At most so many of those pictures.
    """

    max_drop: float
    data: PictureData | None = None
    limit: int | None = None


class Judge:
    """Measures what estimators lose against FP32, whose answers are kept."""

    def __init__(self, fp32: Estimator, crops: NDArray[np.uint8], budget: Budget) -> None:
        self.max_drop = budget.max_drop
        self._budget = budget
        self._fp32 = fp32
        self._crops = crops
        self._answers = [fp32.heatmaps(crop[None]) for crop in crops] if budget.data is None else []

    def drop_of(self, estimator: Estimator) -> float:
        """Points that are lost."""
        if self._budget.data is None:
            return self._disagreement(estimator)
        pair = {"fp32": self._fp32, "candidate": estimator}
        found = validate(pair, self._budget.data, baseline="fp32", limit=self._budget.limit)
        row = next((row for row in found.rows if row.variant == "candidate"), None)
        return math.inf if row is None else found.drop_of(row)

    def latency_of(self, estimator: Estimator) -> float:
        """Median milliseconds of one crop."""
        (row,) = measure_latency({"candidate": estimator}, iterations=15, warmup=3)
        return row.infer_ms

    def _disagreement(self, estimator: Estimator) -> float:
        comparison = Comparison(estimator.spec, ("fp32", "candidate"), "fp32")
        for i, answer in enumerate(self._answers):
            crop = self._crops[i : i + 1]
            comparison.add({"fp32": answer, "candidate": estimator.heatmaps(crop)}, crop, ("",))
        return 100 * (1 - comparison.result()["candidate"].mean_oks)


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
        drop_of: Measures the points that an estimator loses.
        progress: Told how many blocks are done, and out of how many.
    """
    blocks = blocks_of([layer for layer in layers if layer not in recipe.float_layers])
    ranking = []
    for done, (block, members) in enumerate(blocks.items(), start=1):
        alone = recipe.with_float(layer for layer in layers if layer not in members)
        estimator = make(alone)
        ranking.append(Sensitivity(block, members, drop_of(estimator)))
        estimator.close()
        progress(done, len(blocks))
    return sorted(ranking, key=lambda row: -row.drop)


def meet_budget(
    make: Make,
    recipe: Recipe,
    ranking: Sequence[Sensitivity],
    drop_of: DropOf,
    latency_of: Callable[[Estimator], float],
    max_drop: float,
    log: Callable[[Attempt], None] = lambda attempt: None,
) -> Search:
    """Put blocks back to float, worst first, as few as keep the budget.

    Their number doubles until the budget is kept, and is then halved in between: a model in which much is wrong is
    not searched block by block.

    Args:
        make: Quantizes by a recipe and loads the result.
        recipe: The one that misses the budget.
        ranking: From :func:`rank_blocks`.
        drop_of: Measures the points that an estimator loses.
        latency_of: Measures milliseconds.
        max_drop: The points that may be lost.
        log: Told about each attempt.

    Raises:
        GateError: Not even with all but one block in float is the budget kept.
    """
    attempts: dict[int, Attempt] = {}

    def keeps(count: int) -> bool:
        if count not in attempts:
            estimator = make(_with_float(recipe, ranking[:count]))
            blocks = tuple(row.block for row in ranking[:count])
            attempts[count] = Attempt(blocks, drop_of(estimator), latency_of(estimator))
            log(attempts[count])
            estimator.close()
        return attempts[count].drop <= max_drop

    most = len(ranking) - 1
    kept = next((count for count in _doubled(most) if keeps(count)), None)
    if kept is None:
        best = min((attempt.drop for attempt in attempts.values()), default=float("nan"))
        raise GateError(
            f"INT8 cannot keep within {max_drop:g} points: the best of {len(attempts)} attempts loses {best:.2f}, "
            f"the last with {most} of {len(ranking)} blocks in float: allow more, calibrate on other pictures, or "
            "ship the float model"
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
