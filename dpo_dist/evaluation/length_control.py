"""The win rate that would be left if both answers were equally long.

Judges like length. The model is that of length-controlled AlpacaEval (Dubois et al. 2024) without
its difficulty of each prompt, which exists for AlpacaEval's own prompts only:

    logit P(a preferred) = alpha + phi * tanh((len_a - len_b) / sd),    the rate = expit(alpha)

sd: of the differences in length over the prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dpo_dist.evaluation.logistic import fit
from dpo_dist.intervals import Estimate


@dataclass(frozen=True)
class LengthControlled(Estimate):
    """The rate at equal lengths and its interval, the delta method's on the logit scale.

    `slope` is phi: above 0 the longer answer is preferred. Where there is no rate, `note` says
    why: "too_few" prompts, "all_equal" verdicts, "equal_lengths" (the differences do not differ)
    or "separated" (the lengths explain all verdicts: the coefficients are infinite).
    """

    slope: float | None = None
    note: str = ""


def length_controlled(worth: Mapping[str, float], longer: Mapping[str, float]) -> LengthControlled:
    """`worth` maps a prompt to what its verdict is worth to a, from 0 to 1; `longer` to how much
    longer a's answer is, in any unit. Prompts that `longer` lacks are left out."""
    from scipy.special import expit

    shared = [prompt for prompt in worth if prompt in longer]
    n = len(shared)
    if n < 3:
        return LengthControlled(n, None, note="too_few")
    lengths = np.array([longer[prompt] for prompt in shared], dtype=float)
    y = np.array([worth[prompt] for prompt in shared], dtype=float)
    if np.ptp(y) == 0:
        return LengthControlled(n, None, note="all_equal")
    spread = lengths.std(ddof=1)
    if spread == 0:
        return LengthControlled(n, None, note="equal_lengths")
    x = np.column_stack([np.ones(n), np.tanh(lengths / spread)])
    fitted = fit(x, y, np.arange(n))
    if fitted is None:
        return LengthControlled(n, None, note="separated")
    rate, low, high = (
        None if end is None else float(expit(end)) for end in fitted.interval(np.array([1.0, 0.0]))
    )
    return LengthControlled(n, rate, low, high, slope=float(fitted.coefficients[1]))
