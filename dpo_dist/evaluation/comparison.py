"""The comparison of the arms, as it stands in `scores.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from dpo_dist.config import Better
from dpo_dist.evaluation.differences import paired_difference, points_difference
from dpo_dist.evaluation.labels import label_rows
from dpo_dist.evaluation.outcome import decide
from dpo_dist.evaluation.ranking import Game, rank
from dpo_dist.evaluation.scoring import Labelled
from dpo_dist.evaluation.significance import holm
from dpo_dist.evaluation.statistics import mean_of, points_mean
from dpo_dist.evaluation.win_rate import win_rate, worth
from dpo_dist.metrics import Metric
from dpo_dist.storage.records import Score, Unscored, Verdict

HEADLINE = ("dpo", "sft")

Pair = tuple[str, str]
Values = dict[tuple[str, int, str], dict[str, float]]  # by metric, decoding and arm; by prompt id
Missing = dict[tuple[str, int, str], Counter[str]]  # by metric, decoding and arm; by reason


@dataclass(frozen=True)
class Points:
    """A figure beside the metrics, given at the first decoding alone: a judge's score from 1 to 5
    (`judged`), or what its unit says."""

    key: str
    label: str
    unit: str = "points"
    better: Better | None = "higher"
    judged: bool = True


def summarise(
    metrics: Sequence[Metric | Points],
    scores: Sequence[Score],
    verdicts: Mapping[Pair, Sequence[Verdict]] | None,
    arms: Sequence[str],
    decodings: Sequence[Mapping[str, Any]],
    seed: int,
    *,
    unscored: Sequence[Unscored] = (),
    labelled: Mapping[str, Labelled] | None = None,
    lengths: Mapping[str, Mapping[str, int]] | None = None,
    guard: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Every metric per decoding and arm with the differences of the arms, the win rates of the
    pairs of arms that a judge compared, and the outcome.

    `verdicts` maps (a, b) to the verdicts on a against b, one per prompt; None without a judge.
    `lengths` has the characters of each arm's answers at the first decoding, by prompt.
    `guard`: see `decide`.

    An estimate is `{"n", "mean", "low", "high"}`; `n` counts prompts. A metric's "unit" is "share"
    (of 1), "points" of a judge, "kappa", or what it counts; "better" is "higher", "lower" or None;
    "missing" has what it could not score per arm, by reason; its "delta" is the difference dpo -
    sft; "p_holm" is p after Holm's adjustment, among the pairs of arms of one metric (at all
    decodings) or of the judge. Below a metric that compares labels stand the figures of
    `labelled`. "preferred" is dpo's win rate over sft, one of those in "pairwise"; None where there
    is none. "length" is that of the answers, with the difference dpo - sft; None where no lengths
    are given.
    """
    values: Values = {}
    for score in scores:
        key = (score.metric, score.decoding, score.arm)
        values.setdefault(key, {})[score.prompt_id] = score.value
    rows = _rows(metrics, values, _by_reason(unscored), arms, len(decodings), seed)
    for name in dict.fromkeys(metric.key for metric in metrics):
        _adjust([row for row in rows if row["metric"] == name])
    rows = list(_with_labels(rows, metrics, labelled or {}, seed))
    pairwise = [
        {"decoding": 0, "a": a, "b": b, **asdict(win_rate(given, a, seed, _longer(lengths, a, b)))}
        for (a, b), given in (verdicts or {}).items()
    ]
    for pair, p in zip(pairwise, holm([pair["p"] for pair in pairwise]), strict=True):
        pair["p_holm"] = p
    headline = [pair for pair in pairwise if (pair["a"], pair["b"]) == HEADLINE]
    summary = {
        "decodings": [dict(decoding) for decoding in decodings],
        "arms": list(arms),
        "metrics": rows,
        "preferred": headline[0] if headline else None,
        "pairwise": pairwise,
        "length": None if lengths is None else _length(lengths, seed),
        "ranking": _ranking(verdicts, arms) if verdicts else None,
    }
    return {**summary, "outcome": asdict(decide(summary, guard))}


def _by_reason(unscored: Sequence[Unscored]) -> Missing:
    missing: Missing = {}
    for answer in unscored:
        key = (answer.metric, answer.decoding, answer.arm)
        missing.setdefault(key, Counter())[answer.reason] += 1
    return missing


def _rows(
    metrics: Sequence[Metric | Points],
    values: Values,
    missing: Missing,
    arms: Sequence[str],
    decodings: int,
    seed: int,
) -> list[dict[str, Any]]:
    return [
        _row(metric, values, missing, arms, decoding, seed)
        for decoding in range(decodings)
        for metric in metrics
        if decoding == 0 or isinstance(metric, Metric)
    ]


def _with_labels(
    rows: Sequence[dict[str, Any]],
    metrics: Sequence[Metric | Points],
    labelled: Mapping[str, Labelled],
    seed: int,
) -> Iterator[dict[str, Any]]:
    """The rows, those of labels followed by what their whole set says."""
    known = {metric.key: metric for metric in metrics}
    for row in rows:
        yield row
        metric = known[row["metric"]]
        if isinstance(metric, Metric) and metric.labels and row["metric"] in labelled:
            yield from label_rows(row, labelled[row["metric"]], metric.labels.order, seed)


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
    difference = paired_difference if metric.unit == "share" else points_difference
    differences = [
        {"a": a, "b": b, **asdict(difference(found[a], found[b], seed)), "p_holm": None}
        for a, b in pairs_of(arms)
    ]
    counts = {arm: missing.get((metric.key, decoding, arm)) for arm in arms}
    return {
        "metric": metric.key,
        "label": metric.label,
        "unit": metric.unit,
        "better": metric.better,
        "judged": isinstance(metric, Points) and metric.judged,
        "decoding": decoding,
        "arms": {arm: asdict(mean(found[arm], seed)) for arm in arms},
        "differences": differences,
        "delta": next((d for d in differences if (d["a"], d["b"]) == HEADLINE), None),
        "missing": {arm: dict(count) for arm, count in counts.items() if count},
    }


def pairs_of(arms: Sequence[str]) -> list[Pair]:
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


def _length(lengths: Mapping[str, Mapping[str, int]], seed: int) -> dict[str, Any]:
    both = all(arm in lengths for arm in HEADLINE)
    dpo, sft = (lengths.get(arm, {}) for arm in HEADLINE)
    return {
        "unit": "characters",
        "arms": {arm: asdict(points_mean(found, seed)) for arm, found in lengths.items()},
        "delta": asdict(points_difference(dpo, sft, seed)) if both else None,
    }


def _ranking(verdicts: Mapping[Pair, Sequence[Verdict]], arms: Sequence[str]) -> dict[str, Any]:
    games = [
        Game(prompt_id, a, b, value)
        for (a, b), given in verdicts.items()
        for prompt_id, value in worth(given, a).items()
    ]
    compared = {arm for pair in verdicts for arm in pair}
    return asdict(rank(games, [arm for arm in arms if arm in compared]))
