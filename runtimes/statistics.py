"""What samples of a time say: percentiles, how sure they are, and whether two differ. Pure functions.

Successive runs on a computer are not independent: a busy second slows a hundred of them. So intervals are those of as
many independent runs as the samples are worth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Estimate", "change", "drift", "effective_size", "percentile", "ratio_interval", "steady"]

_CONFIDENCE = 0.95
_DRIFT = 0.03
_FEW = 12


@dataclass(frozen=True)
class Estimate:
    """A percentile, and the limits between which it lies with 95 % confidence: None where the runs are too few."""

    value: float
    low: float | None
    high: float | None


def percentile(samples: ArrayLike, q: float) -> Estimate:
    """The q-th percentile (0 to 100) of samples in the order in which they were taken.

    The limits are order statistics: how many of n independent samples lie below a quantile is binomial, whatever their
    distribution (Conover, Practical Nonparametric Statistics, section 3.2). n is the effective size.
    """
    values = np.asarray(samples, float)
    value = float(np.percentile(values, q))
    size = effective_size(values <= value)
    low, high = _ranks(size, q / 100)
    ordered = np.sort(values)
    at = len(values) / size
    return Estimate(
        value,
        None if low is None else float(ordered[math.floor(low * at)]),
        None if high is None else float(ordered[min(math.ceil((high + 1) * at) - 1, len(values) - 1)]),
    )


def effective_size(below: ArrayLike) -> int:
    """How many independent samples a series of n dependent ones is worth.

    The variance of a sample quantile grows with the autocorrelation of the series "was below it" (Heidelberger and
    Lewis 1984). The sum of autocorrelations ends at the first pair that is not positive (Geyer 1992).
    """
    series = np.asarray(below, float)
    centred = series - series.mean()
    n = len(series)
    if n < 4 or not centred.any():
        return n
    spectrum = np.abs(np.fft.rfft(centred, 2 * n)) ** 2
    correlation = np.fft.irfft(spectrum)[:n] / (centred @ centred)
    pairs = correlation[: n - n % 2].reshape(-1, 2).sum(axis=1)
    end = int(np.argmax(pairs <= 0)) if (pairs <= 0).any() else len(pairs)
    inflation = max(1.0, 2 * float(pairs[:end].sum()) - 1)
    return max(1, int(n / inflation))


def _ranks(size: int, share: float) -> tuple[int | None, int | None]:
    """Ranks from 0 of the order statistics around a quantile; None beyond either end."""
    counts = np.arange(size + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, size + 1)))])
    log_chance = log_factorial[size] - log_factorial[counts] - log_factorial[size - counts]
    log_chance = log_chance + counts * math.log(share) + (size - counts) * math.log1p(-share)
    cumulative = np.cumsum(np.exp(log_chance))
    tail = (1 - _CONFIDENCE) / 2
    # P(at most low samples below the quantile) and P(more than high - 1) are each under the tail.
    low = int(np.searchsorted(cumulative, tail, side="right")) - 1
    high = int(np.searchsorted(cumulative, 1 - tail))
    return (low if low >= 0 else None), (high if high < size else None)


def ratio_interval(over: Estimate, under: Estimate) -> tuple[float, float] | None:
    """Where ``over / under`` lies with 95 % confidence, from the limits of each; None where one has none.

    Limits of a difference from those of its parts (Zou and Donner 2008), of logarithms.
    """
    parts = (over.value, over.low, over.high, under.value, under.low, under.high)
    known = [part for part in parts if part is not None and part > 0]
    if len(known) < len(parts):
        return None
    a, a_low, a_high, b, b_low, b_high = (math.log(part) for part in known)
    low = a - b - math.hypot(a - a_low, b_high - b)
    high = a - b + math.hypot(a_high - a, b - b_low)
    return math.exp(low), math.exp(high)


def drift(samples: ArrayLike) -> tuple[float, bool]:
    """How much slower the last third is than the first (0.1: ten percent), and whether that is more than chance."""
    values = np.asarray(samples, float)
    third = len(values) // 3
    if third < _FEW:
        return 0.0, False
    first, last = percentile(values[:third], 50), percentile(values[-third:], 50)
    return change(first, last)


def change(before: Estimate, after: Estimate) -> tuple[float, bool]:
    """How much larger a median has become, and whether it did by more than 3 % beyond doubt."""
    grown = after.value / before.value - 1 if before.value > 0 else 0.0
    limits = ratio_interval(after, before)
    return grown, limits is not None and (limits[0] > 1 + _DRIFT or limits[1] < 1 - _DRIFT)


def steady(samples: Sequence[float] | NDArray[np.float64], window: int = 5, tolerance: float = 0.05) -> bool:
    """Whether the medians of the last two windows agree."""
    if len(samples) < 2 * window:
        return False
    before, last = np.median(samples[-2 * window : -window]), np.median(samples[-window:])
    return bool(abs(last - before) <= tolerance * before)
