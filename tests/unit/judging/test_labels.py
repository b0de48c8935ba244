"""Which verdicts become labels, and that none of the choices depends on the order."""

from __future__ import annotations

import random
from collections import Counter
from itertools import combinations

import pytest

from dpo_dist.config import JudgeSection
from dpo_dist.errors import DataError
from dpo_dist.judging.audit import length_band
from dpo_dist.judging.judge import Comparison
from dpo_dist.judging.labels import Label, balanced, best_vs_worst, fitting_smoothing, labels_of
from dpo_dist.judging.panel import Judged, orders, reconcile
from dpo_dist.storage.records import BallotOutcome, Message, Prompt
from tests.unit.judging.test_panel import Planted

SORRY = "I'm sorry, but I can't assist with that."


def comparison(name: str, a: str = "GOOD", b: str = "bad") -> Comparison:
    prompt = Prompt(id=name, messages=(Message(role="user", content="q"),))
    return Comparison(prompt, "slot-0", "slot-1", a, b)


def settings(**values: object) -> JudgeSection:
    metric = {"type": "json_schema", "schema_path": "s"}
    judge = {"type": "metric", "metrics": [metric]}
    return JudgeSection.model_validate({"judge": judge, **values})


def judged(comparisons: list[Comparison], preferred: list[list[str]]) -> Judged:
    """Ballots that prefer the named answers, forward and then backward; any other name is the
    ballot's outcome. A third is a repeat."""
    ballots, verdicts = [], []
    for item, names in zip(comparisons, preferred, strict=True):
        asked = sorted(
            orders(item, both_orders=True, seed=0, repeat=len(names) - 2),
            key=lambda c: (c.repeat, c.first),
        )
        group = []
        for comparison, name in zip(asked, names, strict=True):
            outcome: BallotOutcome | str = name
            if name in "ab":
                wanted = item.first if name == "a" else item.second
                outcome = "first" if comparison.first == wanted else "second"
            group.append(Planted().ballot(comparison, outcome))  # type: ignore[arg-type]
        ballots += group
        verdicts.append(reconcile(item, group))
    random.Random(0).shuffle(ballots)
    return Judged(verdicts, ballots)


def chosen(labels: list[Label]) -> dict[str, str]:
    return {label.comparison.prompt.id: label.texts[0] for label in labels}


def test_only_decided_pairs_are_labels_by_default() -> None:
    items = [comparison(f"p{n}") for n in range(5)]
    ballots = judged(items, [["a", "a"], ["b", "b"], ["a", "b"], ["tie", "tie"], ["a", "refusal"]])
    dropped: Counter[str] = Counter()
    labels = labels_of(items, ballots, settings(), 3, dropped)
    assert chosen(labels) == {"p0": "GOOD", "p1": "bad"}
    assert dropped == {"inconsistent": 1, "tie": 1, "refusal": 1}
    pair = labels[1].pair()
    assert (pair.prompt_id, pair.chosen, pair.rejected) == ("p1", "bad", "GOOD")


def test_a_refusal_may_be_rejected_and_never_chosen() -> None:
    items = [
        comparison("chosen", SORRY, "Sure."),
        comparison("rejected", "Sure.", SORRY),
        comparison("both", SORRY, SORRY + " Really."),
    ]
    dropped: Counter[str] = Counter()
    labels = labels_of(items, judged(items, [["a", "a"]] * 3), settings(), 3, dropped)
    assert list(chosen(labels)) == ["rejected", "both"]
    assert dropped == {"refusal_chosen": 1}


def test_inconsistent_pairs_are_kept_when_wanted() -> None:
    items = [comparison(f"p{n}") for n in range(6)]
    ballots = [
        ["a", "tie"],
        ["tie", "b"],
        ["a", "b"],
        ["a", "a"],
        ["tie", "tie"],
        ["a", "unparsed"],
    ]
    dropped: Counter[str] = Counter()
    labels = labels_of(items, judged(items, ballots), settings(inconsistent="keep"), 3, dropped)
    found = chosen(labels)
    assert (found.pop("p0"), found.pop("p1"), found.pop("p3")) == ("GOOD", "bad", "GOOD")
    assert list(found) == ["p2"]
    assert [label.inconsistent for label in labels] == [True, True, True, False]
    assert [label.contradicting for label in labels] == [False, False, True, False]
    assert dropped == {"tie": 1, "unparsed": 1}
    assert fitting_smoothing(labels) == 0.125


