import time
import tracemalloc

import numpy as np
import pytest

from dpo_dist.evaluation.statistics import (
    RESAMPLES,
    Clusters,
    bootstrap_mean,
    mean_of,
    percentile_tail,
    resampled_means,
    standard_error,
)
from dpo_dist.intervals import Estimate


def test_too_little_data_has_no_interval() -> None:
    assert mean_of({}, seed=0) == Estimate(0, None)
    assert mean_of({"a": 1.0}, seed=0) == Estimate(1, 1.0, None, None)
    assert bootstrap_mean({"a": [0.3, 0.5]}, seed=0) == Estimate(1, 0.4, None, None)
    assert bootstrap_mean({"a": [0.4], "b": []}, seed=0) == Estimate(1, 0.4, None, None)
    assert standard_error({}) is None and standard_error({"a": [0.3, 0.5]}) is None


def test_the_bootstrap_is_repeatable_and_close_to_theory() -> None:
    values = {n: [float(x)] for n, x in enumerate(np.random.default_rng(0).normal(2, 1, 400))}
    first, second = bootstrap_mean(values, seed=5), bootstrap_mean(values, seed=5)
    assert first == second != bootstrap_mean(values, seed=6)
    spread = np.std([v[0] for v in values.values()]) / 20
    assert first.high - first.low == pytest.approx(2 * 1.96 * spread, rel=0.05)


def test_equal_values_claim_no_certainty() -> None:
    assert bootstrap_mean({n: [0.5] for n in range(9)}, seed=0) == Estimate(9, 0.5, None, None)


def test_few_distinct_values_are_drawn_in_the_same_distribution() -> None:
    """Counts of 0, 1/2 and 1 against indices of prompts: a jitter too small to matter makes all
    values distinct, so that the other way is taken."""
    random = np.random.default_rng(1)
    sizes = random.integers(1, 3, 300).astype(float)
    sums = random.choice([0.0, 0.5, 1.0], 300) * sizes
    few = resampled_means(Clusters(sums, sizes), seed=0)
    many = resampled_means(Clusters(sums + random.normal(0, 1e-9, 300), sizes), seed=0)
    assert few.shape == many.shape == (RESAMPLES,)
    assert few.mean() == pytest.approx(many.mean(), abs=4 * few.std() / RESAMPLES**0.5)
    assert few.std() == pytest.approx(many.std(), rel=0.03)


def test_small_samples_have_wider_tails() -> None:
    assert percentile_tail(100_000) == pytest.approx(0.025, abs=1e-5)
    assert percentile_tail(20) == pytest.approx(0.0159, abs=1e-4)
    # Two prompts: the interval is the two values.
    assert bootstrap_mean({0: [1.0], 1: [3.0]}, seed=0) == Estimate(2, 2.0, 1.0, 3.0)


def test_ten_thousand_prompts_take_a_second_and_little_memory() -> None:
    values = {n: [float(x)] for n, x in enumerate(np.random.default_rng(0).normal(0, 1, 10_000))}
    started = time.monotonic()
    estimate = bootstrap_mean(values, seed=1)
    assert time.monotonic() - started < 10, "1 s on a quiet machine"
    tracemalloc.start()
    assert bootstrap_mean(values, seed=1) == estimate
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 150 * 2**20, "800 MB, were all resamples drawn at once"
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 / 100, rel=0.05)
