import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from dpo_dist.evaluation.comparison import Points, summarise
from dpo_dist.evaluation.statistics import (
    Estimate,
    bootstrap_mean,
    mean_of,
    paired_difference,
    wilson,
)
from dpo_dist.metrics import Metric
from dpo_dist.records import Score, Verdict


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 10), (10, 10), (47, 160), (1, 2)])
def test_wilson_agrees_with_statsmodels(successes: int, n: int) -> None:
    low, high = proportion_confint(successes, n, method="wilson")
    estimate = wilson(successes, n)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-12)
    assert estimate.mean == successes / n


def test_too_little_data_has_no_interval() -> None:
    assert mean_of({}, seed=0) == Estimate(0, None)
    assert mean_of({"a": 1.0}, seed=0) == Estimate(1, 1.0, None, None)
    assert bootstrap_mean({"a": [0.3, 0.5]}, seed=0) == Estimate(1, 0.4, None, None)


def test_the_bootstrap_is_repeatable_and_close_to_theory() -> None:
    values = {n: [float(x)] for n, x in enumerate(np.random.default_rng(0).normal(2, 1, 400))}
    first, second = bootstrap_mean(values, seed=5), bootstrap_mean(values, seed=5)
    assert first == second != bootstrap_mean(values, seed=6)
    spread = np.std([v[0] for v in values.values()]) / 20
    assert first.high - first.low == pytest.approx(2 * 1.96 * spread, rel=0.05)


def test_intervals_cover_when_rows_share_prompts() -> None:
    """Resampling rows instead of prompts would cover about 70 % here, not 95 %."""
    random = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        centres = random.normal(0, 1, 60)
        values = {n: list(c + random.normal(0, 0.3, 4)) for n, c in enumerate(centres)}
        estimate = bootstrap_mean(values, seed=trial)
        covered += estimate.low <= 0 <= estimate.high
    assert 0.90 <= covered / 200 <= 0.99


def test_differences_are_paired() -> None:
    a = {f"p{n}": n % 7 + 0.4 + 0.2 * (n % 2) for n in range(100)}
    b = {f"p{n}": float(n % 7) for n in range(120)}
    estimate = paired_difference(a, b, seed=0)
    assert (estimate.n, estimate.mean) == (100, pytest.approx(0.5))
    assert 0.45 < estimate.low < 0.5 < estimate.high < 0.55, "far narrower than a's own spread"


def test_equal_values_claim_no_certainty() -> None:
    assert bootstrap_mean({n: [0.5] for n in range(9)}, seed=0) == Estimate(9, 0.5, None, None)


def test_the_comparison_by_hand() -> None:
    metric = Metric("m", "My metric", lambda prompt, answer: 0.0)
    values = {"base": [0, 0, 0, 0], "sft": [0, 0, 1, 1], "dpo": [0, 1, 1, 1]}
    scores = [
        Score(prompt_id=f"p{n}", arm=arm, decoding=0, metric="m", value=value)
        for arm, column in values.items()
        for n, value in enumerate(column)
    ]
    verdicts = [
        Verdict(prompt_id="p0", outcome="preferred", preferred="dpo", other="sft"),
        Verdict(prompt_id="p1", outcome="preferred", preferred="sft", other="dpo"),
        Verdict(prompt_id="p2", outcome="preferred", preferred="dpo", other="sft"),
        Verdict(prompt_id="p3", outcome="inconsistent"),
        Verdict(prompt_id="p4", outcome="tie"),
        Verdict(prompt_id="p5", outcome="refusal"),
    ]
    decodings = [{"temperature": 0.0, "top_p": 1.0}]
    summary = summarise([metric], scores, verdicts, ["base", "sft", "dpo"], decodings, seed=1)
    (row,) = summary["metrics"]
    assert {arm: cell["mean"] for arm, cell in row["arms"].items()} == {
        "base": 0,
        "sft": 0.5,
        "dpo": 0.75,
    }
    assert (row["delta"]["mean"], row["delta"]["n"]) == (0.25, 4)
    preferred = summary["preferred"]
    assert preferred["mean"] == pytest.approx((1 + 0 + 1 + 0.5 + 0.5) / 5)
    counts = {key: preferred[key] for key in ("n", "wins", "losses", "ties", "inconsistent")}
    assert counts == {"n": 5, "wins": 2, "losses": 1, "ties": 1, "inconsistent": 1}
    assert preferred["missing"] == {"refusal": 1}
    rated = [score.model_copy(update={"value": 1.0}) for score in scores if score.arm != "base"]
    points = summarise([Points("m", "Score")], rated, None, ["sft", "dpo"], decodings * 2, seed=1)
    (row,) = points["metrics"]
    assert row["unit"] == "points" and row["decoding"] == 0
    assert row["arms"]["dpo"] == {"n": 4, "mean": 1.0, "low": None, "high": None}, "not a share"
    alone = summarise([metric], scores[:4], None, ["base"], decodings, seed=1)
    assert alone["preferred"] is None and alone["metrics"][0]["delta"] is None
