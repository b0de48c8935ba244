"""Statistics of a whole set of labels, which are not means over answers: macro-F1 and the
quadratic-weighted kappa, with a bootstrap over prompts.

A confusion table has the shape (labels, labels + 1, ...): counts by gold label (first axis) and
given label (second axis). The last column is for answers without a label or with an unknown one.
The remaining axes are the batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpo_dist.evaluation.scores import HEADLINE, MetricRow
from dpo_dist.evaluation.scoring import Labelled
from dpo_dist.evaluation.statistics import RESAMPLES, bca_tails
from dpo_dist.intervals import Estimate

Table = NDArray[np.float64]
Given = Mapping[str, Hashable | None]

MOST_LABELS = 50  # with more, the labels are texts rather than classes
BLOCK = 1000  # resamples at a time, to limit the memory


@dataclass(frozen=True)
class LabelStatistic:
    """A statistic of a confusion table. If it is `ordinal`, answers without a known label are left
    out; otherwise they count as wrong."""

    key: str
    label: str
    unit: str
    of: Callable[[Table], Table]
    ordinal: bool


def macro_f1(table: Table) -> Table:
    """The mean F1 over all labels that occur as gold."""
    given = table[:, :-1]
    gold = table.sum(axis=1)
    hits = np.einsum("kk...->k...", given)
    occurs = gold > 0
    f1 = 2 * hits / np.maximum(gold + given.sum(axis=0), 1)
    with np.errstate(invalid="ignore"):
        return np.asarray((f1 * occurs).sum(axis=0) / occurs.sum(axis=0))


def quadratic_weighted_kappa(table: Table) -> Table:
    """Cohen's kappa with squared distances in the order (Cohen 1968): 1 - observed / expected
    disagreement; NaN if no disagreement is expected by chance."""
    pairs = table[:, :-1]
    places = np.arange(len(pairs))
    distance = (places[:, None] - places[None, :]) ** 2.0
    observed = np.einsum("ij,ij...->...", distance, pairs)
    gold, given = pairs.sum(axis=1), pairs.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = np.einsum("i...,ij,j...->...", gold, distance, given) / pairs.sum(axis=(0, 1))
        return np.asarray(1 - observed / expected)


MACRO_F1 = LabelStatistic("macro_f1", "macro-F1", "share", macro_f1, ordinal=False)
KAPPA = LabelStatistic(
    "kappa", "quadratic-weighted kappa", "kappa", quadratic_weighted_kappa, ordinal=True
)


def label_rows(
    accuracy: MetricRow, labelled: Labelled, order: Sequence[Hashable], seed: int
) -> list[MetricRow]:
    """The rows that follow the row of the accuracy: macro-F1, and kappa if the labels have an
    order. No rows for more than `MOST_LABELS` labels."""
    classes = order or tuple(dict.fromkeys(labelled.gold.values()))
    if not 0 < len(classes) <= MOST_LABELS:
        return []
    given = {arm: labelled.given.get((accuracy.decoding, arm), {}) for arm in accuracy.arms}

    def row(statistic: LabelStatistic) -> MetricRow:
        def estimate(*arms: str) -> Estimate:
            columns = [given[arm] for arm in arms]
            return bootstrap_labels(statistic, classes, labelled.gold, columns, seed)

        missing = {arm: Counter(accuracy.missing.get(arm, {})) for arm in given}
        if statistic.ordinal:
            for arm, column in given.items():
                missing[arm]["no_label"] += sum(label not in classes for label in column.values())
        return MetricRow(
            metric=f"{accuracy.metric}/{statistic.key}",
            label=f"{accuracy.label}, {statistic.label}",
            unit=statistic.unit,
            better=accuracy.better,
            judged=False,
            decoding=accuracy.decoding,
            arms={arm: estimate(arm) for arm in given},
            delta=estimate(*HEADLINE) if accuracy.delta is not None else None,
            missing={arm: dict(+counts) for arm, counts in missing.items() if +counts},
        )

    return [row(statistic) for statistic in ((MACRO_F1, KAPPA) if order else (MACRO_F1,))]


def bootstrap_labels(
    statistic: LabelStatistic,
    classes: Sequence[Hashable],
    gold: Mapping[str, Hashable],
    columns: Sequence[Given],
    seed: int,
) -> Estimate:
    """The statistic of one column of labels, or of the first minus the second on their common
    prompts. The interval is a bootstrap over prompts with BCa percentiles (Efron 1987), because
    resampled macro-F1 is biased downwards and skewed.

    The statistic depends only on how often each combination of labels occurs, so these counts are
    drawn instead of prompts. Resamples for which the statistic is NaN are left out.
    """
    place = {label: i for i, label in enumerate(classes)}
    other = len(classes)
    combinations: Counter[tuple[int, ...]] = Counter()
    for prompt, label in gold.items():
        if all(prompt in column for column in columns):
            places = [place.get(column[prompt], other) for column in columns]
            if not (statistic.ordinal and other in places):
                combinations[place[label], *places] += 1
    n = combinations.total()
    if not n:
        return Estimate(0, None)
    cells = np.array(list(combinations))  # (combinations, 1 + columns)
    counts = np.array(list(combinations.values()))  # (combinations,)

    def values(drawn: NDArray[np.int64]) -> Table:
        """(draws, combinations) -> (draws,)"""
        results = []
        for given in cells[:, 1:].T:
            table = np.zeros((other, other + 1, len(drawn)))
            np.add.at(table, (cells[:, 0], given), drawn.T)
            results.append(statistic.of(table))
        return results[0] - results[1] if len(results) > 1 else results[0]

    value = float(values(counts[None])[0])
    if not np.isfinite(value):
        return Estimate(n, None)
    random = np.random.default_rng(seed)
    blocks = [
        values(random.multinomial(n, counts / n, size=BLOCK)) for _ in range(RESAMPLES // BLOCK)
    ]
    resampled = np.concatenate(blocks)
    resampled = resampled[np.isfinite(resampled)]
    if n < 2 or np.ptp(resampled) == 0:
        return Estimate(n, value)
    one_less = values(counts - np.eye(len(counts), dtype=np.int64))
    low, high = np.quantile(resampled, bca_tails(resampled, value, one_less, counts))
    return Estimate(n, value, float(low), float(high))
