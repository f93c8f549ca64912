"""Intervals hold what they promise, also for samples that depend on each other; drift and steadiness are seen."""

from __future__ import annotations

import numpy as np
import pytest

from edgepose.runtimes.statistics import Estimate, drift, effective_size, percentile, ratio_interval, steady

SEEDS = range(300)


def independent(rng, n):
    return rng.lognormal(0, 0.2, n)


def dependent(rng, n, memory=0.8):
    """Each sample remembers the last (AR(1)); the marginal distribution is that of ``independent``."""
    noise = rng.standard_normal(n)
    values = np.empty(n)
    values[0] = noise[0]
    for i in range(1, n):
        values[i] = memory * values[i - 1] + np.sqrt(1 - memory**2) * noise[i]
    return np.exp(0.2 * values)


def coverage(sample, n, q, truth):
    found = [percentile(sample(np.random.default_rng(seed), n), q) for seed in SEEDS]
    return np.mean([(e.low is None or e.low <= truth) and (e.high is None or truth <= e.high) for e in found])


P95 = float(np.exp(0.2 * 1.6449))  # the 95th percentile of a standard normal is 1.6449


@pytest.mark.parametrize(("n", "q", "truth"), [(20, 50, 1.0), (100, 50, 1.0), (200, 95, P95)])
def test_the_true_percentile_lies_within_the_limits_as_often_as_they_promise(n, q, truth):
    # 300 seeds: the estimate of a share of 0.95 has a standard error of 0.013
    assert coverage(independent, n, q, truth) >= 0.95 - 3 * 0.013


def test_limits_are_not_needlessly_wide():
    rng = np.random.default_rng(0)
    found = percentile(independent(rng, 400), 50)
    # The standard error of the median of n lognormal samples is 1.253 sigma / sqrt(n); 1.96 of them each way.
    assert found.high - found.low == pytest.approx(2 * 1.96 * 1.253 * 0.2 / 20, rel=0.5)


def test_dependent_samples_count_for_fewer():
    rng = np.random.default_rng(0)
    assert effective_size(rng.random(500) < 0.5) > 250
    assert effective_size(dependent(rng, 500) <= 1) < 200
    # Limits of independent samples would hold the truth in about 60 % of these runs.
    assert coverage(dependent, 200, 50, 1.0) >= 0.88


def test_too_few_samples_have_no_limits():
    assert percentile([1.0, 2.0, 3.0], 50) == Estimate(2.0, None, None)
    few = percentile(np.random.default_rng(0).random(40), 95)
    assert few.low is not None
    assert few.high is None


def test_percentiles_are_numpys():
    values = np.random.default_rng(0).random(99)
    assert percentile(values, 95).value == np.percentile(values, 95)
    assert percentile([7.0] * 50, 50) == Estimate(7.0, 7.0, 7.0)


def test_a_ratio_lies_within_its_limits():
    hits = 0
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        low, high = ratio_interval(percentile(1.3 * independent(rng, 100), 50), percentile(independent(rng, 100), 50))
        hits += low <= 1.3 <= high
    assert hits / len(SEEDS) >= 0.95 - 3 * 0.013
    assert ratio_interval(Estimate(1, None, None), Estimate(1, 1, 1)) is None


def test_drift_is_flagged_and_noise_is_not():
    flags = [drift(independent(np.random.default_rng(seed), 100))[1] for seed in SEEDS]
    assert np.mean(flags) <= 0.02
    heating = np.linspace(1, 1.5, 120) * independent(np.random.default_rng(0), 120)
    change, flagged = drift(heating)
    assert flagged
    assert 0.2 < change < 0.5
    assert drift([1.0, 2.0, 3.0]) == (0.0, False)  # too few to tell


def test_steady_is_when_two_windows_agree():
    assert not steady([5, 4, 3])
    assert not steady([9, 8, 7, 6, 5, 4, 3, 2, 2, 2])
    assert steady([9, 8, 7, 6, 5, *[4.0] * 5, *[4.1] * 5])
