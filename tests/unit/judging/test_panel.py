"""Labels follow the verdicts: in every order, after every interruption."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from dpo_dist.artifacts import Journal
from dpo_dist.errors import JudgeFailed
from dpo_dist.judging.judge import Comparison
from dpo_dist.judging.panel import Contest, comparisons, judge_all, reconcile
from dpo_dist.judging.spend import Ledger
from dpo_dist.records import Ballot, Message, Prompt


class Planted:
    """Prefers GOOD; answers in a shuffled order; fails after `patience` ballots."""

    identity = "planted"

    def __init__(self, seed: int = 0, patience: int = 10**9) -> None:
        self.asked = 0
        self._random = random.Random(seed)
        self._patience = patience

    def expected_usage(self, comparisons: Sequence[Comparison]) -> dict[str, int]:
        return {}

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[Ballot]:
        items = list(comparisons)
        for item in self._random.sample(items, len(items)):
            if self._patience == 0:
                raise JudgeFailed("planned")
            self._patience -= 1
            self.asked += 1
            yield self.decide(item)

    def decide(self, item: Comparison) -> Ballot:
        outcome = "first" if "GOOD" in item.first_text else "second"
        return Ballot(
            prompt_id=item.prompt.id,
            first=item.first,
            second=item.second,
            outcome=outcome,
            judge=self.identity,
        )


class AlwaysFirst(Planted):
    def decide(self, item: Comparison) -> Ballot:
        return super().decide(item).model_copy(update={"outcome": "first"})


def contests(count: int = 40) -> list[Contest]:
    prompt = [
        Prompt(id=f"p{n}", messages=(Message(role="user", content=str(n)),)) for n in range(count)
    ]
    texts = [("GOOD", "bad") if n * 7 % 5 < 2 else ("bad", "GOOD") for n in range(count)]
    return [Contest(p, "slot-0", "slot-1", *pair) for p, pair in zip(prompt, texts, strict=True)]


def run(judge: Planted, path: Path, *, both: bool = True, items: list[Contest] | None = None):
    with Journal(path, Ballot) as journal:
        return judge_all(
            judge,
            items or contests(),
            journal,
            ledger=Ledger(),
            both_orders=both,
            seed=3,
            on_done=lambda n, note="": None,
        )


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_a_planted_judge_labels_every_pair_right(tmp_path: Path, both: bool, seed: int) -> None:
    items = contests()
    random.Random(seed).shuffle(items)
    verdicts = run(Planted(seed), tmp_path / "j", both=both, items=items)
    for contest, verdict in zip(items, verdicts, strict=True):
        assert verdict.prompt_id == contest.prompt.id
        assert verdict.preferred == ("slot-0" if contest.a_text == "GOOD" else "slot-1")
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
    shown = [comparisons(c, both_orders=False, seed=1)[0].first for c in contests(1000)]
    assert 440 < shown.count("slot-0") < 560


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
def test_two_ballots_make_one_verdict(outcomes: tuple[str, str], expected: str) -> None:
    (contest,) = contests(1)
    asked = comparisons(contest, both_orders=True, seed=0)
    ballots = [
        Ballot(prompt_id="p0", first=c.first, second=c.second, outcome=outcome, judge="j")
        for c, outcome in zip(asked, outcomes, strict=True)
    ]
    for order in (ballots, ballots[::-1]):
        assert reconcile(contest, order).outcome == expected
