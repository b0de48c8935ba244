"""Which answers the page shows, how they are compared, and what is counted over all of them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from dpo_dist.config import ReportSection
from dpo_dist.intervals import wilson
from dpo_dist.reporting.answers import Answers, Regression, guarded_rows, read_answers
from dpo_dist.reporting.diff import MOST_WORDS, Part, word_diff
from dpo_dist.reporting.evaluation import cut_off_shares, evaluation_figures
from dpo_dist.reporting.gallery import MOST_CHARACTERS, bounded, chosen, gallery
from dpo_dist.reporting.tables import Cell, pairwise_table
from dpo_dist.storage.artifacts import read_json, write_records
from dpo_dist.storage.records import Score
from tests.report_run import write_run_directory

PROMPTS = 24


@pytest.fixture
def evaluate(tmp_path: Path) -> Path:
    write_run_directory(tmp_path, PROMPTS)
    return tmp_path / "evaluate"


def read(evaluate: Path) -> Answers:
    return read_answers(evaluate, read_json(evaluate / "scores.json"))


def test_words_that_differ_are_marked_in_both_texts() -> None:
    found = word_diff("the cat sat down", "the dog sat\n down today")
    assert found.before == (Part("the"), Part(" "), Part("cat", True), Part(" sat down"))
    assert "".join(part.text for part in found.after) == "the dog sat\n down today"
    assert [part.text for part in found.after if part.changed] == ["dog", "today"]
    assert found.note == ""


@pytest.mark.parametrize(
    ("before", "after", "note"),
    [
        ("same\n", "same\n", "same answer"),
        ("a b c d", "w x y z", "little in common"),
        ("word " * (MOST_WORDS + 1), "word", "not marked"),
    ],
)
def test_where_nothing_is_marked_the_page_says_why(before: str, after: str, note: str) -> None:
    found = word_diff(before, after)
    assert note in found.note
    assert (found.before, found.after) == ((Part(before),), (Part(after),))


@pytest.mark.parametrize(("before", "after"), [("", ""), ("", "a"), (" a ", "a"), ("a\n\n", "")])
def test_no_character_is_lost(before: str, after: str) -> None:
    found = word_diff(before, after)
    assert "".join(part.text for part in found.before) == before
    assert "".join(part.text for part in found.after) == after


def test_a_text_is_bounded_and_made_visible() -> None:
    text = bounded("\x1b" + "x" * 1_000_000)
    assert text.left_out == 1_000_001 - MOST_CHARACTERS
    assert text.parts[0].text == "␛" + "x" * (MOST_CHARACTERS - 1)
    assert bounded("short").left_out == 0


def test_the_worst_and_an_even_spread_are_chosen() -> None:
    ids = [f"p{number}" for number in range(100)]
    worst = [Regression(f"p{number}", True, {}, 1.0) for number in (7, 50, 3)]
    section = ReportSection(samples=4, regressions=2)
    assert chosen(ids, worst, section) == {"p0", "p25", "p50", "p75", "p7"}
    assert chosen(ids[:3], [], section) == {"p0", "p1", "p2"}


def test_samples_stand_in_the_set_s_order_with_their_tags(evaluate: Path) -> None:
    found = gallery(evaluate, read(evaluate), ReportSection(samples=6, regressions=2))
    assert [sample.id for sample in found.samples] == ["p0", "p4", "p8", "p12", "p16", "p20"]
    assert (found.prompts, found.worst) == (24, 2)
    first = found.samples[0]
    assert first.tags == ("lost", "cut-off", "fell") and first.rank == 0
    assert first.fell == ("Names a severity",) and first.verdict == "judge prefers SFT"
    assert [answer.arm for answer in first.answers] == ["base", "sft", "dpo"]
    assert [p.text for p in first.answers[2].text.parts if p.changed] == ["dpo", "nothing"]


def test_regressions_are_ranked_by_the_verdict_and_the_falls(evaluate: Path) -> None:
    found = read(evaluate).regressions
    assert [r.prompt_id for r in found[:2]] == ["p0", "p12"]
    assert found[0].figures == {"id": "p0", "lost": True, "fell": {"Names a severity": 1.0}}
    assert [r.harm for r in found] == [2.0] * 2 + [1.0] * 10


def test_a_fall_is_one_in_the_direction_that_is_worse(evaluate: Path) -> None:
    """In tokens, lower is better: p1's answer has grown most, p2's by half of that."""
    scores = read_json(evaluate / "scores.json")
    row = {"metric": "m", "label": "Tokens", "unit": "tokens", "better": "lower", "decoding": 0}
    scores |= {"metrics": [row], "outcome": {"guarded": ["Tokens"]}}
    values = {"p1": (10, 50), "p2": (10, 30), "p3": (10, 5)}
    write_records(
        evaluate / "scores.jsonl",
        [
            Score(prompt_id=prompt, arm=arm, decoding=0, metric="m", value=value)
            for prompt, pair in values.items()
            for arm, value in zip(("sft", "dpo"), pair, strict=True)
        ],
    )
    fell = {r.prompt_id: r.fell for r in read_answers(evaluate, scores).regressions if r.fell}
    assert fell == {"p1": {"Tokens": 1.0}, "p2": {"Tokens": 0.5}}


def test_rows_that_only_describe_are_never_guarded() -> None:
    rows = [
        {"label": "a", "better": "higher", "decoding": 0},
        {"label": "b", "better": None, "decoding": 0},
        {"label": "c", "better": "lower", "decoding": 0, "judged": True},
        {"label": "d", "better": "lower", "decoding": 1},
    ]
    scores = {"metrics": rows, "outcome": {"guarded": ["b", "c", "d"]}}
    assert [row["label"] for row in guarded_rows(scores)] == ["c"]


def test_cut_off_answers_are_counted_by_arm_with_an_interval(evaluate: Path) -> None:
    found = cut_off_shares(evaluate)
    assert found["dpo"] == asdict(wilson(5, 24)) and found["sft"]["mean"] == 0


def test_a_finished_evaluation_has_the_figures_of_its_scores(evaluate: Path) -> None:
    scores, found = read_json(evaluate / "scores.json"), evaluation_figures(evaluate)
    assert (found["preferred"], found["length"]) == (scores["preferred"], scores["length"])
    assert found["cut_off"]["mean"] == 5 / 24 and found["length"]["delta"]["n"] == 24


def test_every_compared_pair_has_its_verdicts_and_bounds(evaluate: Path) -> None:
    scores = read_json(evaluate / "scores.json")
    ((label, cells),) = pairwise_table(scores).rows
    assert label == "SFT+DPO over SFT"
    assert [cell.value for cell in cells[1:5]] == ["6", "6", "6", "0"]
    assert cells[5] == Cell("6 refusal", "38–62 % if all were losses or wins")
    assert cells[6].value == f"±{100 * scores['pairwise'][0]['detectable']:.0f} pp"
    assert cells[7].value == "p=1.00"
    assert pairwise_table({"pairwise": []}).rows == ()
