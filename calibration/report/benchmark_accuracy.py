"""The accuracy that a bundle keeps beside its models, for setting it against their latency."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["AccuracyOf", "accuracy_of"]

_LARGEST = 64 * 2**20


@dataclass(frozen=True)
class AccuracyOf:
    """A metric's name with unit and direction, and its value by variant."""

    title: str
    values: Mapping[str, float]


def accuracy_of(bundle: Path) -> AccuracyOf | None:
    """What ``evidence.json`` says of the variants; None where it is not there or says nothing."""
    path = bundle / "evidence.json"
    try:
        if path.stat().st_size > _LARGEST:
            return None
        return _accuracy(json.loads(path.read_text(encoding="utf-8"))["validation"]["rows"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # a lone file, an old bundle, or somebody else's: the page goes without


def _accuracy(rows: Sequence[Mapping[str, Any]]) -> AccuracyOf | None:
    title, values = _labelled(rows) or _agreement(rows)
    known = {name: value for name, value in values.items() if math.isfinite(value)}
    return AccuracyOf(title, known) if known else None


def _labelled(rows: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, float]] | None:
    found = {row["variant"]: row["accuracy"] for row in rows if row["accuracy"]}
    if not found:
        return None
    first = next(iter(found.values()))
    better = "higher" if first["higher_is_better"] else "lower"
    title = f"{first['metric']}, {first['unit']} ({better} is better)"
    return title, {name: float(one["value"]) for name, one in found.items()}


def _agreement(rows: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, float]]:
    """Without labels: how far variants are from FP32."""
    found = {row["variant"]: row["agreement"] for row in rows}
    if all("mean_oks" in one for one in found.values()):
        title, key = "mean OKS with FP32 (higher is better)", "mean_oks"
    else:
        title, key = "mean distance to FP32, mm (lower is better)", "mean_mm"
    return title, {name: float(one[key]) for name, one in found.items()}
