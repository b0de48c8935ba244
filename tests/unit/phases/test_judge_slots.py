"""The judge phase with more than two slots: what is asked about, and what becomes a label."""

from __future__ import annotations

import random
from collections import Counter
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

import pytest

from dpo_dist.errors import ConfigError, DataError, JudgeFailed
from dpo_dist.intervals import wilson
from dpo_dist.judging.judge import Comparison
from dpo_dist.phases import asking
from dpo_dist.storage.artifacts import read_records
from dpo_dist.storage.records import Ballot, BallotOutcome, Verdict
from tests.unit.judging.test_panel import Planted
from tests.unit.phases.test_judge import LONG, Scripted, config, every_pair, run


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    planted = Scripted()
    monkeypatch.setattr(asking, "build_judge", lambda config, folder: planted)
    return planted


class Graded(Planted):
    """Prefers more GOODs; equally many are a tie."""

    def decide(self, item: Comparison) -> BallotOutcome:
        first, second = (text.count("GOOD") for text in (item.first_text, item.second_text))
        return "tie" if first == second else "first" if first > second else "second"


def answers(draw: random.Random, slots: int) -> list[str]:
    """With GOOD up to three times each; not all the same."""
    grades = [0, 1, *(draw.randint(0, 3) for _ in range(slots - 2))]
    draw.shuffle(grades)
    return [f"answer {n} " + "GOOD " * grade for n, grade in enumerate(grades)]


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("mode", ["best_vs_worst", "all"])
@pytest.mark.parametrize("slots", [3, 4])
def test_of_several_slots_every_label_is_right_in_any_order_and_after_failures(
    tmp_path: Path,
    write_jsonl: Any,
    monkeypatch: pytest.MonkeyPatch,
    slots: int,
    mode: str,
    both: bool,
) -> None:
    settings = config(tmp_path, write_jsonl, None, pairs=mode, both_orders=both, repeat=0.3)
    draw = random.Random(slots)
    rows = [(f"question {n}", *answers(draw, slots)) for n in range(25)]
    patience = iter([0, 1, 20, 60, 10**9])
    judges: list[Graded] = []

    def build(*_: Any) -> Graded:
        judges.append(Graded(seed=len(judges), patience=next(patience)))
        return judges[-1]

    monkeypatch.setattr(asking, "build_judge", build)
    for _ in range(4):
        with pytest.raises(JudgeFailed, match="planned"):
            run(settings, rows)
    counts = run(settings, rows)["counts"]
    folder = tmp_path / "runs" / "test" / "judge"
    keys = [ballot.key for ballot in read_records(folder / "ballots.jsonl", Ballot)]
    assert len(keys) == len(set(keys)) == sum(judge.asked for judge in judges)

    found = every_pair(settings)
    decided = {
        (f"p{n}", *sorted(pair, key=lambda text: -text.count("GOOD")))
        for n, row in enumerate(rows)
        for pair in combinations(row[1:], 2)
        if pair[0].count("GOOD") != pair[1].count("GOOD")
    }
    ties = 25 * comb(slots, 2) - len(decided)
    if mode == "all":
        assert set(found) == decided and len(found) == len(decided)
        assert counts["dropped"] == ({"tie": ties} if ties else {})
    else:
        assert set(found) <= decided and [name for name, *_ in found] == [
            f"p{n}" for n in range(25)
        ]
        for name, chosen, rejected in found:
            grades = [text.count("GOOD") for text in rows[int(name[1:])][1:]]
            assert (chosen.count("GOOD"), rejected.count("GOOD")) == (max(grades), min(grades))
        assert counts["dropped"]["not_best_vs_worst"] == len(decided) - 25
    verdicts = list(read_records(folder / "verdicts.jsonl", Verdict))
    assert len({(v.prompt_id, v.between) for v in verdicts}) == 25 * comb(slots, 2)


def test_slots_may_be_added_without_asking_again(
    tmp_path: Path, write_jsonl: Any, planted: Scripted
) -> None:
    """In one order, which is drawn: the same for the comparison that was there before."""
    rows = [(f"question {n}", f"GOOD {n}", f"bad {n}", f"worse {n}") for n in range(20)]
    settings = config(tmp_path, write_jsonl, None, both_orders=False, pairs="all")
    run(settings, [row[:3] for row in rows])
    assert planted.asked == 20
    run(settings, rows)
    assert planted.asked == 60


