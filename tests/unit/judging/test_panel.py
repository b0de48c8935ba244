"""Labels follow the verdicts: in every order, after every interruption."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from dpo_dist.errors import JudgeFailed, NotConfirmed
from dpo_dist.judging.judge import Comparison, Judge
from dpo_dist.judging.panel import BallotSummary, Judged, judge_all, orders, reconcile
from dpo_dist.judging.spend import Ledger
from dpo_dist.storage.artifacts import Journal, read_records
from dpo_dist.storage.records import Ballot, BallotOutcome, Message, Prompt


class Planted(Judge):
    """Prefers GOOD; answers in a shuffled order; fails after `patience` ballots."""

    identity = "planted"

    def __init__(self, seed: int = 0, patience: int = 10**9) -> None:
        self.asked = 0
        self._random = random.Random(seed)
        self._patience = patience

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[Sequence[Ballot]]:
        items = list(comparisons)
        for item in self._random.sample(items, len(items)):
            if self._patience == 0:
                raise JudgeFailed("planned")
            self._patience -= 1
            self.asked += 1
            yield [self.ballot(item, self.decide(item))]

    def decide(self, item: Comparison) -> BallotOutcome:
        return "first" if "GOOD" in item.first_text else "second"


class AlwaysFirst(Planted):
    def decide(self, item: Comparison) -> BallotOutcome:
        return "first"


def comparisons(count: int = 40) -> list[Comparison]:
    prompt = [
        Prompt(id=f"p{n}", messages=(Message(role="user", content=str(n)),)) for n in range(count)
    ]
    texts = [("GOOD", "bad") if n * 7 % 5 < 2 else ("bad", "GOOD") for n in range(count)]
    return [Comparison(p, "slot-0", "slot-1", *pair) for p, pair in zip(prompt, texts, strict=True)]


def comparisons_of(slots: int, count: int) -> list[Comparison]:
    """All pairs of as many slots, for so many prompts."""
    return [
        Comparison(one.prompt, f"slot-{a}", f"slot-{b}", f"text {a}", f"text {b}", number)
        for one in comparisons(count)
        for number, (a, b) in enumerate((a, b) for b in range(slots) for a in range(b))
    ]


def run(judge: Planted, path: Path, *, both: bool = True, items: list[Comparison] | None = None):
    with Journal(path, Ballot) as journal:
        return judge_all(
            judge,
            items or comparisons(),
            journal,
            ledger=Ledger(),
            both_orders=both,
            seed=3,
        ).verdicts


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_a_planted_judge_labels_every_pair_right(tmp_path: Path, both: bool, seed: int) -> None:
    items = comparisons()
    random.Random(seed).shuffle(items)
    verdicts = run(Planted(seed), tmp_path / "j", both=both, items=items)
    for comparison, verdict in zip(items, verdicts, strict=True):
        assert verdict.prompt_id == comparison.prompt.id
        assert verdict.preferred == ("slot-0" if comparison.first_text == "GOOD" else "slot-1")
        assert {verdict.preferred, verdict.other} == {"slot-0", "slot-1"}


@pytest.mark.parametrize("patience", [0, 1, 17, 79])
def test_after_a_failure_only_what_is_missing_is_asked(tmp_path: Path, patience: int) -> None:
    with pytest.raises(JudgeFailed):
        run(Planted(1, patience), tmp_path / "j")
    second = Planted(2)
    assert run(second, tmp_path / "j") == run(Planted(), tmp_path / "whole")
    assert second.asked == 80 - patience


def test_another_judge_reuses_nothing(tmp_path: Path) -> None:
    run(Planted(), tmp_path / "j")
    other = Planted()
    other.identity = "other"
    run(other, tmp_path / "j")
    assert other.asked == 80


def test_a_judge_that_looks_at_the_order_yields_no_label(tmp_path: Path) -> None:
    verdicts = run(AlwaysFirst(), tmp_path / "j")
    assert {v.outcome for v in verdicts} == {"inconsistent"}


def test_a_single_order_shows_no_slot_first_more_often() -> None:
    shown = [orders(c, both_orders=False, seed=1)[0].first for c in comparisons(1000)]
    assert 440 < shown.count("slot-0") < 560


@pytest.mark.parametrize("slots", [3, 4])
def test_no_slot_of_several_is_shown_first_more_often(slots: int) -> None:
    items = comparisons_of(slots, 2000)
    asked = [orders(item, both_orders=False, seed=1, repeat=0.1) for item in items]
    first = Counter(group[0].first for group in asked)
    for slot in range(slots):
        assert 0.48 < first[f"slot-{slot}"] / (2000 * (slots - 1)) < 0.52
    turned = [group[0].first == item.second for group, item in zip(asked, items, strict=True)]
    size = slots * (slots - 1) // 2
    of_prompt = [turned[start : start + size] for start in range(0, len(turned), size)]
    for one, other in combinations(range(size), 2):
        alike = sum(draws[one] == draws[other] for draws in of_prompt)
        assert 0.45 < alike / 2000 < 0.55, "the comparisons of a prompt draw each for itself"
    assert 0.09 < sum(len(group) - 1 for group in asked) / len(asked) < 0.11


def test_a_comparison_that_stays_draws_the_same_when_a_slot_is_added() -> None:
    few, many = (
        {item.id: orders(item, both_orders=False, seed=1) for item in comparisons_of(slots, 20)}
        for slots in (3, 4)
    )
    assert len(few) == 60 and all(many[name] == asked for name, asked in few.items())


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (("first", "second"), "preferred"),
        (("first", "first"), "inconsistent"),
        (("tie", "tie"), "tie"),
        (("first", "tie"), "inconsistent"),
        (("refusal", "first"), "refusal"),
        (("unparsed", "refusal"), "refusal"),
        (("tie", "unparsed"), "unparsed"),
        (("cut_off", "unparsed"), "cut_off"),
    ],
)
def test_two_ballots_make_one_verdict(
    outcomes: tuple[BallotOutcome, BallotOutcome], expected: str
) -> None:
    (comparison,) = comparisons(1)
    asked = orders(comparison, both_orders=True, seed=0)
    ballots = [Planted().ballot(c, outcome) for c, outcome in zip(asked, outcomes, strict=True)]
    for order in (ballots, ballots[::-1]):
        assert reconcile(comparison, order).outcome == expected


def test_a_share_is_asked_once_more_and_decides_nothing(tmp_path: Path) -> None:
    judge = Planted()
    with Journal(tmp_path / "j", Ballot) as journal:
        judged = judge_all(
            judge,
            comparisons(1000),
            journal,
            ledger=Ledger(),
            both_orders=True,
            seed=3,
            repeat=0.1,
        )
    again = [ballot for ballot in judged.ballots if ballot.repeat]
    assert 70 < len(again) < 130 and judge.asked == 2000 + len(again)
    assert len(judged.ballots) == judge.asked
    (comparison,) = comparisons(1)
    asked = orders(comparison, both_orders=True, seed=0, repeat=1.0)
    outcomes: list[BallotOutcome] = ["first", "second", "second"]
    assert [c.repeat for c in asked] == [0, 0, 1] and asked[2].first == asked[0].first
    ballots = [
        BallotSummary.of(judge.ballot(c, o), c) for c, o in zip(asked, outcomes, strict=True)
    ]
    assert reconcile(comparison, ballots).outcome == "preferred"


class Paid(Planted):
    """A planted judge whose ballots have a price."""

    def expected_usage(self, comparisons: Sequence[Comparison]) -> dict[str, int]:
        return {"input_tokens": 10 * len(comparisons)}


def poll(judge: Judge, path: Path, *earlier: Path, items: list[Comparison]) -> Judged:
    with Journal(path, Ballot) as journal:
        return judge_all(
            judge, items, journal, ledger=Ledger(), both_orders=True, seed=3, earlier=earlier
        )


def test_what_another_run_has_paid_for_is_used_under_this_runs_names(tmp_path: Path) -> None:
    poll(Paid(), tmp_path / "a", items=comparisons())
    with (tmp_path / "a").open("a") as torn:
        torn.write('{"key": "to')
    moved = [
        replace(
            c, prompt=c.prompt.model_copy(update={"id": f"other-{n}"}), first="dpo", second="sft"
        )
        for n, c in enumerate(reversed(comparisons(50)))
    ]
    judge = Paid()
    judged = poll(judge, tmp_path / "b", tmp_path / "a", tmp_path / "none", items=moved)
    assert judge.asked == 2 * 10, "ten comparisons are new, whatever the order of the others"
    for comparison, verdict in zip(moved, judged.verdicts, strict=True):
        assert verdict.prompt_id == comparison.prompt.id
        assert verdict.preferred == ("dpo" if comparison.first_text == "GOOD" else "sft")
    written = list(read_records(tmp_path / "b", Ballot))
    assert {b.prompt_id for b in written} == {c.prompt.id for c in moved}


def test_equal_questions_are_asked_once(tmp_path: Path) -> None:
    (one,) = comparisons(1)
    twin = replace(one, prompt=one.prompt.model_copy(update={"id": "twin"}))
    judge = Planted()
    judged = poll(judge, tmp_path / "j", items=[one, twin])
    assert judge.asked == 2
    assert [v.prompt_id for v in judged.verdicts] == ["p0", "twin"]
    assert {v.preferred for v in judged.verdicts} == {"slot-0"}


def test_what_was_not_answered_is_asked_again(tmp_path: Path) -> None:
    class Silent(Planted):
        def decide(self, item: Comparison) -> BallotOutcome:
            return "not_answered"

    (verdict,) = poll(Silent(), tmp_path / "j", items=comparisons(1)).verdicts
    assert verdict.outcome == "not_answered"
    (verdict,) = poll(Planted(), tmp_path / "j", items=comparisons(1)).verdicts
    assert verdict.outcome == "preferred"


def test_nothing_is_asked_that_was_not_agreed_to(tmp_path: Path) -> None:
    def refuse(forecast: str) -> None:
        raise NotConfirmed(forecast)

    judge = Paid()
    with Journal(tmp_path / "j", Ballot) as journal, pytest.raises(NotConfirmed, match="80 req"):
        judge_all(
            judge,
            comparisons(),
            journal,
            ledger=Ledger(),
            both_orders=True,
            seed=3,
            approve=refuse,
        )
    assert judge.asked == 0


@pytest.mark.parametrize("outcome", ["first", "tie", "refusal"])
def test_a_verdict_says_which_comparison_it_is_about(
    tmp_path: Path, outcome: BallotOutcome
) -> None:
    class Fixed(Planted):
        def decide(self, item: Comparison) -> BallotOutcome:
            return outcome

    items = comparisons_of(4, 3)
    verdicts = run(Fixed(), tmp_path / "j", items=items)
    assert {verdict.outcome for verdict in verdicts} <= {"inconsistent", "tie", "refusal"}
    assert [(v.prompt_id, v.between) for v in verdicts] == [
        (item.prompt.id, (item.first, item.second)) for item in items
    ]
