"""Exact tests, the correction for many of them, and what a number of prompts can show at all.

A p-value is two-sided: how often equal arms would differ at least as much as was seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dpo_dist.intervals import Z

Z_POWER = 0.8416212335729143  # the 80 % quantile of the standard normal distribution


def sign_test(wins: int, losses: int) -> float:
    """The exact sign test: are wins and losses equally likely? Ties do not count.

    The binomial test at 1/2, so never too small at any n; 1.0 where nothing was decided.
    """
    from scipy.stats import binomtest

    decided = wins + losses
    return float(binomtest(wins, decided, 0.5).pvalue) if decided else 1.0


def mcnemar(only_a: int, only_b: int) -> float:
    """McNemar's exact test of paired 0/1 outcomes (McNemar 1947; exact: Cochran 1950).

    `only_a` and `only_b` count the prompts where only a, only b got a 1. The prompts where both
    agree say nothing about the difference: what is left is a sign test.
    """
    return sign_test(only_a, only_b)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment (Holm 1979): with it, the chance of any false finding in the
    family stays below the level. None stands for no test, and does not count."""
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[i] = largest
    return adjusted


def detectable_effect(standard_error: float) -> float:
    """The smallest true effect that a two-sided test at 5 % finds with 80 % power, in the units of
    `standard_error`: (z_0.975 + z_0.8) standard errors (Miller 2024; normal approximation)."""
    return (Z + Z_POWER) * standard_error


def bootstrap_p(at_most_zero: int, at_least_zero: int, resamples: int, n: int) -> float:
    """The p-value that goes with the percentile interval of a mean over n prompts: below 5 % where
    the interval leaves zero out.

    The two counts are of resampled means. One is added, so that it is never zero (Davison and
    Hinkley 1997), and the expansion of the percentiles is undone.
    """
    from scipy.special import ndtri, stdtr

    share = min(1.0, 2 * (min(at_most_zero, at_least_zero) + 1) / (resamples + 1))
    quantile = -ndtri(share / 2) * math.sqrt((n - 1) / n)
    return float(2 * stdtr(n - 1, -quantile))
