"""What the report says about DPO, for every branch of every rule, on constructed figures."""

from __future__ import annotations

from typing import Any

import pytest

from dpo_dist.reporting.reflection import metric_kind, reflect
from dpo_dist.reporting.report import RunFigures, Sentence, look_up
from dpo_dist.storage.figures import parse_figures, to_json
from tests.report_figures import SCORES, estimate, kl, lengths, metric_row, training, win_rate

SAME = (-0.1, 0.1)
BETTER, WORSE = (0.1, 0.3), (-0.3, -0.1)
UP, DOWN = "better in 1 of 1 metric.", "worse in 1 of 1 metric."
STILL = "no change shown in 1 metric."


def row(metric: str, interval: tuple[float, float] | None, **changes: Any) -> dict[str, Any]:
    delta = estimate(50, None)
    if interval is not None:
        delta = estimate(50, sum(interval) / 2, *interval)
    return metric_row(**{"metric": metric, "label": metric, "delta": delta, **changes})


def figures(**changes: Any) -> dict[str, Any]:
    """The figures of a run of which everything was measured and nothing is remarkable."""
    preferred = win_rate(
        estimate(100, 0.6, 0.52, 0.7),
        losses=30,
        detectable=0.12,
        length_controlled=estimate(100, 0.58, 0.5, 0.66),
    )
    report: dict[str, Any] = {
        **{"run": "test", "summary": [], "outcome": outcome("improved")},
        "comparison": {
            **SCORES,
            "metrics": [row("json_schema", BETTER), row("label_match:x", BETTER)],
            "preferred": preferred,
            "length": lengths(200.0, estimate(100, 4.0, -3.0, 11.0)),
        },
        "cut_off": {"sft": estimate(100, 0.02), "dpo": estimate(100, 0.03)},
        "training": training(margin={"first": 0.0, "last": 0.8}, kl=kl(0.15, se=0.02, cut_off=0.1)),
        "regressions": {
            "fell": [{"label": "Form", "prompts": 7}],
            "worst": [{"id": name, "lost": True, "fell": {}} for name in ("a", "b", "c", "d")],
        },
        **{"funnel": [], "audit": [], "canaries": [], "alarms": [], "rounds": []},
        **{"phases": {}, "judges": {}, "spend": {}, "judge_scores": []},
        **{"versions": {}, "git": None, "fingerprints": {}, "config": {}},
    }
    for name, value in changes.items():
        *path, last = name.split("__")
        inner = report
        for part in path:
            inner = inner[part]
        inner[last] = value
    return report


def said(report: dict[str, Any]) -> list[Sentence]:
    """All sentences; every figure that they name is in the report."""
    figures = parse_figures(report, RunFigures, "test")
    sentences = reflect(figures)
    for sentence in sentences:
        for name in sentence.figures:
            look_up(to_json(figures), name)  # raises where the report has no such figure
    return sentences


def about(topic: str, report: dict[str, Any]) -> list[Sentence]:
    return [sentence for sentence in said(report) if sentence.topic == topic]


def outcome(name: str) -> dict[str, Any]:
    return {"outcome": name, "reasons": [], "guarded": []}


def test_a_sentence_without_a_figure_cannot_be_made() -> None:
    with pytest.raises(AssertionError, match="figure"):
        Sentence("Topic", "DPO is good.", ())


def test_the_topics_stand_in_order_and_every_figure_exists() -> None:
    topics = [sentence.topic for sentence in said(figures())]
    assert list(dict.fromkeys(topics)) == [
        *("Form and facts", "Length", "Reward gap", "KL", "Regressions", "Beta"),
        "What to try next",
    ]
    with pytest.raises(KeyError):
        look_up(figures(), "training.nothing")


@pytest.mark.parametrize(
    ("metric", "kind"),
    [
        ("json_schema", "form"),
        ("regex:full:a.b", "form"),
        ("length:tokens", "form"),
        ("distinct_n:2", "form"),
        ("label_match:severity/macro_f1", "facts"),
        ("faithful_quotes:evidence", "facts"),
        ("rouge_l:summary", "facts"),
        ("function:mine:score", "other"),
        ("judge_score-0", "other"),
        ("benchmark:arc_easy acc", "other"),
    ],
)
def test_a_metric_is_of_form_or_of_facts_by_its_type(metric: str, kind: str) -> None:
    assert metric_kind(metric) == kind


