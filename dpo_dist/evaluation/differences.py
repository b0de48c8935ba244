"""Two arms on the same prompts: the mean difference, its interval, and whether it may be chance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dpo_dist.evaluation.significance import bootstrap_p, mcnemar, sign_test
from dpo_dist.evaluation.statistics import Clusters, interval_of, resampled_means
from dpo_dist.intervals import Estimate, Z


@dataclass(frozen=True)
class Difference(Estimate):
    """The mean of a - b over `n` prompts, and the p-value of `test`; both None for n < 2."""

    p: float | None = None
    test: Literal["mcnemar", "bootstrap", "sign"] | None = None


def paired_difference(a: Mapping[str, float], b: Mapping[str, float], seed: int) -> Difference:
    """The mean of a - b over the prompts that both have: where all values are 0 or 1, Bonett and
    Price's interval and McNemar's exact test; otherwise `points_difference`."""
    shared = [prompt for prompt in a if prompt in b]
    if len(shared) < 2 or {values[p] for values in (a, b) for p in shared} - {0.0, 1.0}:
        return points_difference(a, b, seed)
    only_a = sum(a[prompt] > b[prompt] for prompt in shared)
    return _of_shares(len(shared), only_a, sum(a[prompt] < b[prompt] for prompt in shared))


def points_difference(a: Mapping[str, float], b: Mapping[str, float], seed: int) -> Difference:
    """The mean of a - b on any scale. The bootstrap over prompts gives interval and p-value, so
    that they agree. Differences that are all equal have no interval; the sign test stands in."""
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


def _of_shares(n: int, only_a: int, only_b: int) -> Difference:
    """The adjusted Wald interval for paired shares (Bonett and Price 2012): one prompt more in
    which only a, and one in which only b succeeds, so that no disagreement is not certainty."""
    a, b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    half = Z * math.sqrt((a + b - (a - b) ** 2) / (n + 2))
    return Difference(
        n,
        (only_a - only_b) / n,
        max(-1.0, a - b - half),
        min(1.0, a - b + half),
        mcnemar(only_a, only_b),
        "mcnemar",
    )