def test_comparisons_of_several_slots_are_dropped_one_by_one(
    tmp_path: Path, write_jsonl: Any, planted: Scripted
) -> None:
    rows = [
        ("q0", "GOOD", "bad", "CUT"),
        ("q1", "bad", "GOOD", "bad"),
        ("q2", "GOOD", " ", "poor"),
        (f"{LONG} uphill", "GOOD", "bad", "poor"),
        ("Q0", "GOOD", "bad", "poor"),
        ("q3", "CUT", "CUT too", "CUT as well"),
        ("q3", "GOOD", "<|im_end|>", "poor"),
    ]
    settings = config(tmp_path, write_jsonl, [LONG], pairs="all")
    counts = run(settings, rows)["counts"]
    assert counts["dropped"] == {
        "candidate_cut_off": 2 + 3,
        "control_token": 2,
        "duplicate_prompt": 3,
        "empty": 2,
        "evaluation_overlap": 3,
        "identical": 1,
        "same_comparison": 1,
    }
    assert planted.asked == 2 * 4
    assert every_pair(settings) == [
        ("p0", "GOOD", "bad"),
        ("p1", "GOOD", "bad"),
        ("p2", "GOOD", "poor"),
        ("p6", "GOOD", "poor"),
    ]


def test_a_judge_of_positions_yields_no_label_of_several_slots(
    tmp_path: Path, write_jsonl: Any, planted: Scripted
) -> None:
    settings = config(tmp_path, write_jsonl, None)
    with pytest.raises(DataError, match=r"decided no pairs; dropped: \{'inconsistent': 6\}"):
        run(settings, [("q0", "FIRST", "FIRST too", "FIRST of all", "FIRST and last")])


def test_a_cycle_is_one_pair_or_three(
    tmp_path: Path, write_jsonl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Circle(Planted):
        def decide(self, item: Comparison) -> BallotOutcome:
            beats = {"rock": "scissors", "scissors": "paper", "paper": "rock"}
            return "first" if beats[item.first_text] == item.second_text else "second"

    monkeypatch.setattr(asking, "build_judge", lambda config, folder: Circle())
    rows = [(f"question {n}", "rock", "scissors", "paper") for n in range(60)]
    won = {("rock", "scissors"), ("scissors", "paper"), ("paper", "rock")}
    for mode, kept in (("best_vs_worst", 60), ("all", 180)):
        settings = config(tmp_path / mode, write_jsonl, None, pairs=mode)
        result = run(settings, rows)
        found = Counter((chosen, rejected) for _, chosen, rejected in every_pair(settings))
        assert set(found) == won and found.total() == kept and min(found.values()) > kept / 6
        (share,) = [share for share in result["audit"] if share["name"] == "transitive"]
        assert (share["mean"], share["n"]) == (0.0, 60) and "cyclic" in share["remedy"]


def test_inconsistent_comparisons_of_several_slots_are_kept_only_instead_of_none(
    tmp_path: Path, write_jsonl: Any, planted: Scripted
) -> None:
    rows = [("q0", "GOOD", "LEAN", "bad"), ("q1", "LEAN", "poor", "LEAN too")]
    for mode, kept, inconsistent in (("best_vs_worst", 2, 1), ("all", 6, 5)):
        settings = config(tmp_path / mode, write_jsonl, None, pairs=mode, inconsistent="keep")
        counts = run(settings, rows)["counts"]
        assert (counts["kept"], counts["kept_inconsistent"]) == (kept, inconsistent)
        assert ("p0", "GOOD", "bad") in every_pair(settings)


def test_the_interval_of_several_slots_is_over_prompts(
    tmp_path: Path, write_jsonl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three comparisons of a prompt that always say the same are no more than one."""

    class Longest(Planted):
        def decide(self, item: Comparison) -> BallotOutcome:
            longer = len(item.first_text) > len(item.second_text)
            return "first" if longer == ("x" in item.first_text) else "second"

    monkeypatch.setattr(asking, "build_judge", lambda config, folder: Longest())
    rows = [(f"question {n}", *((c, 2 * c, 3 * c))) for n in range(40) for c in "xz"[n % 2]]
    settings = config(tmp_path, write_jsonl, None)
    (share,) = [s for s in run(settings, rows)["audit"] if s["name"] == "chosen_is_longer"]
    one_each = wilson(20, 40)
    assert (share["n"], share["mean"]) == (120, 0.5)
    assert (share["low"], share["high"]) == (one_each.low, one_each.high)


def test_balancing_of_slots_that_are_three_on_disk_is_refused(
    tmp_path: Path, write_jsonl: Any, planted: Scripted
) -> None:
    settings = config(tmp_path, write_jsonl, None, balance="temperature")
    with pytest.raises(ConfigError, match="balances two slots, but there are 3"):
        run(settings, [("q0", "GOOD", "bad", "poor")])
    assert planted.asked == 0
