"""The evaluation's statistics against statsmodels and scipy, which were written by others."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.genmod import families
from statsmodels.genmod.generalized_linear_model import GLM
from statsmodels.regression.linear_model import OLS
from statsmodels.stats import contingency_tables, multitest, power, proportion
from statsmodels.tools import add_constant

from dpo_dist.evaluation.logistic import fit
from dpo_dist.evaluation.ranking import Game, rank
from dpo_dist.evaluation.significance import (
    detectable_effect,
    holm,
    mcnemar,
    paired_difference,
    sign_test,
)
from dpo_dist.evaluation.statistics import bootstrap_mean, standard_error
from dpo_dist.evaluation.win_rate import length_controlled
from dpo_dist.intervals import half_width, wilson

EXACT = 1e-8


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 10), (10, 10), (47, 160), (1, 2)])
def test_wilson(successes: int, n: int) -> None:
    low, high = proportion.proportion_confint(successes, n, method="wilson")
    estimate = wilson(successes, n)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=EXACT)
    assert estimate.mean == successes / n


def test_the_interval_of_a_standard_error() -> None:
    low, high = stats.norm.interval(0.95, loc=0.3, scale=0.02)
    half = half_width(0.02)
    assert (0.3 - half, 0.3 + half) == pytest.approx((low, high), abs=EXACT)


@pytest.mark.parametrize(("b", "c"), [(0, 5), (7, 7), (9, 2), (40, 61), (1, 0), (300, 240)])
def test_mcnemar_and_the_sign_test(b: int, c: int) -> None:
    table = contingency_tables.mcnemar([[13, b], [c, 29]], exact=True)
    assert mcnemar(b, c) == pytest.approx(table.pvalue, abs=EXACT)
    # The sign test is the binomial's two tails, summed here term by term.
    tail = stats.binom.cdf(min(b, c), b + c, 0.5)
    assert sign_test(b, c) == pytest.approx(min(1.0, 2 * tail), abs=EXACT)


def test_holm() -> None:
    p_values = list(np.random.default_rng(2).random(9) ** 3)
    expected = multitest.multipletests(p_values, method="holm")[1]
    assert holm(p_values) == pytest.approx(list(expected), abs=EXACT)
    assert holm([0.01, None, 0.04]) == [0.02, None, 0.04], "no test is not in the family"
    assert holm([]) == [] and holm([None]) == [None]


def test_the_detectable_effect() -> None:
    solved = power.NormalIndPower().solve_power(nobs1=400, alpha=0.05, power=0.8, ratio=0)
    # statsmodels counts findings in the wrong direction as power, one in a million here.
    assert detectable_effect(1 / 20) == pytest.approx(solved, abs=1e-6)


def test_the_clustered_standard_error() -> None:
    random = np.random.default_rng(3)
    sizes = random.integers(1, 4, 50)
    values = {n: list(random.normal(n % 3, 1, size)) for n, size in enumerate(sizes)}
    y = np.concatenate([values[n] for n in values])
    groups = np.repeat(np.arange(50), sizes)
    model = OLS(y, np.ones(len(y))).fit(
        cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False}
    )
    assert standard_error(values) == pytest.approx(model.bse[0] * np.sqrt(50 / 49), abs=EXACT)
    single = {n: [x] for n, x in enumerate(y)}
    assert standard_error(single) == pytest.approx(stats.sem(y), abs=EXACT)


def test_the_bootstrap_interval_against_scipy() -> None:
    """With many prompts the expanded percentiles are scipy's plain ones, but for the draws."""
    values = np.random.default_rng(4).exponential(1, 2000)
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=9999, rng=np.random.default_rng(0)
    ).confidence_interval
    ours = bootstrap_mean({n: [x] for n, x in enumerate(values)}, seed=0)
    width = theirs.high - theirs.low
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.03 * width)


