"""The comparison of the arms, as it stands in `scores.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from dpo_dist.evaluation.differences import paired_difference, points_difference
from dpo_dist.evaluation.outcome import decide
from dpo_dist.evaluation.ranking import Game, rank
from dpo_dist.evaluation.significance import holm
from dpo_dist.evaluation.statistics import mean_of, points_mean
from dpo_dist.evaluation.win_rate import win_rate, worth
from dpo_dist.metrics import Metric
from dpo_dist.records import Score, Verdict

HEADLINE = ("dpo", "sft")

Pair = tuple[str, str]
Values = dict[tuple[str, int, str], dict[str, float]]  # by metric, decoding and arm; by prompt id


@dataclass(frozen=True)
class Points:
    """A judge's score from 1 to 5, which is given at the first decoding alone."""

    key: str
    label: str


def summarise(
    metrics: Sequence[Metric | Points],
    scores: Sequence[Score],
    verdicts: Mapping[Pair, Sequence[Verdict]] | None,
    arms: Sequence[str],
    decodings: Sequence[Mapping[str, Any]],
    seed: int,
    *,
    lengths: Mapping[str, Mapping[str, int]] | None = None,
    guard: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Every metric per decoding and arm with the differences of the arms, the win rates of the
    pairs of arms that a judge compared, and the outcome.

    `verdicts` maps (a, b) to the verdicts on a against b, one per prompt; None without a judge.
    `lengths` has the length of each arm's answers at the first decoding, by prompt, in any unit.
    `guard`: see `decide`.

    An estimate is `{"n", "mean", "low", "high"}`; `n` counts prompts. A metric's "unit" is "share"
    (of 1) or "points"; its "delta" is the difference dpo - sft. "preferred" is dpo's win rate over
    sft, one of those in "pairwise"; None where there is none.
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
    for name in dict.fromkeys(metric.key for metric in metrics):
        _adjust([row for row in rows if row["metric"] == name])
    pairwise = [
        {"decoding": 0, "a": a, "b": b, **asdict(win_rate(given, a, seed, _longer(lengths, a, b)))}
        for (a, b), given in (verdicts or {}).items()
    ]
    headline = [pair for pair in pairwise if (pair["a"], pair["b"]) == HEADLINE]
    summary = {
        "decodings": [dict(decoding) for decoding in decodings],
        "arms": list(arms),
        "metrics": rows,
        "preferred": headline[0] if headline else None,
        "pairwise": pairwise,
        "ranking": _ranking(verdicts, arms) if verdicts else None,
    }
    return {**summary, "outcome": asdict(decide(summary, guard))}


def _row(
    metric: Metric | Points, values: Values, arms: Sequence[str], decoding: int, seed: int
) -> dict[str, Any]:
    points = isinstance(metric, Points)
    found = {arm: values.get((metric.key, decoding, arm), {}) for arm in arms}
    mean = points_mean if points else mean_of
    difference = points_difference if points else paired_difference
    differences = [
        {"a": a, "b": b, **asdict(difference(found[a], found[b], seed)), "p_holm": None}
        for a, b in _pairs(arms)
    ]
    return {
        "metric": metric.key,
        "label": metric.label,
        "unit": "points" if points else "share",
        "judged": points,
        "direction": "higher",  # what is better, of every metric so far
        "decoding": decoding,
        "arms": {arm: asdict(mean(found[arm], seed)) for arm in arms},
        "differences": differences,
        "delta": next((d for d in differences if (d["a"], d["b"]) == HEADLINE), None),
    }


def _pairs(arms: Sequence[str]) -> list[Pair]:
    """All pairs of arms: the later against the earlier, and dpo against sft in any case."""
    pairs = [(later, earlier) for earlier, later in combinations(arms, 2)]
    return [HEADLINE if set(pair) == set(HEADLINE) else pair for pair in pairs]


def _adjust(rows: Sequence[dict[str, Any]]) -> None:
    """Holm's adjustment within one metric: over all pairs of arms at all decodings."""
    family = [difference for row in rows for difference in row["differences"]]
    for difference, p in zip(family, holm([d["p"] for d in family]), strict=True):
        difference["p_holm"] = p


def _longer(
    lengths: Mapping[str, Mapping[str, int]] | None, a: str, b: str
) -> dict[str, float] | None:
    """By how much a's answer is longer than b's, by prompt."""
    if lengths is None:
        return None
    return {p: float(n - lengths[b][p]) for p, n in lengths[a].items() if p in lengths[b]}


def _ranking(verdicts: Mapping[Pair, Sequence[Verdict]], arms: Sequence[str]) -> dict[str, Any]:
    games = [
        Game(prompt_id, a, b, value)
        for (a, b), given in verdicts.items()
        for prompt_id, value in worth(given, a).items()
    ]
    compared = {arm for pair in verdicts for arm in pair}
    return asdict(rank(games, [arm for arm in arms if arm in compared]))
