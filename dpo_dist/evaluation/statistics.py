"""Means and their uncertainty. Values of one prompt are not independent, so prompts are resampled
as clusters."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dpo_dist.intervals import Estimate, wilson

Floats = NDArray[np.float64]
K = TypeVar("K", bound=Hashable)

RESAMPLES = 10_000
CONFIDENCE = 0.95
_BLOCK = 2**22  # indices that the bootstrap draws at a time, 32 MiB
# Drawing the counts of k distinct clusters takes as long as drawing 16 k indices.
_MULTINOMIAL_COST = 16


@dataclass(frozen=True)
class Clusters:
    """The sum and the number of values of each of n prompts. Shapes: (n,)."""

    sums: Floats
    sizes: Floats

    @classmethod
    def of(cls, values: Mapping[K, Sequence[float]]) -> Clusters:
        """Prompts without a value are left out."""
        found = [cluster for cluster in values.values() if len(cluster)]
        sums = np.array([math.fsum(cluster) for cluster in found], dtype=float)
        return cls(sums, np.array([len(cluster) for cluster in found], dtype=float))

    @property
    def n(self) -> int:
        return len(self.sums)

    @property
    def mean(self) -> float | None:
        return float(self.sums.sum() / self.sizes.sum()) if self.n else None

    @property
    def spread(self) -> bool:
        """Whether resampling the prompts can change the mean."""
        return self.n > 1 and bool(np.ptp(self.sums / self.sizes) > 0)


def bootstrap_mean(values: Mapping[K, Sequence[float]], seed: int) -> Estimate:
    """The mean of all values, with a percentile bootstrap over clusters (prompts). `values` maps a
    prompt to its values. See `resampled_means` and `percentile_tail`."""
    clusters = Clusters.of(values)
    if not clusters.spread:
        # Resampled means would all be equal; an interval of width zero would claim certainty.
        return Estimate(clusters.n, clusters.mean)
    return interval_of(clusters, resampled_means(clusters, seed))


def interval_of(clusters: Clusters, means: Floats) -> Estimate:
    """The mean with the percentile interval of its resampled `means`. Shape: (RESAMPLES,)."""
    tail = percentile_tail(clusters.n)
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(clusters.n, clusters.mean, float(low), float(high))


def percentile_tail(n: int) -> float:
    """The share of the resamples beyond each end of the interval; 2.5 % for large n.

    The plain percentile interval is too narrow, by sqrt((n - 1) / n) and because the bootstrap
    corresponds to the normal instead of Student's distribution. Expanded percentiles correct both
    (Hesterberg 2015, "What teachers should know about the bootstrap").
    """
    from scipy.special import ndtr, stdtrit

    quantile = stdtrit(n - 1, (1 + CONFIDENCE) / 2)
    return float(ndtr(-math.sqrt(n / (n - 1)) * quantile))


def bca_tails(
    resampled: Floats, value: float, one_less: Floats, counts: NDArray[np.int64]
) -> tuple[float, float]:
    """The quantiles of the `resampled` statistic at the ends of the interval, for a statistic that
    is not a mean: the tails of `percentile_tail`, bias-corrected and accelerated (Efron 1987, BCa).

    Without bias, half of the resamples would lie below `value`; at least one is assumed on either
    side. `one_less` has the statistic without one prompt of each kind, `counts` the number of
    prompts of that kind; NaN counts as the mean of the others. Shapes: (kinds,).
    """
    from scipy.special import ndtr, ndtri

    below = (resampled < value).mean() + (resampled == value).mean() / 2
    edge = 1 / (len(resampled) + 1)
    bias = ndtri(np.clip(below, edge, 1 - edge))
    known = np.isfinite(one_less)
    influence = np.average(one_less[known], weights=counts[known]) - one_less[known]
    squares = (counts[known] * influence**2).sum()
    skew = (counts[known] * influence**3).sum() / (6 * squares**1.5) if squares else 0.0
    tail = ndtri(percentile_tail(int(counts.sum())))
    low, high = (bias + z for z in (tail, -tail))
    # The acceleration is meaningless if nearly all resamples lie on one side, so it is bounded.
    ends = [bias + moved / max(1 - skew * moved, 0.1) for moved in (low, high)]
    return float(ndtr(ends[0])), float(ndtr(ends[1]))


def resampled_means(clusters: Clusters, seed: int) -> Floats:
    """`RESAMPLES` bootstrap means of n prompts drawn with replacement. Shape: (RESAMPLES,). If
    there are few distinct clusters (such as outcomes of 0, 1/2 and 1), their counts are drawn. This
    has the same distribution and takes milliseconds at any n."""
    random, n = np.random.default_rng(seed), clusters.n
    equal_sizes = np.ptp(clusters.sizes) == 0
    distinct, times = np.unique(
        np.column_stack([clusters.sums, clusters.sizes]), axis=0, return_counts=True
    )
    counted = len(distinct) * _MULTINOMIAL_COST < n
    rows = max(1, _BLOCK // (len(distinct) if counted else n))
    means = []
    for start in range(0, RESAMPLES, rows):
        size = min(rows, RESAMPLES - start)
        if counted:
            sums, sizes = distinct.T @ random.multinomial(n, times / n, size=size).T
        else:
            drawn = random.integers(0, n, size=(size, n))
            sums = clusters.sums[drawn].sum(axis=1)
            sizes = clusters.sizes.sum() if equal_sizes else clusters.sizes[drawn].sum(axis=1)
        means.append(sums / sizes)
    return np.concatenate(means)


def standard_error(values: Mapping[K, Sequence[float]]) -> float | None:
    """The clustered standard error of the mean of all values (Miller 2024, "Adding error bars to
    evals", with n - 1 in place of n); s / sqrt(n) if every prompt has one value. None for n < 2 and
    for equal values."""
    clusters = Clusters.of(values)
    if not clusters.spread:
        return None
    n, total = clusters.n, clusters.sizes.sum()
    residuals = clusters.sums - clusters.sums.sum() / total * clusters.sizes  # (n,)
    return float(math.sqrt((residuals**2).sum() * n / (n - 1)) / total)


def mean_of(values: Mapping[str, float], seed: int) -> Estimate:
    """The mean of one value per prompt: Wilson if all are 0 or 1, the bootstrap otherwise."""
    if all(value in (0.0, 1.0) for value in values.values()):
        return wilson(int(sum(values.values())), len(values))
    return points_mean(values, seed)


def points_mean(values: Mapping[str, float], seed: int) -> Estimate:
    """The mean of one value per prompt on any scale, with the bootstrap."""
    return bootstrap_mean({prompt: [value] for prompt, value in values.items()}, seed)