def test_a_repeat_settles_nothing() -> None:
    (item,) = items = [comparison("p")]
    ballots = judged(items, [["a", "tie", "b"]])
    (label,) = labels_of(items, ballots, settings(inconsistent="keep"), 3, Counter())
    assert label.first_is_chosen and not label.contradicting and label.comparison is item


def test_the_coin_is_fair_seeded_and_each_prompt_s_own() -> None:
    items = [comparison(f"p{n}") for n in range(400)]
    keep = settings(inconsistent="keep")
    ballots = judged(items, [["a", "b"]] * 400)
    first = chosen(labels_of(items, ballots, keep, 3, Counter()))
    assert 160 < Counter(first.values())["GOOD"] < 240
    turned = judged(items[::-1], [["a", "b"]] * 400)
    assert chosen(labels_of(items[::-1], turned, keep, 3, Counter())) == first
    assert chosen(labels_of(items, ballots, keep, 4, Counter())) != first
    assert fitting_smoothing([Label(item, True, True, True) for item in items]) == 0.5


def biased(shares: dict[str, tuple[int, int]]) -> list[Label]:
    """Per band of lengths, labels that choose the first slot and the second."""
    texts = {"shorter": ("x", "xxxx"), "similar": ("xxx", "yyy"), "longer": ("xxxx", "x")}
    return [
        Label(comparison(f"{band}-{first}-{n}", *texts[band]), first)
        for band, counts in shares.items()
        for first, count in zip((True, False), counts, strict=True)
        for n in range(count)
    ]


def test_a_balanced_set_prefers_no_slot_in_any_band() -> None:
    labels = biased({"shorter": (30, 4), "similar": (0, 9), "longer": (5, 5)})
    kept = balanced(labels, seed=3)
    counts = Counter((length_band(label.comparison), label.first_is_chosen) for label in kept)
    assert counts == {
        ("shorter", True): 4,
        ("shorter", False): 4,
        ("longer", True): 5,
        ("longer", False): 5,
    }
    assert kept == [label for label in labels if label in kept], "the order stays"


def test_what_is_dropped_is_drawn_by_the_prompt_and_not_by_the_order() -> None:
    labels = biased({"similar": (40, 10)})
    kept = {label.comparison.prompt.id for label in balanced(labels, seed=3)}
    shuffled = random.Random(1).sample(labels, len(labels))
    assert {label.comparison.prompt.id for label in balanced(shuffled, seed=3)} == kept
    assert {label.comparison.prompt.id for label in balanced(labels, seed=4)} != kept
    assert not {f"similar-True-{n}" for n in range(10)} <= kept, "not simply the first ones"


def test_balancing_is_counted_and_says_when_it_leaves_nothing() -> None:
    items = [comparison(f"p{n}") for n in range(6)]
    ballots = [["a", "a"]] * 4 + [["b", "b"], ["a", "b"]]
    dropped: Counter[str] = Counter()
    labels = labels_of(items, judged(items, ballots), settings(balance="temperature"), 3, dropped)
    assert Counter(label.first_is_chosen for label in labels) == {True: 1, False: 1}
    assert dropped == {"unbalanced": 3, "inconsistent": 1}
    one_sided = judged(items, [["a", "a"]] * 6)
    with pytest.raises(DataError, match=r"judge\.balance: temperature leaves none of 6 pairs"):
        labels_of(items, one_sided, settings(balance="temperature"), 3, Counter())


def test_nothing_decided_is_not_blamed_on_the_balance() -> None:
    items = [comparison("p")]
    ballots = judged(items, [["tie", "tie"]])
    assert labels_of(items, ballots, settings(balance="temperature"), 3, Counter()) == []


def decided(prompt: str, *wins: str) -> list[Label]:
    """Labels of one prompt: "ab" says that a is preferred to b, "ab?" that it is inconsistent."""
    return [
        Label(
            Comparison(comparison(prompt).prompt, win[0], win[1], win[0], win[1], number),
            first_is_chosen=True,
            inconsistent=win.endswith("?"),
        )
        for number, win in enumerate(wins)
    ]


def kept(labels: list[Label], seed: int = 3) -> list[str]:
    return [label.ordered.first + label.ordered.second for label in best_vs_worst(labels, seed)]


