"""Whether the evaluation lets the trained model pass."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dpo_dist.intervals import LEVEL


@dataclass(frozen=True)
class Outcome:
    """The outcome, the figures that it rests on, in words, and the labels of the guarded rows."""

    outcome: Literal["improved", "no_evidence", "regressed"]
    reasons: tuple[str, ...]
    guarded: tuple[str, ...]


def decide(scores: Mapping[str, Any], guard: Collection[str] | None = None) -> Outcome:
    """The outcome of dpo against sft, by the content of `scores.json`.

    - regressed: the interval of dpo's win rate lies below 50 %, or a guarded metric is
      significantly worse (p at most 5 % after Holm's adjustment);
    - improved: otherwise, if the interval lies above 50 %, and would the rate even if all missing
      verdicts were losses; without a judge, if a guarded metric is significantly better;
    - no_evidence: otherwise.

    Guarded are the metrics at the first decoding: those labelled in `guard`, or all that no judge
    gives and that have a better direction.
    """
    rows = [
        row
        for row in scores["metrics"]
        if row["decoding"] == 0
        and "differences" in row  # figures of a whole set carry no test
        and (row["label"] in guard if guard is not None else not row["judged"] and row["better"])
    ]
    better = [row["label"] for row in rows if _change(row) > 0]
    worse = [row["label"] for row in rows if _change(row) < 0]
    reasons = [f"{label} is significantly better" for label in better]
    reasons += [f"{label} is significantly worse" for label in worse]
    reasons += [
        f"{row['label']} could not be compared"
        for row in rows
        if row["delta"] is None or row["delta"]["p_holm"] is None
    ]
    rate = scores["preferred"]
    if rate is None:
        up, down = bool(better), False
        reasons.append("no judge compared SFT+DPO with SFT")
    else:
        up = rate["low"] is not None and rate["low"] > 0.5
        down = rate["high"] is not None and rate["high"] < 0.5
        reasons.insert(0, _in_words(rate, up, down))
        if up and rate["worst"] <= 0.5:
            up = False
            reasons.insert(1, _could_be_lost(rate))
    outcome: Literal["improved", "no_evidence", "regressed"] = "no_evidence"
    if down or worse:
        outcome = "regressed"
    elif up:
        outcome = "improved"
    return Outcome(outcome, tuple(reasons), tuple(row["label"] for row in rows))


def _change(row: Mapping[str, Any]) -> float:
    """Above 0 where dpo is significantly better than sft, below 0 where it is worse, else 0."""
    delta = row["delta"]
    if delta is None or delta["p_holm"] is None or delta["p_holm"] > LEVEL:
        return 0.0
    return float(delta["mean"]) * {"higher": 1, "lower": -1, None: 0}[row["better"]]


def _could_be_lost(rate: Mapping[str, Any]) -> str:
    """What the verdicts that are missing could make of a win rate above 50 %."""
    missing = sum(rate["missing"].values())
    return (
        f"{missing} of {missing + rate['n']} verdicts are missing: if all of them were losses, the "
        f"rate would be {100 * rate['worst']:.1f} %"
    )


def _in_words(rate: Mapping[str, Any], up: bool, down: bool) -> str:
    if rate["low"] is None:
        return f"SFT+DPO's win rate over SFT has no interval ({rate['note'].replace('_', ' ')})"
    place = "lies above" if up else "lies below" if down else "includes"
    low, high = (f"{100 * rate[end]:.1f}" for end in ("low", "high"))
    return f"the interval of SFT+DPO's win rate over SFT, {low} to {high} %, {place} 50 %"