@pytest.mark.parametrize(
    ("form", "facts", "text", "warning"),
    [
        (BETTER, BETTER, f"Form: {UP} Facts: {UP}", False),
        (BETTER, SAME, f"Form: {UP} Facts: {STILL} No gain in facts is shown.", False),
        (SAME, BETTER, f"Form: {STILL} Facts: {UP}", False),
        (SAME, SAME, f"Form: {STILL} Facts: {STILL}", False),
        (BETTER, WORSE, f"Form: {UP} Facts: {DOWN} Answers look better than they are.", True),
        (SAME, WORSE, f"Form: {STILL} Facts: {DOWN}", True),
        (WORSE, BETTER, f"Form: {DOWN} Facts: {UP}", True),
        (WORSE, SAME, f"Form: {DOWN} Facts: {STILL}", True),
    ],
)
def test_form_is_told_from_facts(
    form: tuple[float, float], facts: tuple[float, float], text: str, warning: bool
) -> None:
    rows = [row("json_schema", form), row("label_match:x", facts)]
    *lists, last = about("Form and facts", figures(comparison__metrics=rows))
    assert last.text == text and last.warning is warning
    assert last.figures == ("comparison.metrics.0.delta", "comparison.metrics.1.delta")
    assert [s.text.split(":")[0] for s in lists] == [
        "Form and style",
        "Facts, against a reference or the prompt",
    ]


def test_what_a_change_means_depends_on_the_metric_s_direction() -> None:
    falls = row("repetition:4", WORSE, better="lower")
    only_longer = row("length:tokens", BETTER, better=None, unit="tokens")
    rows = [falls, only_longer, row("exact_match:x", SAME)]
    found = about("Form and facts", figures(comparison__metrics=rows))
    assert found[0].text == "Form and style: repetition:4 -20.0 points; length:tokens +0.20."
    assert found[1].text.endswith("exact_match:x +0.0 points (no difference is shown).")
    assert found[2].text == f"Form: {UP} Facts: {STILL} No gain in facts is shown."


def test_gains_and_losses_of_one_kind_are_both_counted() -> None:
    forms = [row("json_schema", BETTER), row("stop_rate", WORSE), row("distinct_n:2", SAME)]
    rows = [*forms, row("label_match:x", BETTER), row("faithful_quotes:x", SAME)]
    *_, last = about("Form and facts", figures(comparison__metrics=rows))
    assert last.text == (
        "Form: better in 1 of 3 metrics, worse in 1. Facts: better in 1 of 2 metrics."
    )
    assert last.warning


def test_without_one_of_the_two_kinds_nothing_is_concluded() -> None:
    rows = [row("json_schema", BETTER), row("label_match:x", None), row("function:f", BETTER)]
    rows.append(row("exact_match:x", WORSE, decoding=1))
    found = about("Form and facts", figures(comparison__metrics=rows))
    assert [sentence.text for sentence in found] == [
        "Form and style: json_schema +20.0 points.",
        "Unclassified (own functions, judge scores, benchmarks): function:f +20.0 points.",
    ]


@pytest.mark.parametrize(
    ("mean", "low", "high", "text"),
    [
        (4.0, -3.0, 11.0, "show no difference in length from SFT's: +4 characters"),
        (50.0, 30.0, 70.0, "are longer than SFT's (+25 %): +50 characters [+30, +70]."),
        (-50.0, -70.0, -30.0, "are shorter than SFT's (-25 %): -50 characters [-70, -30]."),
        (0.0, None, None, "show no difference in length from SFT's: +0 characters."),
    ],
)
def test_the_change_in_length(mean: float, low: float | None, high: float, text: str) -> None:
    longer = estimate(100, mean, low, high)
    assert text in about("Length", figures(comparison__length__delta=longer))[0].text


@pytest.mark.parametrize(
    ("raw", "controlled", "warning", "text"),
    [
        ((0.60, 0.52), (0.57, 0.51), False, "60.0 %, and 57.0 % at equal lengths: length makes"),
        ((0.58, 0.51), (0.49, 0.41), True, "no gain is shown at equal lengths."),
        ((0.58, 0.51), (0.55, 0.48), True, "no gain is shown at equal lengths."),
        ((0.75, 0.65), (0.62, 0.55), True, "13 points of it are due to length."),
        ((0.55, 0.48), (0.40, 0.30), True, "15 points of it are due to length."),
        ((0.60, 0.52), (0.75, 0.66), False, "length lowers SFT+DPO's win rate."),
        ((0.50, 0.40), (0.49, 0.39), False, "length makes little difference."),
    ],
)
def test_a_win_rate_that_goes_with_length_is_flagged(
    raw: tuple[float, float], controlled: tuple[float, float], warning: bool, text: str
) -> None:
    report = figures()
    rate = report["comparison"]["preferred"]
    rate |= {"mean": raw[0], "low": raw[1]}
    rate["length_controlled"] |= {"mean": controlled[0], "low": controlled[1]}
    sentence = about("Length", report)[1]
    assert text in sentence.text and sentence.warning is warning


@pytest.mark.parametrize("rate", [None, estimate(2, None)])
def test_without_a_rate_at_equal_lengths_only_the_length_is_said(rate: dict | None) -> None:
    assert len(about("Length", figures(comparison__preferred__length_controlled=rate))) == 1


