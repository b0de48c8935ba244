"""The audit counts what it says, on labels whose biases are planted."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import pytest

from dpo_dist.judging.audit import Share, audit
from dpo_dist.judging.judge import Comparison
from dpo_dist.judging.panel import orders, reconcile
from dpo_dist.storage.records import Message, Prompt
from tests.unit.judging.test_panel import Planted


def shares(
    texts: list[tuple[str, str]], decide: Callable[[str, str], str], *, both: bool = True
) -> dict[str, Share]:
    """The audit of a judge that decides by the two texts in the order shown."""
    comparisons = [
        Comparison(
            Prompt(id=f"p{n}", messages=(Message(role="user", content="q"),)), "0", "1", a, b
        )
        for n, (a, b) in enumerate(texts)
    ]
    ballots, verdicts = [], []
    for comparison in comparisons:
        group = [
            Planted().ballot(asked, decide(asked.first_text, asked.second_text))
            for asked in orders(comparison, both_orders=both, seed=0)
        ]
        ballots += group
        verdicts.append(reconcile(comparison, group))
    return {share.name: share for share in audit(comparisons, verdicts, ballots)}


def counted(share: Share) -> tuple[int, int]:
    return share.hits, share.n


def test_a_judge_of_length_is_seen() -> None:
    texts = [("x" * 50, "x" * 40), ("x" * 40, "x" * 50), ("xx", "yy"), ("x" * 9, "x" * 99)]
    found = shares(texts, lambda a, b: "first" if len(a) > len(b) else "second")
    assert counted(found["chosen_is_longer"]) == (3, 3), "equal lengths say nothing"
    assert counted(found["first_slot_where_shorter"]) == (0, 1)
    assert counted(found["first_slot_where_longer"]) == (0, 0)
    assert counted(found["first_slot_where_similar"]) == (1, 2), "the equal pair is inconsistent"
    assert counted(found["swap_consistency"]) == (3, 4)


def test_a_judge_of_the_slot_is_seen_where_lengths_are_similar() -> None:
    found = shares([("GOOD", "rest")] * 5, lambda a, b: "first" if a == "GOOD" else "second")
    assert counted(found["first_slot_where_similar"]) == (5, 5)
    assert counted(found["first_position"]) == (5, 10)
    assert counted(found["swap_consistency"]) == (5, 5)


def test_a_judge_of_the_position_is_seen() -> None:
    found = shares([("a", "b")] * 6, lambda a, b: "first")
    assert counted(found["first_position"]) == (12, 12)
    assert counted(found["swap_consistency"]) == (0, 6)
    assert counted(found["chosen_is_longer"]) == (0, 0), "no label came out of it"


def test_ballots_without_a_comparison_count_for_nothing() -> None:
    outcomes = iter(["first", "refusal", "tie", "tie", "unparsed", "cut_off"])
    found = shares([("a", "b")] * 3, lambda a, b: next(outcomes))
    assert counted(found["first_position"]) == (1, 1)
    assert counted(found["swap_consistency"]) == (1, 1)


def test_one_order_has_no_consistency() -> None:
    found = shares([("GOOD", "b")] * 4, lambda a, b: "first", both=False)
    assert counted(found["swap_consistency"]) == (0, 0)


def several(answers: list[tuple[str, ...]], decide: Callable[[str, str], str]) -> dict[str, Share]:
    """The audit where every prompt has as many slots as answers."""
    comparisons, ballots, verdicts = [], [], []
    for n, texts in enumerate(answers):
        prompt = Prompt(id=f"p{n}", messages=(Message(role="user", content="q"),))
        for number, (a, b) in enumerate(combinations(range(len(texts)), 2)):
            comparison = Comparison(prompt, f"slot-{a}", f"slot-{b}", texts[a], texts[b], number)
            group = [
                Planted().ballot(asked, decide(asked.first_text, asked.second_text))
                for asked in orders(comparison, both_orders=True, seed=0)
            ]
            comparisons.append(comparison)
            ballots += group
            verdicts.append(reconcile(comparison, group))
    return {share.name: share for share in audit(comparisons, verdicts, ballots)}


def test_of_several_slots_each_has_its_share() -> None:
    found = several([("bb", "aa", "cc"), ("bb", "aa", "c" * 9)], lambda a, b: larger(a, b))
    assert counted(found["slot-0_where_similar"]) == (2, 3)
    assert counted(found["slot-1_where_similar"]) == (0, 3)
    assert counted(found["slot-2_where_similar"]) == (2, 2), "other lengths are left out"
    assert counted(found["swap_consistency"]) == (6, 6)
    assert counted(found["first_position"]) == (6, 12)
    assert counted(found["transitive"]) == (2, 2)
    assert not any(name.startswith("first_slot") for name in found)


def larger(a: str, b: str) -> str:
    return "first" if a > b else "second"


def test_a_judge_that_runs_in_circles_is_seen() -> None:
    beats = {("r", "s"), ("s", "p"), ("p", "r")}

    def decide(a: str, b: str) -> str:
        return larger(a, b) if "x" in a + b else "first" if (a, b) in beats else "second"

    found = several([("r", "s", "p")] * 3 + [("r", "s", "x")], decide)
    assert counted(found["transitive"]) == (1, 4)
    assert "cyclic" in found["transitive"].remedy


def test_comparisons_with_the_same_two_names_are_told_apart_by_the_prompt() -> None:
    found = several([("a", "b", "c")] * 5, lambda a, b: "first")
    assert counted(found["swap_consistency"]) == (0, 15)
    assert counted(found["first_position"]) == (30, 30)


def test_what_shares_a_prompt_counts_for_less() -> None:
    alone = shares([("xx", "x"), ("x", "xx"), ("xx", "x")], lambda a, b: larger(a, b))
    assert alone["chosen_is_longer"].design_effect == 1.0
    # Of three comparisons of a prompt, all or none prefer the longer: three are worth one.
    rows = [("x", "xx", "xxx"), ("x", "xx", "xxx"), ("zzz", "zz", "z"), ("zzz", "zz", "z")]
    found = several(rows, lambda a, b: larger(a, b) if "x" in a else larger(b, a))
    assert counted(found["chosen_is_longer"]) == (6, 12)
    assert found["chosen_is_longer"].design_effect == pytest.approx(3)
    assert found["transitive"].design_effect == 1.0
    same = several([("x", "xx", "xxx")] * 4, lambda a, b: larger(a, b))
    assert counted(same["chosen_is_longer"]) == (12, 12)
    assert same["chosen_is_longer"].design_effect == 3.0