def test_the_paired_interval_by_hand() -> None:
    """Bonett and Price's formula, worked with the square root alone."""
    a = {n: float(n < 30) for n in range(50)}
    b = {n: float(n < 18 or n >= 48) for n in range(50)}  # 12 only in a, 2 only in b
    found = paired_difference(a, b, seed=0)
    half = 1.959963984540054 * ((13 / 52 + 3 / 52 - (10 / 52) ** 2) / 52) ** 0.5
    assert (found.mean, found.n, found.test) == (0.2, 50, "mcnemar")
    assert (found.low, found.high) == pytest.approx((10 / 52 - half, 10 / 52 + half), abs=EXACT)
    assert found.p == pytest.approx(stats.binomtest(2, 14).pvalue, abs=EXACT)


def test_the_glm_with_fractional_responses_and_clusters() -> None:
    random = np.random.default_rng(5)
    x = np.column_stack([np.ones(300), random.normal(size=(300, 2))])
    y = random.choice([0.0, 0.25, 0.5, 1.0], 300)
    clusters = random.permutation(np.arange(300) // 2)
    theirs = GLM(y, x, family=families.Binomial()).fit(
        cov_type="cluster", cov_kwds={"groups": clusters}, tol=1e-14
    )
    ours = fit(x, y, clusters)
    assert ours.coefficients == pytest.approx(theirs.params, abs=EXACT)
    assert ours.covariance == pytest.approx(theirs.cov_params(), abs=EXACT)
    assert ours.freedom == 147


def test_the_length_controlled_rate() -> None:
    random = np.random.default_rng(6)
    lengths, worth = random.normal(100, 400, 200), random.choice([0, 0.5, 1.0], 200)
    x = add_constant(np.tanh(lengths / np.std(lengths, ddof=1)))
    theirs = GLM(worth, x, family=families.Binomial()).fit(
        cov_type="cluster", cov_kwds={"groups": np.arange(200)}, tol=1e-14
    )
    found = length_controlled(dict(enumerate(worth)), dict(enumerate(lengths)))
    half = stats.t.ppf(0.975, 198) * theirs.bse[0]
    expected = 1 / (1 + np.exp(-np.array([0, -half, half]) - theirs.params[0]))
    assert (found.mean, found.low, found.high) == pytest.approx(tuple(expected), abs=EXACT)
    assert found.slope == pytest.approx(theirs.params[1], abs=EXACT)


def test_bradley_terry() -> None:
    random = np.random.default_rng(7)
    arms = ["base", "sft", "dpo"]
    games = [
        Game(f"p{n}", a, b, float(random.choice([0, 0.5, 1], p=odds)))
        for n in range(80)
        for a, b, odds in (
            ("sft", "base", (0.2, 0.2, 0.6)),
            ("dpo", "sft", (0.3, 0.2, 0.5)),
            ("dpo", "base", (0.1, 0.2, 0.7)),
        )
    ]
    # The prior, one prompt on which all pairs are tied, is three rows more for statsmodels.
    rows = games + [Game("tied", a, b, 0.5) for a, b in (arms[1::-1], arms[:0:-1], arms[::-2])]
    x = np.array([[(arm == g.a) - (arm == g.b) for arm in arms[1:]] for g in rows], dtype=float)
    groups = np.unique([g.prompt_id for g in rows], return_inverse=True)[1]
    theirs = GLM([g.worth for g in rows], x, family=families.Binomial()).fit(
        cov_type="cluster", cov_kwds={"groups": groups}, tol=1e-14
    )
    centred = np.array([0, *theirs.params]) - np.sum(theirs.params) / 3
    found = {s.arm: s for s in rank(games, arms).strengths}
    assert [found[arm].strength for arm in arms] == pytest.approx(list(centred), abs=EXACT)
    contrast = np.array([-1 / 3, 2 / 3])
    error = np.sqrt(contrast @ theirs.cov_params() @ contrast)
    half = found["dpo"].high - found["dpo"].strength
    assert half == pytest.approx(stats.t.ppf(0.975, 79) * error, abs=EXACT)
