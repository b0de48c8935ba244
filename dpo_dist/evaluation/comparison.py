"""Computes scores.json, the comparison of the arms, from scores and verdicts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from dpo_dist.config import OWN_LABELS, Better, Sampling
from dpo_dist.evaluation.labels import label_rows
from dpo_dist.evaluation.outcome import decide
from dpo_dist.evaluation.ranking import Game, Ranking, rank
from dpo_dist.evaluation.scores import (
    HEADLINE,
    ArmDifference,
    ArmWinRate,
    Comparisons,
    Lengths,
    MetricRow,
    Scores,
)
from dpo_dist.evaluation.scoring import Labelled
from dpo_dist.evaluation.significance import holm, paired_difference, points_difference
from dpo_dist.evaluation.statistics import mean_of, points_mean
from dpo_dist.evaluation.win_rate import win_rate, worth
from dpo_dist.metrics import Metric
from dpo_dist.storage.records import Score, Unscored, Verdict

Pair = tuple[str, str]
Cell = tuple[str, int, str]  # metric, decoding and arm
LengthsByArm = Mapping[str, Mapping[str, int]]  # characters by arm and prompt


@dataclass(frozen=True)
class Points:
    """A figure in addition to the metrics, at the first decoding only: a judge's score from 1 to 5
    (`judged`), or a benchmark."""

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
    decodings: Sequence[Sampling],
    seed: int,
    *,
    unscored: Sequence[Unscored] = (),
    labelled: Mapping[str, Labelled] | None = None,
    lengths: LengthsByArm | None = None,
    guard: Sequence[str] | None = None,
    arm_labels: Mapping[str, str] = OWN_LABELS,
) -> Scores:
    """All metrics by decoding and arm, the differences of the arms, the judge's win rates, and the
    outcome.

    `verdicts` maps (a, b) to the verdicts on a against b, one per prompt; None without a judge.
    `labelled` has the labels of metrics that compare labels, by metric key. `lengths` are those of
    the answers at the first decoding. `guard`: see `decide`. `arm_labels` are the arms' names
    in tables.
    """
    values: dict[Cell, dict[str, float]] = defaultdict(dict)
    for score in scores:
        values[score.metric, score.decoding, score.arm][score.prompt_id] = score.value
    missing: dict[Cell, Counter[str]] = defaultdict(Counter)
    for answer in unscored:
        missing[answer.metric, answer.decoding, answer.arm][answer.reason] += 1
    rows = [
        _row(metric, values, missing, arms, decoding, seed)
        for decoding in range(len(decodings))
        for metric in metrics
        if decoding == 0 or isinstance(metric, Metric)
    ]
    pairwise = _pairwise(verdicts or {}, lengths, seed)
    found = Comparisons(
        decodings=tuple(decodings),
        arms=tuple(arms),
        arm_labels=dict(arm_labels),
        metrics=tuple(_with_labels(_adjusted(rows), metrics, labelled or {}, seed)),
        preferred=next((pair for pair in pairwise if (pair.a, pair.b) == HEADLINE), None),
        pairwise=pairwise,
        length=None if lengths is None else _length(lengths, seed),
        ranking=_ranking(verdicts, arms) if verdicts else None,
    )
    return Scores(**dict(found), outcome=decide(found, guard))


def _adjusted(rows: Sequence[MetricRow]) -> Iterator[MetricRow]:
    """The rows after Holm's adjustment over all rows of one metric; a row's `delta` is its
    difference dpo - sft."""
    p_values: dict[str, list[float | None]] = defaultdict(list)
    for row in rows:
        p_values[row.metric] += [difference.p for difference in row.differences or ()]
    adjusted = {metric: iter(holm(values)) for metric, values in p_values.items()}
    for row in rows:
        differences = tuple(
            replace(d, p_holm=next(adjusted[row.metric])) for d in row.differences or ()
        )
        delta = next((d for d in differences if (d.a, d.b) == HEADLINE), None)
        yield row.model_copy(update={"differences": differences, "delta": delta})


def _row(
    metric: Metric | Points,
    all_values: Mapping[Cell, Mapping[str, float]],
    missing: Mapping[Cell, Counter[str]],
    arms: Sequence[str],
    decoding: int,
    seed: int,
) -> MetricRow:
    values = {arm: all_values.get((metric.key, decoding, arm), {}) for arm in arms}
    mean = mean_of if metric.unit == "share" else points_mean
    difference = paired_difference if metric.unit == "share" else points_difference
    counts = {arm: missing.get((metric.key, decoding, arm)) for arm in arms}
    return MetricRow(
        metric=metric.key,
        label=metric.label,
        unit=metric.unit,
        better=metric.better,
        judged=isinstance(metric, Points) and metric.judged,
        decoding=decoding,
        arms={arm: mean(values[arm], seed) for arm in arms},
        differences=tuple(
            ArmDifference(a, b, **vars(difference(values[a], values[b], seed)))
            for a, b in pairs_of(arms)
        ),
        delta=None,
        missing={arm: dict(count) for arm, count in counts.items() if count},
    )


def pairs_of(arms: Sequence[str]) -> list[Pair]:
    """All pairs of arms, the later against the earlier; dpo and sft always as (dpo, sft)."""
    pairs = [(later, earlier) for earlier, later in combinations(arms, 2)]
    return [HEADLINE if set(pair) == set(HEADLINE) else pair for pair in pairs]


def _with_labels(
    rows: Iterable[MetricRow],
    metrics: Sequence[Metric | Points],
    labelled: Mapping[str, Labelled],
    seed: int,
) -> Iterator[MetricRow]:
    """The rows; each row of a metric that compares labels is followed by its label statistics."""
    by_key = {metric.key: metric for metric in metrics}
    for row in rows:
        yield row
        metric = by_key[row.metric]
        if isinstance(metric, Metric) and metric.labels and row.metric in labelled:
            yield from label_rows(row, labelled[row.metric], metric.labels.order, seed)


def _pairwise(
    verdicts: Mapping[Pair, Sequence[Verdict]], lengths: LengthsByArm | None, seed: int
) -> tuple[ArmWinRate, ...]:
    rates = {
        (a, b): win_rate(given, a, seed, _longer(lengths, a, b))
        for (a, b), given in verdicts.items()
    }
    adjusted = holm([rate.p for rate in rates.values()])
    return tuple(
        ArmWinRate(decoding=0, a=a, b=b, p_holm=p, **vars(rate))
        for ((a, b), rate), p in zip(rates.items(), adjusted, strict=True)
    )


def _longer(lengths: LengthsByArm | None, a: str, b: str) -> dict[str, float] | None:
    """The number of characters by which a's answer is longer than b's, by prompt."""
    if lengths is None:
        return None
    return {p: float(n - lengths[b][p]) for p, n in lengths[a].items() if p in lengths[b]}


def _length(lengths: LengthsByArm, seed: int) -> Lengths:
    both = all(arm in lengths for arm in HEADLINE)
    dpo, sft = (lengths.get(arm, {}) for arm in HEADLINE)
    return Lengths(
        unit="characters",
        arms={arm: points_mean(found, seed) for arm, found in lengths.items()},
        delta=points_difference(dpo, sft, seed) if both else None,
    )


def _ranking(verdicts: Mapping[Pair, Sequence[Verdict]], arms: Sequence[str]) -> Ranking:
    games = [
        Game(prompt_id, a, b, value)
        for (a, b), given in verdicts.items()
        for prompt_id, value in worth(given, a).items()
    ]
    compared = {arm for pair in verdicts for arm in pair}
    return rank(games, [arm for arm in arms if arm in compared])
