"""The prompts on which SFT+DPO lost."""

from __future__ import annotations

from pathlib import Path

from dpo_dist.evaluation.scores import read_scores
from dpo_dist.reporting.answers import guarded_rows, read_answers
from dpo_dist.reporting.report import RegressionRow
from dpo_dist.storage.artifacts import write_records
from dpo_dist.storage.records import Score
from tests.report_figures import metric_row, scores


def guard(*labels: str) -> dict[str, object]:
    return {"outcome": "no_evidence", "reasons": [], "guarded": labels}


def test_regressions_are_ranked_by_the_verdict_and_the_falls(evaluate: Path) -> None:
    found = read_answers(evaluate, read_scores(evaluate)).regressions
    assert [r.id for r in found[:2]] == ["p0", "p12"]
    assert found[0] == RegressionRow(id="p0", lost=True, fell={"Names a severity": 1.0})
    assert [r.harm for r in found] == [2.0] * 2 + [1.0] * 10


def test_a_fall_is_one_in_the_direction_that_is_worse(evaluate: Path) -> None:
    """In tokens, lower is better: p1's answer has grown most, p2's by half of that."""
    tokens = metric_row(label="Tokens", unit="tokens", better="lower")
    shorter = scores(metrics=[tokens], outcome=guard("Tokens"))
    values = {"p1": (10, 50), "p2": (10, 30), "p3": (10, 5)}
    write_records(
        evaluate / "scores.jsonl",
        [
            Score(prompt_id=prompt, arm=arm, decoding=0, metric="m", value=value)
            for prompt, pair in values.items()
            for arm, value in zip(("sft", "dpo"), pair, strict=True)
        ],
    )
    fell = {r.id: r.fell for r in read_answers(evaluate, shorter).regressions if r.fell}
    assert fell == {"p1": {"Tokens": 1.0}, "p2": {"Tokens": 0.5}}


def test_rows_that_only_describe_are_never_guarded() -> None:
    rows = [
        metric_row(label="a", better="higher"),
        metric_row(label="b", better=None),
        metric_row(label="c", better="lower", judged=True),
        metric_row(label="d", better="lower", decoding=1),
    ]
    found = scores(metrics=rows, outcome=guard("b", "c", "d"))
    assert [row.label for row in guarded_rows(found)] == ["c"]