@pytest.mark.parametrize(
    ("last", "name", "text", "warning"),
    [
        (0.8, "improved", "grew from 0 to 0.8, and the evaluation agrees", False),
        (0.8, "no_evidence", "shows no gain: a larger gap is necessary, but not sufficient", True),
        (0.8, "regressed", "got worse: a larger gap is necessary, but not sufficient", True),
        (-0.1, "improved", "improved without a growing reward gap", True),
        (-0.1, "no_evidence", "did not grow (from 0 to -0.1)", False),
    ],
)
def test_the_gap_beside_the_gain(last: float, name: str, text: str, warning: bool) -> None:
    report = figures(training__margin={"first": 0.0, "last": last}, outcome=outcome(name))
    (sentence,) = about("Reward gap", report)
    assert text in sentence.text and sentence.warning is warning


def test_without_margins_the_gap_is_compared_with_nothing() -> None:
    assert about("Reward gap", figures(training__margin=None)) == []


@pytest.mark.parametrize(
    ("budget", "text", "warning"),
    [
        (None, "0.150 ± 0.039 (95 % interval) nats per token; no budget was set", False),
        (0.2, "within the budget of 0.2", False),
        (0.1, "above the budget of 0.1", True),
    ],
)
def test_the_kl_that_was_spent(budget: float | None, text: str, warning: bool) -> None:
    (sentence,) = about("KL", figures(training__kl_budget=budget))
    assert text in sentence.text and sentence.warning is warning
    assert ("training.kl_budget" in sentence.figures) is (budget is not None)


def test_a_kl_that_was_not_measured_is_not_spoken_of() -> None:
    assert about("KL", figures(training__kl=None)) == []


def test_the_regressions() -> None:
    (sentence,) = about("Regressions", figures())
    assert sentence.text == (
        "SFT was preferred on 30 of 100 prompts; Form got worse on 7. Worst prompts: a, b, c."
    )
    nowhere = figures(comparison__preferred=None, regressions={"fell": [], "worst": []})
    assert about("Regressions", nowhere) == []


LITTLE = kl(0.004, se=0.002)


def alarms(kind: str) -> list[dict[str, Any]]:
    return [{"step": 20, "kind": kind, "message": "m"}]


@pytest.mark.parametrize(
    ("changes", "verdict", "advice"),
    [
        ({"training__kl_budget": 0.1}, "too low", "Beta 0.2, or half the learning rate"),
        (
            {"cut_off__dpo__mean": 0.09},
            "cut-off answers is 7 points higher than SFT's",
            "Beta 0.2",
        ),
        (
            {"alarms": alarms("displacement"), "outcome": outcome("no_evidence")},
            "(displacement)",
            "Beta 0.2",
        ),
        ({"alarms": alarms("displacement")}, "No measured signal", "another seed"),
        (
            {"training__kl": LITTLE, "outcome": outcome("no_evidence")},
            "too high, or the training too short: the KL is only 0.0040",
            "Beta 0.05, or twice",
        ),
        ({"training__kl": LITTLE}, "No measured signal", "another seed"),
        (
            {
                "training__kl": None,
                "training__margin": {"first": 0.0, "last": 0.05},
                "outcome": outcome("no_evidence"),
            },
            "0.50 nats of log-ratio",
            "Beta 0.05",
        ),
        (
            {"training__kl": None, "training__margin": None},
            "is unknown",
            "another seed",
        ),
        ({"alarms": alarms("gap")}, "No measured signal", "More pairs, or fewer epochs"),
        ({"alarms": alarms("saturation")}, "No measured signal", "Harder pairs"),
        (
            {"outcome": outcome("no_evidence")},
            "No measured signal",
            "with 100, a win rate within 12 points of 50 %",
        ),
        ({"outcome": outcome("regressed")}, "No measured signal", "Read the worst regressions"),
    ],
)
def test_beta_and_what_to_try_next(changes: dict, verdict: str, advice: str) -> None:
    report = figures(**changes)
    (beta,) = about("Beta", report)
    assert verdict in beta.text and "training.beta" in beta.figures
    assert beta.warning is ("No measured signal" not in verdict and "unknown" not in verdict)
    (following,) = about("What to try next", report)
    assert advice in following.text


def test_a_standard_error_can_keep_beta_from_looking_too_high() -> None:
    report = figures(training__kl=kl(0.004, se=0.004), outcome=outcome("no_evidence"))
    (beta,) = about("Beta", report)
    assert beta.text == (
        "No measured signal suggests that beta 0.1 is wrong: the KL is 0.004 nats per token; 3 % "
        "of the answers are cut off (SFT: 2 %)."
    )
    assert {"training.kl.per_token", "cut_off.dpo.mean"} <= set(beta.figures)


def test_a_displacement_that_did_no_harm_is_told_all_the_same() -> None:
    (beta,) = about("Beta", figures(alarms=alarms("displacement")))
    assert "less likely, too (displacement), but the evaluation improved" in beta.text
    assert "alarms.0.kind" in beta.figures and not beta.warning


def test_without_a_training_nothing_is_said_of_it() -> None:
    report = figures(training=None)
    topics = {sentence.topic for sentence in said(report)}
    assert topics == {"Form and facts", "Length", "Regressions"}
