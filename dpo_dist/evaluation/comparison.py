"""The comparison of the arms, as it stands in `scores.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dpo_dist.config import Better
from dpo_dist.evaluation.labels import label_rows
from dpo_dist.evaluation.scoring import Labelled
from dpo_dist.evaluation.statistics import (
    bootstrap_mean,
    mean_of,
    paired_difference,
    points_mean,
)
from dpo_dist.metrics import Metric
from dpo_dist.records import Score, Unscored, Verdict

# What a verdict is worth to dpo. A judge that contradicts itself is counted half for each, and
# reported apart from the ties.
_HALF = ("tie", "inconsistent")

Values = dict[tuple[str, int, str], dict[str, float]]  # by metric, decoding and arm; by prompt id
Missing = dict[tuple[str, int, str], Counter[str]]  # by metric, decoding and arm; by reason


@dataclass(frozen=True)
class Points:
    """A figure beside the metrics, given at the first decoding alone: a judge's score from 1 to 5,
    or what its unit says."""

    key: str
    label: str
    unit: str = "points"
    better: Better | None = "higher"


def summarise(
    metrics: Sequence[Metric | Points],
    scores: Sequence[Score],
    verdicts: Sequence[Verdict] | None,
    arms: Sequence[str],
    decodings: Sequence[Mapping[str, Any]],
    seed: int,
    *,
    unscored: Sequence[Unscored] = (),
    labelled: Mapping[str, Labelled] | None = None,
) -> dict[str, Any]:
    """Every metric per decoding and arm with the difference dpo - sft, and dpo's win rate.

    Each estimate is `{"n", "mean", "low", "high"}`; `n` counts prompts. A metric's "unit" is
    "share" (of 1), "points" of a judge, "kappa", or what it counts; "better" is "higher", "lower"
    or None; "missing" has what it could not score per arm, by reason. Below a metric that compares
    labels stand the figures of `labelled`. "preferred" is None without a judge.
    """
    values: Values = {}
    for score in scores:
        key = (score.metric, score.decoding, score.arm)
        values.setdefault(key, {})[score.prompt_id] = score.value
    missing: Missing = {}
    for answer in unscored:
        key = (answer.metric, answer.decoding, answer.arm)
        missing.setdefault(key, Counter())[answer.reason] += 1
    rows = []
    for decoding in range(len(decodings)):
        for metric in metrics:
            if isinstance(metric, Points) and decoding > 0:
                continue
            row = _row(metric, values, missing, arms, decoding, seed)
            rows.append(row)
            if isinstance(metric, Metric) and metric.labels and labelled:
                rows += label_rows(row, labelled[metric.key], metric.labels.order, seed)
    return {
        "decodings": [dict(decoding) for decoding in decodings],
        "arms": list(arms),
        "metrics": rows,
        "preferred": None if verdicts is None else _preferred(verdicts, seed),
    }


def _row(
    metric: Metric | Points,
    values: Values,
    missing: Missing,
    arms: Sequence[str],
    decoding: int,
    seed: int,
) -> dict[str, Any]:
    found = {arm: values.get((metric.key, decoding, arm), {}) for arm in arms}
    mean = mean_of if metric.unit == "share" else points_mean
    counts = {arm: missing.get((metric.key, decoding, arm)) for arm in arms}
    return {
        "metric": metric.key,
        "label": metric.label,
        "unit": metric.unit,
        "better": metric.better,
        "decoding": decoding,
        "arms": {arm: asdict(mean(found[arm], seed)) for arm in arms},
        "delta": (
            asdict(paired_difference(found["dpo"], found["sft"], seed))
            if {"dpo", "sft"} <= set(arms)
            else None
        ),
        "missing": {arm: dict(count) for arm, count in counts.items() if count},
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
