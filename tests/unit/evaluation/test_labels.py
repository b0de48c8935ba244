"""Macro-F1 and the weighted kappa against figures written out from their definitions."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from scipy.stats import bootstrap

from dpo_dist.evaluation.labels import (
    KAPPA,
    MACRO_F1,
    MOST_LABELS,
    bootstrap_labels,
    label_rows,
)
from dpo_dist.evaluation.scores import MetricRow
from dpo_dist.evaluation.scoring import Labelled
from dpo_dist.intervals import Estimate

ORDER = ("low", "medium", "high", "critical")
Pairs = list[tuple[str, str | None]]  # gold and given


def draw(n: int, seed: int) -> Pairs:
    """Labels of which some are right, some a place off, and some none of the list."""
    random_ = random.Random(seed)
    pairs: Pairs = []
    for _ in range(n):
        gold = random_.choices(ORDER, weights=(5, 3, 2, 1))[0]
        off = ORDER[max(0, ORDER.index(gold) - 1)]
        pairs.append((gold, random_.choice([gold, gold, off, random_.choice(ORDER), None, "x"])))
    return pairs


def f1_by_hand(pairs: Pairs) -> float:
    scores = []
    for label in {gold for gold, _ in pairs}:
        right = sum(gold == given == label for gold, given in pairs)
        precision = right / max(1, sum(given == label for _, given in pairs))
        recall = right / sum(gold == label for gold, _ in pairs)
        scores.append(2 * precision * recall / (precision + recall) if right else 0.0)
    return sum(scores) / len(scores)


def kappa_by_hand(pairs: Pairs) -> float:
    """From all pairs of rows: chance is to meet another row's given label."""
    places = [(ORDER.index(a), ORDER.index(b)) for a, b in pairs if b in ORDER]
    observed = np.mean([(a - b) ** 2 for a, b in places])
    expected = np.mean([(a - b) ** 2 for a, _ in places for _, b in places])
    return float(1 - observed / expected)


def columns(pairs: Pairs) -> tuple[dict[str, str], dict[str, str | None]]:
    named = {f"p{n}": pair for n, pair in enumerate(pairs)}
    return {p: gold for p, (gold, _) in named.items()}, {
        p: given for p, (_, given) in named.items()
    }


@pytest.mark.parametrize("seed", range(5))
def test_the_figures_are_those_of_their_definitions(seed: int) -> None:
    pairs = draw(60, seed)
    gold, given = columns(pairs)
    f1 = bootstrap_labels(MACRO_F1, ORDER, gold, [given], seed=0)
    assert (f1.n, f1.mean) == (60, pytest.approx(f1_by_hand(pairs), abs=1e-12))
    kappa = bootstrap_labels(KAPPA, ORDER, gold, [given], seed=0)
    assert kappa.n == sum(label in ORDER for _, label in pairs)
    assert kappa.mean == pytest.approx(kappa_by_hand(pairs), abs=1e-12)


def test_known_values() -> None:
    """By hand: F1 of 2/3 and 4/5; squared distances 1 of 4 observed, (2*1 + 2*2 + ...) expected."""
    gold, given = columns([("a", "a"), ("a", "b"), ("b", "b"), ("b", "b")])
    assert bootstrap_labels(MACRO_F1, "ab", gold, [given], 0).mean == pytest.approx(11 / 15)
    # p_o = 3/4, p_e = (1/2)(1/4) + (1/2)(3/4) = 1/2; two labels have but one distance.
    assert bootstrap_labels(KAPPA, "ab", gold, [given], 0).mean == pytest.approx(0.5)


@pytest.mark.parametrize(("figure", "by_hand"), [(MACRO_F1, f1_by_hand), (KAPPA, kappa_by_hand)])
def test_the_interval_is_that_of_drawing_prompts(figure, by_hand) -> None:
    """scipy's BCa bootstrap of the rows, with the figure of each draw from its definition."""
    pairs = draw(80, seed=7)
    gold, given = columns(pairs)
    if figure is KAPPA:
        pairs = [pair for pair in pairs if pair[1] in ORDER]
    estimate = bootstrap_labels(figure, ORDER, gold, [given], seed=3)
    oracle = bootstrap(
        (range(len(pairs)),),
        lambda rows: by_hand([pairs[row] for row in rows]),
        n_resamples=6000,
        vectorized=False,
        method="BCa",
        rng=1,
    ).confidence_interval
    assert (estimate.low, estimate.high) == pytest.approx(tuple(oracle), abs=0.02)
    assert estimate == bootstrap_labels(figure, ORDER, gold, [given], seed=3)


