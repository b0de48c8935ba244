"""Means with their uncertainty. The prompt is the unit: what shares a prompt is resampled
together, since rows of one prompt are not independent."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

K = TypeVar("K", bound=Hashable)

RESAMPLES = 10_000
CONFIDENCE = 0.95
Z = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` prompts and its 95 % interval.

    `mean` is None for n = 0; the interval is None where the data gives no hold for one
    (n < 2, or a bootstrap of equal values).
    """

    n: int
    mean: float | None
    low: float | None = None
    high: float | None = None


def wilson(successes: int, n: int) -> Estimate:
    """A share with Wilson's score interval (Wilson 1927): sound also at 0 %, 100 % and small n."""
    if n < 2:
        return Estimate(n, successes / n if n else None)
    share = successes / n
    centre = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return Estimate(n, share, max(0.0, centre - half), min(1.0, centre + half))


def bootstrap_mean(values: Mapping[K, Sequence[float]], seed: int) -> Estimate:
    """The mean of all values, with a percentile bootstrap over clusters (prompts).

    `values` maps a prompt to its values. `RESAMPLES` draws of as many prompts as there are,
    with replacement; seeded.
    """
    clusters = [np.asarray(cluster, dtype=float) for cluster in values.values() if len(cluster)]
    n = len(clusters)
    if n == 0:
        return Estimate(0, None)
    sums = np.array([cluster.sum() for cluster in clusters])  # (n,)
    sizes = np.array([len(cluster) for cluster in clusters])  # (n,)
    mean = float(sums.sum() / sizes.sum())
    if n < 2 or np.ptp(sums / sizes) == 0:
        # Resampling equal values has no spread; an interval of width zero would claim certainty.
        return Estimate(n, mean)
    means = _resample(sums, sizes, seed)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(n, mean, float(low), float(high))


def _resample(
    sums: NDArray[np.float64], sizes: NDArray[np.int64], seed: int
) -> NDArray[np.float64]:
    """`RESAMPLES` bootstrap means. Drawing how often each cluster occurs is drawing the
    clusters, without a (RESAMPLES, n) table of indices to gather from."""
    n = len(sums)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    return np.asarray((counts @ sums) / (counts @ sizes), dtype=float)  # (RESAMPLES,)


def mean_of(values: Mapping[str, float], seed: int) -> Estimate:
    """One value per prompt: Wilson where all are 0 or 1, the bootstrap otherwise."""
    if all(value in (0.0, 1.0) for value in values.values()):
        return wilson(int(sum(values.values())), len(values))
    return points_mean(values, seed)


def points_mean(values: Mapping[str, float], seed: int) -> Estimate:
    """One value per prompt on any scale: the bootstrap."""
    return bootstrap_mean({prompt: [value] for prompt, value in values.items()}, seed)


def paired_difference(a: Mapping[str, float], b: Mapping[str, float], seed: int) -> Estimate:
    """The mean of a - b over the prompts that both have, resampled by prompt."""
    shared = [prompt for prompt in a if prompt in b]
    return points_mean({prompt: a[prompt] - b[prompt] for prompt in shared}, seed)
