"""The comparison of the arms, as it stands in `scores.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dpo_dist.evaluation.statistics import (
    bootstrap_mean,
    mean_of,
    paired_difference,
    points_mean,
)
from dpo_dist.metrics import Metric
from dpo_dist.records import Score, Verdict

# What a verdict is worth to dpo. A judge that contradicts itself is counted half for each, and
# reported apart from the ties.
_HALF = ("tie", "inconsistent")

Values = dict[tuple[str, int, str], dict[str, float]]  # by metric, decoding and arm; by prompt id


@dataclass(frozen=True)
class Points:
    """A judge's score from 1 to 5, which is given at the first decoding alone."""

    key: str
    label: str


def summarise(
    metrics: Sequence[Metric | Points],
    scores: Sequence[Score],
    verdicts: Sequence[Verdict] | None,
    arms: Sequence[str],
    decodings: Sequence[Mapping[str, Any]],
    seed: int,
) -> dict[str, Any]:
    """Every metric per decoding and arm with the difference dpo - sft, and dpo's win rate.

    Each estimate is `{"n", "mean", "low", "high"}`; `n` counts prompts. A metric's "unit" is
    "share" (of 1) or "points". "preferred" is None without a judge.
    """
    values: Values = {}
    for score in scores:
        key = (score.metric, score.decoding, score.arm)
        values.setdefault(key, {})[score.prompt_id] = score.value
    rows = [
        _row(metric, values, arms, decoding, seed)
        for decoding in range(len(decodings))
        for metric in metrics
        if decoding == 0 or isinstance(metric, Metric)
    ]
    return {
        "decodings": [dict(decoding) for decoding in decodings],
        "arms": list(arms),
        "metrics": rows,
        "preferred": None if verdicts is None else _preferred(verdicts, seed),
    }


def _row(
    metric: Metric | Points, values: Values, arms: Sequence[str], decoding: int, seed: int
) -> dict[str, Any]:
    points = isinstance(metric, Points)
    found = {arm: values.get((metric.key, decoding, arm), {}) for arm in arms}
    mean = points_mean if points else mean_of
    return {
        "metric": metric.key,
        "label": metric.label,
        "unit": "points" if points else "share",
        "decoding": decoding,
        "arms": {arm: asdict(mean(found[arm], seed)) for arm in arms},
        "delta": (
            asdict(paired_difference(found["dpo"], found["sft"], seed))
            if {"dpo", "sft"} <= set(arms)
            else None
        ),
    }


def _preferred(verdicts: Sequence[Verdict], seed: int) -> dict[str, Any]:
    """How often the judge prefers dpo to sft."""
    worth: dict[str, list[float]] = {}
    missing: Counter[str] = Counter()
    for verdict in verdicts:
        if verdict.outcome == "preferred":
            worth[verdict.prompt_id] = [float(verdict.preferred == "dpo")]
        elif verdict.outcome in _HALF:
            worth[verdict.prompt_id] = [0.5]
        else:
            missing[verdict.outcome] += 1
    decided = [verdict for verdict in verdicts if verdict.outcome == "preferred"]
    outcomes = Counter(verdict.outcome for verdict in verdicts)
    return {
        "decoding": 0,
        **asdict(bootstrap_mean(worth, seed)),
        "wins": sum(verdict.preferred == "dpo" for verdict in decided),
        "losses": sum(verdict.preferred == "sft" for verdict in decided),
        "ties": outcomes["tie"],
        "inconsistent": outcomes["inconsistent"],
        "missing": dict(missing),
    }
