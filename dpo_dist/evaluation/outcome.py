"""The outcome of the evaluation: improved, regressed or no evidence."""

from __future__ import annotations

from collections.abc import Collection

from dpo_dist.evaluation.scores import (
    ArmDifference,
    ArmWinRate,
    Comparisons,
    MetricRow,
    Outcome,
    OutcomeName,
)
from dpo_dist.intervals import LEVEL


def decide(found: Comparisons, guard: Collection[str] | None = None) -> Outcome:
    """The outcome of dpo against sft.

    - regressed: the interval of dpo's win rate lies below 50 %, or a guarded metric is
      significantly worse (p at most 5 % after Holm's adjustment);
    - improved: otherwise, if the interval lies above 50 % and the rate would do so even if all
      missing verdicts were losses; without a judge, if a guarded metric is significantly better;
    - no_evidence: otherwise.

    Guarded are metrics at the first decoding: those labelled in `guard`, or by default all that
    have a better direction and are not given by a judge.
    """
    rows = [
        row
        for row in found.metrics
        if row.decoding == 0
        and row.differences is not None
        and (row.label in guard if guard is not None else not row.judged and row.better is not None)
    ]
    better = [row.label for row in rows if _change(row) > 0]
    worse = [row.label for row in rows if _change(row) < 0]
    reasons = [f"{label} is significantly better" for label in better]
    reasons += [f"{label} is significantly worse" for label in worse]
    reasons += [f"{row.label} could not be compared" for row in rows if _p_value(row) is None]
    rate = found.preferred
    if rate is None:
        up, down = bool(better), False
        reasons.append("no judge compared SFT+DPO with SFT")
    else:
        up = rate.low is not None and rate.low > 0.5
        down = rate.high is not None and rate.high < 0.5
        reasons.insert(0, _rate_in_words(rate, up, down))
        if up and rate.worst is not None and rate.worst <= 0.5:
            up = False
            missing = sum(rate.missing.values())
            reasons.insert(
                1,
                f"{missing} of {missing + rate.n} verdicts are missing: if all of them were "
                f"losses, the rate would be {100 * rate.worst:.1f} %",
            )
    outcome: OutcomeName = "no_evidence"
    if down or worse:
        outcome = "regressed"
    elif up:
        outcome = "improved"
    return Outcome(
        outcome=outcome, reasons=tuple(reasons), guarded=tuple(row.label for row in rows)
    )


def _p_value(row: MetricRow) -> float | None:
    return row.delta.p_holm if isinstance(row.delta, ArmDifference) else None


def _change(row: MetricRow) -> float:
    """Above 0 if dpo is significantly better than sft, below 0 if it is worse, else 0."""
    p = _p_value(row)
    if p is None or p > LEVEL or row.delta is None or row.delta.mean is None:
        return 0.0
    return row.delta.mean * {"higher": 1, "lower": -1, None: 0}[row.better]


def _rate_in_words(rate: ArmWinRate, up: bool, down: bool) -> str:
    if rate.low is None or rate.high is None:
        return f"SFT+DPO's win rate over SFT has no interval ({rate.note.replace('_', ' ')})"
    place = "lies above" if up else "lies below" if down else "includes"
    return (
        f"the interval of SFT+DPO's win rate over SFT, {100 * rate.low:.1f} to "
        f"{100 * rate.high:.1f} %, {place} 50 %"
    )
