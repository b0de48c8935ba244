"""A binomial GLM with logit link, for length control and the Bradley-Terry model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpo_dist.evaluation.statistics import CONFIDENCE, Floats

_STEPS = 50


@dataclass(frozen=True)
class LogisticFit:
    """Maximum-likelihood coefficients (k,), their clustered covariance (k, k), and the degrees of
    `freedom` of Student's distribution for their intervals."""

    coefficients: Floats
    covariance: Floats
    freedom: int

    def interval(self, contrast: Floats) -> tuple[float, float | None, float | None]:
        """contrast @ coefficients with its 95 % interval (low, high). The interval is None if the
        clusters have no variance, which would claim certainty."""
        from scipy.special import stdtrit

        centre = float(contrast @ self.coefficients)
        variance = float(contrast @ self.covariance @ contrast)
        if variance < 1e-12:
            return centre, None, None
        half = float(stdtrit(self.freedom, (1 + CONFIDENCE) / 2)) * math.sqrt(variance)
        return centre, centre - half, centre + half


def fit(x: Floats, y: Floats, clusters: NDArray[np.int64]) -> LogisticFit | None:
    """Fit E[y] = expit(x @ coefficients) for responses from 0 to 1, by Newton's method.

    x: (rows, k), y: (rows,), clusters: (rows,), numbered from 0; rows of one cluster may be
    dependent. Halves are fractional responses (Papke and Wooldridge 1996): the score equations are
    the binomial ones, and the sandwich covariance, with G / (G - 1) * (N - 1) / (N - k), does not
    assume the binomial variance. None if there is no finite maximum (separated responses, collinear
    columns) or there are no more clusters than coefficients.
    """
    from scipy.special import expit

    rows, k = x.shape
    groups = int(clusters.max(initial=-1)) + 1
    if groups <= k:
        return None
    coefficients = np.zeros(k)
    for _ in range(_STEPS):
        mean = expit(x @ coefficients)
        information = (x * (mean * (1 - mean))[:, None]).T @ x
        if not np.linalg.cond(information) < 1e12:  # also for NaN
            return None
        step = np.linalg.solve(information, x.T @ (y - mean))
        coefficients = coefficients + step
        if np.abs(step).max() < 1e-10:
            break
    else:
        return None  # separated responses: the coefficients diverge
    scores = np.zeros((groups, k))
    np.add.at(scores, clusters, x * (y - mean)[:, None])
    bread = np.linalg.inv(information)
    correction = groups / (groups - 1) * (rows - 1) / (rows - k)
    return LogisticFit(coefficients, correction * bread @ (scores.T @ scores) @ bread, groups - k)
