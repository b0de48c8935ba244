"""Figures of a whole set of labels, which no mean over answers gives: macro-F1 and the
quadratic-weighted kappa, with a bootstrap over prompts.

A table of labels has the shape (labels, labels + 1, ...): how often a gold label (first axis) met
a given one (second axis), whose last place is for answers without a label and with one that is
not in the list. What follows is the batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpo_dist.evaluation.scoring import Labelled
from dpo_dist.evaluation.statistics import RESAMPLES, bca_tails
from dpo_dist.intervals import Estimate

Table = NDArray[np.float64]
Given = Mapping[str, Hashable | None]

# Beyond that a label hardly recurs: it is a text, not a class.
MOST_LABELS = 50
BLOCK = 1000  # resamples at a time, for the memory's sake


@dataclass(frozen=True)
class LabelStatistic:
    """A figure of a table of labels. An `ordinal` one leaves out answers that have no place in the
    order; for the others they are wrong."""

    key: str
    label: str
    unit: str
    of: Callable[[Table], Table]
    ordinal: bool


def macro_f1(table: Table) -> Table:
    """The mean F1 of the labels that occur as gold."""
    given = table[:, :-1]
    gold = table.sum(axis=1)
    hits = np.einsum("kk...->k...", given)
    occurs = gold > 0
    f1 = 2 * hits / np.maximum(gold + given.sum(axis=0), 1)
    with np.errstate(invalid="ignore"):
        return np.asarray((f1 * occurs).sum(axis=0) / occurs.sum(axis=0))


def quadratic_weighted_kappa(table: Table) -> Table:
    """Cohen's kappa with squared distances in the order (Cohen 1968): 1 less the observed
    disagreement over the one expected by chance; NaN where chance cannot disagree."""
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
    accuracy: Mapping[str, Any], labelled: Labelled, order: Sequence[Hashable], seed: int
) -> list[dict[str, Any]]:
    """The rows of `scores.json` that stand below the row of the accuracy: macro-F1, and the kappa
    where the labels have an order. None where there are more than `MOST_LABELS`."""
    classes = order or tuple(dict.fromkeys(labelled.gold.values()))
    if not 0 < len(classes) <= MOST_LABELS:
        return []
    given = {arm: labelled.given.get((accuracy["decoding"], arm), {}) for arm in accuracy["arms"]}

    def row(figure: LabelStatistic) -> dict[str, Any]:
        def estimate(*arms: str) -> dict[str, Any]:
            columns = [given[arm] for arm in arms]
            return asdict(bootstrap_labels(figure, classes, labelled.gold, columns, seed))

        missing = {arm: Counter(accuracy["missing"].get(arm, {})) for arm in given}
        if figure.ordinal:
            for arm, column in given.items():
                missing[arm]["no_label"] += sum(label not in classes for label in column.values())
        return {
            "metric": f"{accuracy['metric']}/{figure.key}",
            "label": f"{accuracy['label']}, {figure.label}",
            "unit": figure.unit,
            "better": accuracy["better"],
            "judged": False,
            "decoding": accuracy["decoding"],
            "arms": {arm: estimate(arm) for arm in given},
            "delta": estimate("dpo", "sft") if accuracy["delta"] is not None else None,
            "missing": {arm: dict(+counts) for arm, counts in missing.items() if +counts},
        }

    return [row(figure) for figure in ((MACRO_F1, KAPPA) if order else (MACRO_F1,))]


def bootstrap_labels(
    figure: LabelStatistic,
    classes: Sequence[Hashable],
    gold: Mapping[str, Hashable],
    columns: Sequence[Given],
    seed: int,
) -> Estimate:
    """The figure of one column of labels, or the first column's less the second's on the prompts
    that both have, with a bootstrap over prompts and Efron's (1987) BCa percentiles: of resampled
    prompts macro-F1 is on average lower than of the prompts themselves, and it is skewed.

    Drawing prompts is drawing how often each combination of labels occurs: the figure depends on
    nothing else. Resamples without a figure (no chance of disagreement) are left out.
    """
    place = {label: i for i, label in enumerate(classes)}
    other = len(classes)
    combinations: Counter[tuple[int, ...]] = Counter()
    for prompt, label in gold.items():
        if all(prompt in column for column in columns):
            places = [place.get(column[prompt], other) for column in columns]
            if not (figure.ordinal and other in places):
                combinations[place[label], *places] += 1
    n = combinations.total()
    if not n:
        return Estimate(0, None)
    cells = np.array(list(combinations))  # (combinations, 1 + columns)
    counts = np.array(list(combinations.values()))  # (combinations,)

    def values(drawn: NDArray[np.int64]) -> Table:
        """(draws, combinations) -> (draws,)"""
        first, *rest = (
            figure.of(_table(cells[:, 0], given, drawn, other)) for given in cells[:, 1:].T
        )
        return first - rest[0] if rest else first

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


def _table(
    gold: NDArray[np.int64], given: NDArray[np.int64], drawn: NDArray[np.int64], labels: int
) -> Table:
    """(labels, labels + 1, draws) from how often each combination was drawn."""
    table = np.zeros((labels, labels + 1, len(drawn)))
    np.add.at(table, (gold, given), drawn.T)
    return table