def test_best_against_worst_is_the_decided_pair_whose_scores_differ_most() -> None:
    assert kept(decided("p", "ab", "bc", "ac")) == ["ac"]
    assert kept(decided("p", "ab", "bc")) in (["ab"], ["bc"]), "a against c was never decided"
    assert kept(decided("p", "ab", "ac", "ad", "bc", "bd", "cd")) == ["ad"]
    # d has lost to nobody but was compared with b alone: a has three wins.
    assert kept(decided("p", "ab", "ac", "ae", "db", "bc")) == ["ac"]
    assert kept(decided("p", "ab") + decided("q", "ba")) == ["ab", "ba"]


def test_the_label_taken_is_one_of_the_widest_whatever_the_verdicts_and_their_order() -> None:
    draw = random.Random(5)
    for trial in range(300):
        edges = [draw.choice((pair, pair[::-1])) for pair in combinations("abcde", 2)]
        wins = ["".join(edge) for edge in edges if draw.random() < 0.7] or ["ab"]
        labels = decided(f"p{trial}", *wins)
        (found,) = kept(labels)
        assert kept(draw.sample(labels, len(labels))) == [found]
        score = {
            name: sum(w[0] == name for w in wins) - sum(w[1] == name for w in wins)
            for name in "abcde"
        }
        gaps = {win: score[win[0]] - score[win[1]] for win in wins}
        assert gaps[found] == max(gaps.values()) >= 0


def test_a_cycle_is_drawn_from_and_still_follows_a_verdict() -> None:
    cycle = ("ab", "bc", "ca")
    found = Counter(kept(decided(f"p{n}", *cycle))[0] for n in range(600))
    assert set(found) == set(cycle) and min(found.values()) > 150
    assert kept(decided("p1", *cycle), seed=3) == kept(decided("p1", *cycle), seed=3)
    other = [kept(decided(f"p{n}", *cycle), seed=4) for n in range(50)]
    assert other != [kept(decided(f"p{n}", *cycle), seed=3) for n in range(50)]
    assert kept(decided("p", *cycle, "dc", "da", "db")) != ["ab"], "the cycle's pairs differ by 0"


def test_an_inconsistent_label_is_taken_only_where_there_is_no_other() -> None:
    assert kept(decided("p", "ab?", "ac?", "bc")) == ["bc"]
    ballots = ("ca?", "da?", "db?", "ab", "bc", "cd")
    assert kept(decided("p", *ballots)) in (["ab"], ["cd"]), "nor does it count for a score"
    assert {kept(decided(f"p{n}", *ballots))[0] for n in range(20)} == {"ab", "cd"}
    found = {kept(decided(f"p{n}", "ab?", "bc?"))[0] for n in range(20)}
    assert found == {"ab", "bc"}


def several(ballots: list[list[str]]) -> tuple[list[Comparison], Judged]:
    """One prompt with three slots, and its ballots."""
    texts = ("one", "two", "three")
    prompt = comparison("p").prompt
    pairs = ((0, 1), (0, 2), (1, 2))
    items = [
        Comparison(prompt, f"slot-{a}", f"slot-{b}", texts[a], texts[b], number)
        for number, (a, b) in enumerate(pairs)
    ]
    return items, judged(items, ballots)


def test_what_is_not_taken_is_counted_and_all_takes_everything() -> None:
    items, ballots = several([["a", "a"], ["a", "a"], ["tie", "tie"]])
    dropped: Counter[str] = Counter()
    labels = labels_of(items, ballots, settings(), 3, dropped)
    assert len(labels) == 1 and labels[0].texts[0] == "one"
    assert dropped == {"tie": 1, "not_best_vs_worst": 1}
    dropped.clear()
    labels = labels_of(items, ballots, settings(pairs="all"), 3, dropped)
    assert [label.texts for label in labels] == [("one", "two"), ("one", "three")]
    assert dropped == {"tie": 1}


def test_inconsistent_contests_of_a_prompt_are_settled_each_by_its_own_ballots() -> None:
    items, ballots = several([["a", "tie"], ["tie", "b"], ["tie", "a"]])
    keep = settings(pairs="all", inconsistent="keep")
    labels = labels_of(items, ballots, keep, 3, Counter())
    assert [label.texts for label in labels] == [("one", "two"), ("three", "one"), ("two", "three")]
    assert not any(label.contradicting for label in labels)
