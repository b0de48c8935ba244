"""95 % intervals of shares and of values with a standard error, and the level of the tests."""

from __future__ import annotations

import math
from dataclasses import dataclass

LEVEL = 0.05  # a p-value up to this is significant
Z = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` prompts and its 95 % interval. `mean` is None for n = 0; the interval is None
    if the data does not allow one (n < 2, or a bootstrap of equal values)."""

    n: int
    mean: float | None
    low: float | None = None
    high: float | None = None


def wilson(successes: int, n: int) -> Estimate:
    """A share with Wilson's score interval (Wilson 1927), valid also at 0 %, 100 % and small n."""
    if n < 2:
        return Estimate(n, successes / n if n else None)
    share = successes / n
    centre = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return Estimate(n, share, max(0.0, centre - half), min(1.0, centre + half))


def half_width(standard_error: float) -> float:
    """Half the width of the interval of an approximately normal estimate."""
    return Z * standard_error
