import json
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from dpo_dist.config import Sampling
from dpo_dist.evaluation.comparison import Points, summarise
from dpo_dist.evaluation.scores import HEADLINE, SCORES, ArmDifference, read_scores
from dpo_dist.intervals import Estimate
from dpo_dist.metrics import Metric
from dpo_dist.storage.figures import to_json, write_figures
from dpo_dist.storage.records import Score, Verdict

ARMS = ["base", "sft", "dpo"]
GREEDY = [Sampling(temperature=0.0)]
METRIC = Metric("m", "My metric", lambda prompt, text: 0.0)


def table(values: dict[str, list[float]], metric: str = "m", decoding: int = 0) -> list[Score]:
    return [
        Score(prompt_id=f"p{n}", arm=arm, decoding=decoding, metric=metric, value=value)
        for arm, column in values.items()
        for n, value in enumerate(column)
    ]


def verdict(n: int, preferred: str | None, other: str = "sft") -> Verdict:
    if preferred is None:
        return undecided(n, "tie")
    between = (preferred, other)
    return Verdict(
        prompt_id=f"p{n}", between=between, outcome="preferred", preferred=preferred, other=other
    )


def undecided(n: int, outcome: str) -> Verdict:
    return Verdict.model_validate({"prompt_id": f"p{n}", "between": HEADLINE, "outcome": outcome})


VALUES = table({"base": [0, 0, 0, 0], "sft": [0, 0, 1, 1], "dpo": [0, 1, 1, 1]})


def test_the_comparison_by_hand(tmp_path: Path) -> None:
    verdicts = [
        verdict(0, "dpo"),
        verdict(1, "sft", "dpo"),
        verdict(2, "dpo"),
        undecided(3, "inconsistent"),
        verdict(4, None),
        undecided(5, "refusal"),
    ]
    summary = summarise([METRIC], VALUES, {("dpo", "sft"): verdicts}, ARMS, GREEDY, seed=1)
    (row,) = summary.metrics
    assert {arm: cell.mean for arm, cell in row.arms.items()} == {
        "base": 0,
        "sft": 0.5,
        "dpo": 0.75,
    }
    assert (row.delta.mean, row.delta.n, row.delta.test) == (0.25, 4, "mcnemar")
    assert row.delta.p == 1.0, "one prompt alone disagrees"
    preferred = summary.preferred
    assert preferred.mean == pytest.approx((1 + 0 + 1 + 0.5 + 0.5) / 5)
    counts = (preferred.n, preferred.wins, preferred.losses, preferred.ties, preferred.inconsistent)
    assert counts == (5, 2, 1, 1, 1)
    assert preferred.missing == {"refusal": 1} and preferred.length_controlled is None
    assert summary.outcome.outcome == "no_evidence"
    json.dumps(to_json(summary), allow_nan=False)
    write_figures(tmp_path / SCORES, summary)
    assert read_scores(tmp_path) == summary


def test_scores_of_a_judge_are_points() -> None:
    rated = [s.model_copy(update={"value": 1.0}) for s in VALUES if s.arm != "base"]
    points = summarise([Points("m", "Score")], rated, None, ["sft", "dpo"], GREEDY * 2, seed=1)
    (row,) = points.metrics
    assert row.unit == "points" and row.decoding == 0 and row.judged
    assert row.arms["dpo"] == Estimate(4, 1.0, None, None), "not a share"
    assert row.delta.test == "sign" and row.delta.p == 1.0


def test_one_arm_has_nothing_to_be_compared_with() -> None:
    alone = summarise([METRIC], VALUES[:4], None, ["base"], GREEDY, seed=1)
    assert alone.preferred is None and alone.metrics[0].delta is None
    assert alone.pairwise == () and alone.ranking is None
    assert alone.outcome.outcome == "no_evidence"


def test_an_arm_without_scores_is_named() -> None:
    summary = summarise([METRIC], VALUES[:8], None, ARMS, GREEDY, seed=1)
    (row,) = summary.metrics
    assert row.arms["dpo"] == Estimate(0, None, None, None)
    assert row.delta.n == 0 and row.delta.mean is row.delta.p_holm is None
    assert "My metric could not be compared" in summary.outcome.reasons


@pytest.mark.parametrize("arms", [["sft", "dpo"], ["dpo", "sft"]])
def test_the_difference_is_dpo_over_sft_in_any_order(arms: list[str]) -> None:
    (row,) = summarise([METRIC], VALUES, None, arms, GREEDY, seed=1).metrics
    assert row.delta.mean == 0.25


