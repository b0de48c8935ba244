"""How often a judge prefers one arm to another, and how far that can be trusted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dpo_dist.evaluation.length_control import LengthControlled, length_controlled
from dpo_dist.evaluation.significance import detectable_effect, sign_test
from dpo_dist.evaluation.statistics import mean_of
from dpo_dist.intervals import Estimate
from dpo_dist.storage.records import Verdict

# A judge that contradicts itself is counted half for each, and reported apart from the ties.
_HALF = ("tie", "inconsistent")


@dataclass(frozen=True, kw_only=True)
class WinRate(Estimate):
    """The win rate of one arm over another: wins count 1, ties and inconsistent verdicts 1/2.

    `n` counts the verdicts. `missing` has what the judge did not decide, by reason: it is in no
    figure but the bounds `worst` and `best`, the rate if all of it had been losses or wins.
    `p` is the exact sign test's on wins and losses. `detectable`: the smallest distance from 1/2
    that n verdicts, as many of them halves as here, find with 80 % power. `note` says why there is
    no rate or no interval: "no_verdict", "one_prompt", or only halves: "all_ties",
    "all_inconsistent", "no_preference" (both).
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
    """What each verdict is worth to `arm`, by prompt: 1, 1/2 or 0. Missing ones are left out."""
    decided = {v.prompt_id: float(v.preferred == arm) for v in verdicts if v.outcome == "preferred"}
    return decided | {v.prompt_id: 0.5 for v in verdicts if v.outcome in _HALF}


def win_rate(
    verdicts: Sequence[Verdict], arm: str, seed: int, longer: Mapping[str, float] | None = None
) -> WinRate:
    """The win rate of `arm`, from one verdict per prompt.

    The interval is Wilson's where all verdicts are wins or losses, the bootstrap's over prompts
    otherwise. `longer` says by how much the arm's answer to each prompt is the longer one; without
    it there is no length-controlled rate.
    """
    values = worth(verdicts, arm)
    outcomes = Counter(verdict.outcome for verdict in verdicts)
    wins = sum(value == 1 for value in values.values())
    losses = sum(value == 0 for value in values.values())
    estimate = mean_of(values, seed)
    total, asked = sum(values.values()), len(verdicts)
    return WinRate(
        n=estimate.n,
        mean=estimate.mean,
        low=estimate.low,
        high=estimate.high,
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
    """From the spread that equal arms would have, which the rate that was seen does not narrow."""
    if not decided or n < 2:
        return None
    variance = decided / n / 4  # a win or loss lies 1/2 from the mean of equal arms, a half on it
    return detectable_effect(math.sqrt(variance / n))


def _note(estimate: Estimate, ties: int, inconsistent: int) -> str:
    if estimate.low is not None:
        return ""
    if estimate.n < 2:
        return "one_prompt" if estimate.n else "no_verdict"
    if ties and inconsistent:
        return "no_preference"
    return "all_ties" if ties else "all_inconsistent"
