"""Which answers the page shows, and how they are compared."""

from __future__ import annotations

from pathlib import Path

from dpo_dist.config import ReportSection
from dpo_dist.evaluation.scores import read_scores
from dpo_dist.reporting.answers import read_answers
from dpo_dist.reporting.gallery import MOST_CHARACTERS, bounded, chosen, gallery
from dpo_dist.reporting.report import RegressionRow


def test_a_text_is_bounded_and_made_visible() -> None:
    text = bounded("\x1b" + "x" * 1_000_000)
    assert text.left_out == 1_000_001 - MOST_CHARACTERS
    assert text.parts[0].text == "␛" + "x" * (MOST_CHARACTERS - 1)
    assert bounded("short").left_out == 0


def test_the_worst_and_an_even_spread_are_chosen() -> None:
    ids = [f"p{number}" for number in range(100)]
    worst = [RegressionRow(id=f"p{number}", lost=True, fell={}) for number in (7, 50, 3)]
    section = ReportSection(samples=4, regressions=2)
    assert chosen(ids, worst, section) == {"p0", "p25", "p50", "p75", "p7"}
    assert chosen(ids[:3], [], section) == {"p0", "p1", "p2"}


def test_samples_stand_in_the_set_s_order_with_their_tags(evaluate: Path) -> None:
    answers = read_answers(evaluate, read_scores(evaluate))
    found = gallery(evaluate, answers, ReportSection(samples=6, regressions=2))
    assert [sample.id for sample in found.samples] == ["p0", "p4", "p8", "p12", "p16", "p20"]
    assert (found.prompts, found.worst) == (24, 2)
    first = found.samples[0]
    assert first.tags == ("lost", "cut-off", "fell") and first.rank == 0
    assert first.fell == ("Names a severity",) and first.verdict == "judge prefers SFT"
    assert [answer.arm for answer in first.answers] == ["base", "sft", "dpo"]
    assert [p.text for p in first.answers[2].text.parts if p.changed] == ["dpo", "nothing"]