def test_a_difference_is_paired() -> None:
    """The second column differs from the first in a few labels: the interval of the difference is
    far narrower than either's."""
    pairs = draw(200, seed=2)
    gold, given = columns(pairs)
    better = {p: gold[p] if n % 20 == 0 else label for n, (p, label) in enumerate(given.items())}
    for figure, by_hand in ((MACRO_F1, f1_by_hand), (KAPPA, kappa_by_hand)):
        both = [p for p in gold if figure is MACRO_F1 or {better[p], given[p]} <= set(ORDER)]
        difference = bootstrap_labels(figure, ORDER, gold, [better, given], seed=0)
        expected = by_hand([(gold[p], better[p]) for p in both]) - by_hand(
            [(gold[p], given[p]) for p in both]
        )
        assert (difference.n, difference.mean) == (len(both), pytest.approx(expected, abs=1e-12))
        alone = bootstrap_labels(figure, ORDER, gold, [given], seed=0)
        assert difference.high - difference.low < (alone.high - alone.low) / 2
        assert difference.low <= expected <= difference.high


def test_no_figure_and_no_interval_where_the_labels_give_none() -> None:
    gold, right = columns([("low", "low"), ("high", "high"), ("low", "low")])
    assert bootstrap_labels(MACRO_F1, ORDER, gold, [right], 0) == Estimate(3, 1.0)
    same, given = columns([("low", "low")] * 4)
    assert bootstrap_labels(KAPPA, ORDER, same, [given], 0) == Estimate(4, None), "no chance"
    assert bootstrap_labels(KAPPA, ORDER, gold, [dict.fromkeys(gold)], 0) == Estimate(0, None)
    assert bootstrap_labels(MACRO_F1, ORDER, gold, [{}], 0) == Estimate(0, None)


def test_the_rows_stand_below_the_accuracy() -> None:
    pairs = draw(30, seed=4)
    gold, given = columns(pairs)
    accuracy = MetricRow(
        metric="label_match:severity",
        label="Severity match",
        unit="share",
        better="higher",
        judged=False,
        decoding=1,
        arms=dict.fromkeys(("base", "sft", "dpo"), Estimate(30, 0.5)),
        delta=Estimate(30, 0.1),
        missing={"sft": {"no_reference": 2}},
    )
    labelled = Labelled(gold, {(1, "sft"): given, (1, "dpo"): gold})
    f1, kappa = label_rows(accuracy, labelled, ORDER, seed=0)
    assert (f1.metric, f1.label, f1.unit, f1.better, f1.decoding) == (
        "label_match:severity/macro_f1",
        "Severity match, macro-F1",
        "share",
        "higher",
        1,
    )
    assert not f1.judged and f1.differences is kappa.differences is None, "there is no test"
    assert f1.arms["base"] == Estimate(0, None, None, None)
    assert f1.arms["dpo"].mean == 1.0 and f1.missing == {"sft": {"no_reference": 2}}
    assert f1.delta.mean == pytest.approx(1 - f1_by_hand(pairs))
    nowhere = Counter(given in ORDER for _, given in pairs)[False]
    assert kappa.unit == "kappa" and kappa.delta.n == 30 - nowhere > 0
    assert kappa.missing == {"sft": {"no_reference": 2, "no_label": nowhere}}
    assert len(label_rows(accuracy, labelled, (), seed=0)) == 1, "no order, no kappa"
    texts = {f"p{n}": f"text {n}" for n in range(MOST_LABELS + 1)}
    assert label_rows(accuracy, Labelled(texts, {(1, "sft"): texts}), (), seed=0) == []
    lonely = accuracy.model_copy(update={"arms": {"sft": Estimate(30, 0.5)}, "delta": None})
    assert label_rows(lonely, labelled, (), seed=0)[0].delta is None
