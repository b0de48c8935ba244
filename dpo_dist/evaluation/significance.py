"""Exact tests, paired differences, Holm's adjustment, and the smallest detectable effect.

All p-values are two-sided: the probability that equal arms differ at least as much as observed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dpo_dist.evaluation.statistics import Clusters, interval_of, resampled_means
from dpo_dist.intervals import Estimate, Z

Z_POWER = 0.8416212335729143  # the 80 % quantile of the standard normal distribution


def sign_test(wins: int, losses: int) -> float:
    """The exact sign test of equally likely wins and losses, without ties. This is the binomial
    test at 1/2, valid at any n; 1.0 without wins and losses."""
    from scipy.stats import binomtest

    decided = wins + losses
    return float(binomtest(wins, decided, 0.5).pvalue) if decided else 1.0


def mcnemar(only_a: int, only_b: int) -> float:
    """McNemar's exact test of paired 0/1 outcomes (McNemar 1947; exact: Cochran 1950). `only_a` and
    `only_b` count the prompts where only a, only b has a 1. Prompts where both agree do not
    contribute, so this is a sign test."""
    return sign_test(only_a, only_b)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment (Holm 1979), which keeps the probability of any false finding in
    the family below the level. None stands for no test and does not count."""
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[i] = largest
    return adjusted


def detectable_effect(standard_error: float) -> float:
    """The smallest true effect that a two-sided test at 5 % detects with 80 % power, in the units
    of `standard_error`: (z_0.975 + z_0.8) standard errors (Miller 2024; normal approximation)."""
    return (Z + Z_POWER) * standard_error


def bootstrap_p(at_most_zero: int, at_least_zero: int, resamples: int, n: int) -> float:
    """The p-value that matches the percentile interval of a mean over n prompts: below 5 % if the
    interval excludes zero.

    The two counts are of resampled means. One is added so that p is never zero (Davison and Hinkley
    1997), and the expansion of the percentiles (`percentile_tail`) is undone.
    """
    from scipy.special import ndtri, stdtr

    share = min(1.0, 2 * (min(at_most_zero, at_least_zero) + 1) / (resamples + 1))
    quantile = -ndtri(share / 2) * math.sqrt((n - 1) / n)
    return float(2 * stdtr(n - 1, -quantile))


@dataclass(frozen=True)
class Difference(Estimate):
    """The mean of a - b over `n` prompts, and the p-value of `test`; both None for n < 2."""

    p: float | None = None
    test: Literal["mcnemar", "bootstrap", "sign"] | None = None


def paired_difference(a: Mapping[str, float], b: Mapping[str, float], seed: int) -> Difference:
    """The mean of a - b over their common prompts. If all values are 0 or 1: McNemar's exact test,
    and the adjusted Wald interval for paired shares (Bonett and Price 2012); otherwise
    `points_difference`.

    That interval adds one prompt on which only a succeeds and one on which only b does, so that it
    does not claim certainty if a and b always agree.
    """
    shared = [prompt for prompt in a if prompt in b]
    n = len(shared)
    if n < 2 or {values[p] for values in (a, b) for p in shared} - {0.0, 1.0}:
        return points_difference(a, b, seed)
    only_a = sum(a[prompt] > b[prompt] for prompt in shared)
    only_b = sum(a[prompt] < b[prompt] for prompt in shared)
    p_a, p_b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    half = Z * math.sqrt((p_a + p_b - (p_a - p_b) ** 2) / (n + 2))
    low, high = max(-1.0, p_a - p_b - half), min(1.0, p_a - p_b + half)
    return Difference(n, (only_a - only_b) / n, low, high, mcnemar(only_a, only_b), "mcnemar")


def points_difference(a: Mapping[str, float], b: Mapping[str, float], seed: int) -> Difference:
    """The mean of a - b on any scale. Interval and p-value both come from the bootstrap over
    prompts, so that they agree. If all differences are equal, there is no interval, and the p-value
    is the sign test's."""
    differences = np.array([a[prompt] - b[prompt] for prompt in a if prompt in b], dtype=float)
    n = len(differences)
    clusters = Clusters(differences, np.ones(n))
    if n < 2:
        return Difference(n, clusters.mean)
    if not clusters.spread:
        p = sign_test(int((differences > 0).sum()), int((differences < 0).sum()))
        return Difference(n, clusters.mean, p=p, test="sign")
    means = resampled_means(clusters, seed)
    estimate = interval_of(clusters, means)
    p = bootstrap_p(int((means <= 0).sum()), int((means >= 0).sum()), len(means), n)
    return Difference(n, estimate.mean, estimate.low, estimate.high, p, "bootstrap")