def test_holm_counts_all_pairs_at_all_decodings_of_one_metric() -> None:
    random = np.random.default_rng(0)
    other = Metric("o", "Other", METRIC.score)
    values = {arm: list(random.random(40) + 0.2 * i) for i, arm in enumerate(ARMS)}
    scores = table(values) + table(values, decoding=1) + table({"sft": [1.0], "dpo": [0.0]}, "o")
    rows = summarise([METRIC, other], scores, None, ARMS, GREEDY * 2, seed=1).metrics

    def differences(metric: str) -> list[ArmDifference]:
        return [d for row in rows if row.metric == metric for d in row.differences]

    ours = differences("m")
    assert [(d.a, d.b) for d in ours[:3]] == [("sft", "base"), ("dpo", "base"), ("dpo", "sft")]
    assert len(ours) == 6 and {d.test for d in ours} == {"bootstrap"}
    smallest = min(ours, key=lambda d: d.p)
    assert smallest.p_holm == pytest.approx(6 * smallest.p)
    assert rows[0].delta.p_holm == ours[2].p_holm >= ours[2].p
    assert len(differences("o")) == 6 and {d.p_holm for d in differences("o")} == {None}


def test_every_pair_of_arms_may_have_verdicts() -> None:
    pairs = {
        ("dpo", "sft"): [verdict(n, "dpo" if n % 3 else "sft") for n in range(30)],
        ("sft", "base"): [verdict(n, "sft" if n % 4 else "base") for n in range(30)],
        ("dpo", "base"): [verdict(n, "dpo" if n % 5 else None) for n in range(30)],
    }
    lengths = {arm: {f"p{n}": 40 + n * i for n in range(30)} for i, arm in enumerate(ARMS)}
    summary = summarise([METRIC], VALUES, pairs, ARMS, GREEDY, seed=1, lengths=lengths)
    assert [(p.a, p.b) for p in summary.pairwise] == list(pairs)
    assert summary.preferred == summary.pairwise[0]
    assert summary.preferred.length_controlled.n == 30
    ranking = summary.ranking
    assert [s.arm for s in ranking.strengths] == ["dpo", "sft", "base"]
    assert not ranking.circular and ranking.n == 30
    length = summary.length
    t_test = stats.ttest_rel(*(list(lengths[arm].values()) for arm in HEADLINE))
    assert length.unit == "characters" and length.arms["sft"].mean == 40 + 14.5
    assert (length.delta.n, length.delta.mean) == (30, 14.5)
    interval = tuple(t_test.confidence_interval())
    assert (length.delta.low, length.delta.high) == pytest.approx(interval, abs=0.3)
    only = summarise(
        [METRIC], VALUES, {("dpo", "base"): pairs["dpo", "base"]}, ARMS, GREEDY, seed=1
    )
    assert only.preferred is None and len(only.pairwise) == 1


def test_all_refusals_are_an_outcome() -> None:
    refused = [undecided(n, "refusal") for n in range(4)]
    summary = summarise([METRIC], VALUES, {("dpo", "sft"): refused}, ARMS, GREEDY, seed=1)
    assert summary.preferred.note == "no_verdict" and summary.preferred.mean is None
    assert summary.ranking.note == "not_connected"
    assert summary.outcome.reasons[0].endswith("has no interval (no verdict)")


@pytest.mark.slow
def test_ten_thousand_prompts_and_three_arms_take_seconds() -> None:
    random = np.random.default_rng(0)
    scores = table({arm: list(random.random(10_000)) for arm in ARMS})
    scores += table({arm: list(random.integers(0, 2, 10_000)) for arm in ARMS}, "share")
    choices = [("dpo", "sft"), ("sft", "dpo"), (None, "")]
    verdicts = [verdict(n, *choices[k]) for n, k in enumerate(random.integers(0, 3, 10_000))]
    metrics = [METRIC, Metric("share", "Share", METRIC.score)]
    started = time.monotonic()
    summary = summarise(
        metrics,
        scores,
        {("dpo", "sft"): verdicts},
        ARMS,
        GREEDY,
        seed=1,
        lengths={
            arm: {f"p{n}": int(k) for n, k in enumerate(random.integers(1, 999, 10_000))}
            for arm in ARMS
        },
    )
    assert time.monotonic() - started < 60, "8 s on a quiet machine"
    assert summary.preferred.length_controlled.mean == pytest.approx(0.5, abs=0.02)
