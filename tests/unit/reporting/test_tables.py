"""The tables: every figure with its interval, toned only where it says something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dpo_dist.config import Sampling
from dpo_dist.evaluation.scores import Scores, read_scores
from dpo_dist.reporting.build import summary
from dpo_dist.reporting.tables import (
    Cell,
    comparison_table,
    decoding_name,
    pairwise_table,
    score_badge,
    to_markdown,
    to_text,
)
from tests.report_figures import estimate, metric_row, row, scores, win_rate


def with_row(**changes: Any) -> Scores:
    """The scores with another first row."""
    return scores(metrics=[metric_row(**changes), metric_row(decoding=1)])


def with_controlled(rate: dict[str, Any]) -> Scores:
    preferred = win_rate(estimate(20, 0.55, 0.4, 0.7), length_controlled=rate)
    return scores(preferred=preferred)


def test_the_table_names_the_preference_and_its_distance_from_half() -> None:
    table = comparison_table(scores())
    label, cells = table.rows[-1]
    assert label == "Preferred (judge, pairwise vs SFT)"
    assert [str(cell) for cell in cells] == [
        "–",
        "–",
        "55.0 % [40–70] n=20",
        "+5.0 pp [-10, +20] n=20 p=0.79",
    ]
    assert cells[-1].tone == "" and table.rows[0][1][-1].tone == "better"
    assert len(comparison_table(scores(), 1).rows) == 1
    lines = to_text(table).splitlines()
    assert lines[0].startswith("Metric") and "Δ DPO over SFT" in lines[0]
    assert to_markdown(table).count("\n") == 4


def test_what_was_not_scored_stands_behind_n() -> None:
    found = with_row(
        arms={**metric_row()["arms"], "base": estimate(0, None)},
        missing={"base": {"no_reference": 20}, "dpo": {"failed": 2, "too_short": 1}},
    )
    base, sft, dpo, _ = comparison_table(found).rows[0][1]
    assert (base.value, base.detail) == ("n/a", "n=0 (20 no reference)")
    assert sft.detail == "[11–47] n=20" and dpo.detail == "[30–70] n=20 (2 failed, 1 too short)"


@pytest.mark.parametrize(
    ("changes", "value", "text", "tone"),
    [
        ({"unit": "share"}, 1.0, "✓ M", "better"),
        ({"unit": "share", "better": "higher"}, 0.0, "✗ M", "worse"),
        ({"unit": "share", "better": "lower"}, 1.0, "✓ M", "worse"),
        ({"unit": "share", "better": "lower"}, 0.0, "✗ M", "better"),
        ({"unit": "share", "better": None}, 1.0, "✓ M", ""),
        ({"unit": "share"}, 0.5, "0.50 M", ""),
        ({"unit": "points"}, 4.0, "4 M", ""),
        ({"unit": "tokens", "better": None}, 83.0, "83 tokens M", ""),
    ],
)
def test_an_answer_s_badge(changes: dict[str, Any], value: float, text: str, tone: str) -> None:
    badge = score_badge(row(label="M", **changes), value)
    assert (str(badge), badge.tone) == (text, tone)


def test_no_interval_is_said_not_invented() -> None:
    arms = {**metric_row()["arms"], "dpo": estimate(1, 1.0)}
    lonely = with_row(arms=arms, delta=estimate(0, None))
    cells = comparison_table(lonely).rows[0][1]
    assert str(cells[2]) == "100.0 % [n/a] n=1" and str(cells[3]) == "–"


@pytest.mark.parametrize(
    ("decoding", "name"),
    [
        ({"temperature": 0.0, "top_p": 0.5, "top_k": 3}, "greedy"),
        ({"temperature": 0.7, "top_p": 1.0}, "temperature 0.7"),
        ({"temperature": 0.7, "top_p": 0.9}, "temperature 0.7, top-p 0.9"),
        (
            {"temperature": 1.2, "top_p": 0.9, "top_k": 40, "min_p": 0.05},
            "temperature 1.2, top-p 0.9, top-k 40, min-p 0.05",
        ),
        ({"temperature": 1.2, "top_p": 1.0, "min_p": 0.05}, "temperature 1.2, min-p 0.05"),
    ],
)
def test_a_decoding_is_named_by_what_is_on(decoding: dict[str, float], name: str) -> None:
    assert decoding_name(Sampling.model_validate(decoding)) == name


def test_the_outcome_and_the_rate_at_equal_lengths_are_shown() -> None:
    label, cells = comparison_table(with_controlled(estimate(19, 0.5, 0.35, 0.65))).rows[-1]
    assert label == "Preferred, at equal lengths"
    assert [str(c) for c in cells[2:]] == ["50.0 % [35–65] n=19", "+0.0 pp [-15, +15] n=19"]
    _, cells = comparison_table(with_controlled(estimate(19, None))).rows[-1]
    assert [str(c) for c in cells[2:]] == ["n/a n=19", "–"]
    outcome = {"outcome": "no_evidence", "reasons": ["this", "that"], "guarded": []}
    assert summary(scores(outcome=outcome))[0] == "Outcome: no evidence (this; that)."


def test_points_are_no_percentages() -> None:
    scored = with_row(
        unit="points",
        label="Judge score",
        arms={
            "base": estimate(20, 1, 1, 1),
            "sft": estimate(20, 3, 2.6, 3.4),
            "dpo": estimate(20, 3.5),
        },
        delta=estimate(20, 0.5, 0.1, 0.9),
    )
    assert [str(cell) for cell in comparison_table(scored).rows[0][1]] == [
        "1.00 [1.0–1.0] n=20",
        "3.00 [2.6–3.4] n=20",
        "3.50 [n/a] n=20",
        "+0.50 [+0.10, +0.90] n=20",
    ]
    assert "Judge score rises by 0.50 points over SFT." in summary(scored)


@pytest.mark.parametrize(
    ("better", "tone", "verdict"),
    [("higher", "better", "."), ("lower", "worse", ", which is worse."), (None, "", ".")],
)
def test_a_rise_is_better_only_where_the_metric_says_so(
    better: str | None, tone: str, verdict: str
) -> None:
    rises = with_row(better=better)
    assert comparison_table(rises).rows[0][1][-1].tone == tone
    assert summary(rises)[2] == f"Severity match rises by 25.0 points over SFT{verdict}"
    falls = with_row(better=better, delta=estimate(20, -0.25, -0.45, -0.05))
    opposite = {"better": "worse", "worse": "better", "": ""}[tone]
    assert comparison_table(falls).rows[0][1][-1].tone == opposite


def test_lengths_and_kappas_are_no_percentages() -> None:
    arms = dict.fromkeys(("base", "sft"), estimate(20, 81.25, 70.123, 90.5))
    arms["dpo"] = estimate(20, 0.5, 0.25, 0.75)
    figures = {"arms": arms, "delta": estimate(20, 12.5, 3.25, 21.75), "better": None}
    tokens = with_row(unit="tokens", label="Length", **figures)
    assert [str(cell) for cell in comparison_table(tokens).rows[0][1]][1:] == [
        "81.25 [70.1–90.5] n=20",
        "0.50 [0.2–0.8] n=20",
        "+12.50 [+3.25, +21.75] n=20",
    ]
    assert summary(tokens)[2] == "Length rises by 12.50 tokens over SFT."
    kappa = with_row(unit="kappa", label="Kappa", **figures)
    assert str(comparison_table(kappa).rows[0][1][2]) == "0.50 [0.25–0.75] n=20"
    assert summary(kappa)[2] == "Kappa rises by 12.50 over SFT."


def test_every_compared_pair_has_its_verdicts_and_bounds(evaluate: Path) -> None:
    found = read_scores(evaluate)
    ((label, cells),) = pairwise_table(found).rows
    assert label == "SFT+DPO over SFT"
    assert [cell.value for cell in cells[1:5]] == ["6", "6", "6", "0"]
    assert cells[5] == Cell("6 refusal", "38–62 % if all were losses or wins")
    smallest = found.pairwise[0].detectable
    assert smallest is not None and cells[6].value == f"±{100 * smallest:.0f} pp"
    assert cells[7].value == "p=1.00"
    assert pairwise_table(scores()).rows == ()
