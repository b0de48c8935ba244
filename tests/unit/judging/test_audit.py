"""The audit counts what it says, on labels whose biases are planted."""

from __future__ import annotations

from collections.abc import Callable

from dpo_dist.judging.audit import Share, audit
from dpo_dist.judging.panel import Contest, comparisons, reconcile
from dpo_dist.records import Message, Prompt
from tests.unit.judging.test_panel import Planted


def shares(
    texts: list[tuple[str, str]], decide: Callable[[str, str], str], *, both: bool = True
) -> dict[str, Share]:
    """The audit of a judge that decides by the two texts in the order shown."""
    contests = [
        Contest(Prompt(id=f"p{n}", messages=(Message(role="user", content="q"),)), "0", "1", a, b)
        for n, (a, b) in enumerate(texts)
    ]
    ballots, verdicts = [], []
    for contest in contests:
        group = [
            Planted().ballot(asked, decide(asked.first_text, asked.second_text))
            for asked in comparisons(contest, both_orders=both, seed=0)
        ]
        ballots += group
        verdicts.append(reconcile(contest, group))
    return {share.name: share for share in audit(contests, verdicts, ballots)}


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
