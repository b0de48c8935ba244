"""The win rate of one arm over another, and the length-controlled win rate.

Judges tend to prefer longer answers. The length-controlled rate is the rate at equal lengths. Its
model is AlpacaEval's (Dubois et al. 2024) without the difficulty of each prompt, which is known
only for AlpacaEval's prompts:

    logit P(a preferred) = alpha + phi * tanh((len_a - len_b) / sd),    the rate = expit(alpha)

sd is the standard deviation of the differences in length over the prompts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dpo_dist.evaluation.logistic import fit
from dpo_dist.evaluation.significance import detectable_effect, sign_test
from dpo_dist.evaluation.statistics import mean_of
from dpo_dist.intervals import Estimate
from dpo_dist.storage.records import Verdict


@dataclass(frozen=True)
class LengthControlled(Estimate):
    """The rate at equal lengths; its interval is computed on the logit scale.

    `slope` is phi: above 0, longer answers are preferred. If there is no rate, `note` is the
    reason: "too_few" prompts, "all_equal" verdicts, "equal_lengths" (all differences are equal) or
    "separated" (the lengths explain all verdicts: the coefficients are infinite).
    """

    slope: float | None = None
    note: str = ""


def length_controlled(worth: Mapping[str, float], longer: Mapping[str, float]) -> LengthControlled:
    """`worth` maps a prompt to the worth of its verdict for a, from 0 to 1; `longer` to the
    difference in length, a's minus b's, in any unit. Prompts missing in `longer` are left out."""
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


_HALF = ("tie", "inconsistent")  # outcomes that are worth 1/2 to both arms


@dataclass(frozen=True, kw_only=True)
class WinRate(Estimate):
    """The win rate of one arm over another: wins count 1, ties and inconsistent verdicts 1/2.

    `n` counts the decided verdicts. `missing` counts the others by reason; they affect only the
    bounds `worst` and `best`, the rate if all of them were losses or wins. `p` is that of the exact
    sign test on wins and losses. `detectable` is the smallest distance from 1/2 that n verdicts
    with this share of halves detect with 80 % power. `note` is the reason if there is no rate or no
    interval: "no_verdict", "one_prompt", or only halves: "all_ties", "all_inconsistent",
    "no_preference" (both).
    """

    wins: int
    losses: int
    ties: int
    inconsistent: int
    missing: dict[str, int]
    worst: float | None
    best: float | None
    p: float | None
    detectable: float | None
    length_controlled: LengthControlled | None
    note: str


def worth(verdicts: Sequence[Verdict], arm: str) -> dict[str, float]:
    """The worth of each verdict for `arm`, by prompt: 1, 1/2 or 0, without missing verdicts."""
    decided = {v.prompt_id: float(v.preferred == arm) for v in verdicts if v.outcome == "preferred"}
    return decided | {v.prompt_id: 0.5 for v in verdicts if v.outcome in _HALF}


def win_rate(
    verdicts: Sequence[Verdict], arm: str, seed: int, longer: Mapping[str, float] | None = None
) -> WinRate:
    """The win rate of `arm`, from one verdict per prompt. The interval is Wilson's if all verdicts
    are wins or losses, otherwise the bootstrap's over prompts. `longer` is that of
    `length_controlled`; without it there is no such rate."""
    values = worth(verdicts, arm)
    outcomes = Counter(verdict.outcome for verdict in verdicts)
    wins = sum(value == 1 for value in values.values())
    losses = sum(value == 0 for value in values.values())
    estimate = mean_of(values, seed)
    total, asked = sum(values.values()), len(verdicts)
    return WinRate(
        **vars(estimate),
        wins=wins,
        losses=losses,
        ties=outcomes["tie"],
        inconsistent=outcomes["inconsistent"],
        missing={o: k for o, k in outcomes.items() if o != "preferred" and o not in _HALF},
        worst=total / asked if asked else None,
        best=(total + asked - len(values)) / asked if asked else None,
        p=sign_test(wins, losses) if values else None,
        detectable=_detectable(wins + losses, len(values)),
        length_controlled=None if longer is None else length_controlled(values, longer),
        note=_note(estimate, outcomes["tie"], outcomes["inconsistent"]),
    )


def _detectable(decided: int, n: int) -> float | None:
    """Uses the variance of equal arms, which does not depend on the observed rate."""
    if not decided or n < 2:
        return None
    variance = decided / n / 4  # a win or loss lies 1/2 from the mean of equal arms, a tie 0
    return detectable_effect(math.sqrt(variance / n))


def _note(estimate: Estimate, ties: int, inconsistent: int) -> str:
    if estimate.low is not None:
        return ""
    if estimate.n < 2:
        return "one_prompt" if estimate.n else "no_verdict"
    if ties and inconsistent:
        return "no_preference"
    return "all_ties" if ties else "all_inconsistent"
