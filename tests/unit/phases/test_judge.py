"""What the judge phase asks, keeps, counts and says, with a planted judge and planted answers."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from dpo_dist.artifacts import phase_directory, read_records, write_records
from dpo_dist.config import Config
from dpo_dist.errors import ConfigError, DataError, JudgeFailed
from dpo_dist.evaluation.statistics import wilson
from dpo_dist.judging.judge import Comparison
from dpo_dist.phases import judge, sample
from dpo_dist.records import Ballot, BallotOutcome, Candidate, Message, Prompt, Verdict
from tests.unit.judging.test_panel import Planted

LONG = "please explain how a bicycle stays upright while it is moving slowly"
SORRY = "I'm sorry, but I can't assist with that."


class Scripted(Planted):
    """Prefers GOOD; FIRST by its position, and LEAN only where it is shown first."""

    def decide(self, item: Comparison) -> BallotOutcome:
        if "FIRST" in item.first_text:
            return "first"
        if "LEAN" in item.first_text + item.second_text:
            return "first" if "LEAN" in item.first_text else "tie"
        return super().decide(item)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    planted = Scripted()
    monkeypatch.setattr(judge, "build_judge", lambda config, folder: planted)
    return planted


def config(tmp_path: Path, write_jsonl: Any, held_out: list[str] | None, **section: Any) -> Config:
    task = {"type": "metric", "metrics": [{"type": "json_schema", "schema_path": "s"}]}
    values: dict[str, Any] = {
        "run": {"name": "test", "output_dir": tmp_path / "runs"},
        "model": {"base": "org/model"},
        "sample": {"prompts": {"path": tmp_path / "prompts.jsonl"}, "engine": {"type": "hf"}},
        "judge": {"judge": task, "canaries": None, **section},
    }
    if held_out is not None:
        rows = [{"id": f"h{n}", "prompt": text} for n, text in enumerate(held_out)]
        path = write_jsonl(tmp_path / "eval.jsonl", rows)
        values["evaluate"] = {"prompts": {"path": path}, "metrics": task["metrics"]}
    return Config.model_validate(values)


def run(config: Config, rows: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    """The phase's result on rows of a prompt and its answers; CUT ones are not whole."""
    folder = config.run.output_dir / "test" / "sample"
    folder.mkdir(parents=True, exist_ok=True)
    prompts = [
        Prompt(id=f"p{n}", messages=(Message(role="user", content=row[0]),))
        for n, row in enumerate(rows)
    ]
    write_records(folder / "prompts.jsonl", prompts)
    candidates = [
        Candidate(
            prompt_id=f"p{n}",
            slot=slot,
            text=text,
            token_ids=(1,),
            finish_reason="length" if "CUT" in text else "stop",
            settings={},
            engine="planted",
        )
        for n, row in enumerate(rows)
        for slot, text in enumerate(row[1:])
    ]
    write_records(folder / "candidates.jsonl", candidates)
    with phase_directory(folder.parent / "judge", {}) as out:
        result = judge.run(config, out)
    counts = result["counts"]
    compared = sum(comb(len(row) - 1, 2) for row in rows)
    assert counts["in"] == counts["kept"] + sum(counts["dropped"].values()) == compared
    return result


def pairs(config: Config) -> dict[str, str]:
    """The chosen answers by prompt id."""
    return {prompt: chosen for prompt, chosen, _ in every_pair(config)}


def every_pair(config: Config) -> list[tuple[str, str, str]]:
    """(prompt id, chosen, rejected)"""
    path = config.run.output_dir / "test" / "judge" / "preferences" / "pairs.parquet"
    rows = pyarrow.parquet.read_table(path).to_pylist()
    return [
        (row["prompt_id"], *(row[key][-1]["content"] for key in ("chosen", "rejected")))
        for row in rows
    ]


def test_what_overlaps_with_the_evaluation_is_dropped_before_it_is_asked_about(
    tmp_path: Path, write_jsonl: Any, planted: Scripted
) -> None:
    rows = [("q0", "GOOD", "bad"), (f"{LONG} uphill", "GOOD", "bad"), ("q2", "bad", "GOOD")]
    settings = config(tmp_path, write_jsonl, [LONG])
    counts = run(settings, rows)["counts"]
    assert counts == {"in": 3, "kept": 2, "dropped": {"evaluation_overlap": 1}}
    assert planted.asked == 4 and pairs(settings) == {"p0": "GOOD", "p2": "GOOD"}


def test_without_an_evaluation_nothing_overlaps(
    tmp_path: Path, write_jsonl: Any, planted: Scripted
) -> None:
    settings = config(tmp_path, write_jsonl, None)
    assert run(settings, [(LONG, "GOOD", "bad")])["counts"]["kept"] == 1


def test_an_evaluation_prompt_ends_the_phases_before_anything_is_done(
    tmp_path: Path, write_jsonl: Any, planted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path, write_jsonl, ["q1"])
    with pytest.raises(DataError, match="'h0' is also the training prompt 'p1'"):
        run(settings, [("q0", "GOOD", "bad"), ("Q1 ", "GOOD", "bad")])
    assert planted.asked == 0

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing may be loaded before the prompts are known to be sound")

    monkeypatch.setattr(sample, "load_tokenizer", load)
    write_jsonl(tmp_path / "prompts.jsonl", [{"id": "a", "prompt": "q0"}, {"prompt": "Q1 "}])
    with phase_directory(tmp_path / "out", {}) as out, pytest.raises(DataError, match="proves"):
        sample.run(settings, out)


def test_other_held_out_prompts_are_another_fingerprint(tmp_path: Path, write_jsonl: Any) -> None:
    folder = tmp_path / "runs" / "test" / "sample"
    folder.mkdir(parents=True)
    for name in ("candidates.jsonl", "manifest.json"):
        (folder / name).write_text("{}")
    schema = tmp_path / "s"
    schema.write_text("{}")
    metric = {"type": "json_schema", "schema_path": schema}
    task = {"judge": {"type": "metric", "metrics": [metric]}}
    found = [
        judge.inputs(config(tmp_path, write_jsonl, held_out, **task))
        for held_out in (None, ["a"], ["b"], ["b"])
    ]
    assert found[0] != found[1] != found[2] == found[3]


def test_a_chosen_refusal_is_dropped(tmp_path: Path, write_jsonl: Any, planted: Scripted) -> None:
    rows = [("q0", f"{SORRY} GOOD", "Sure."), ("q1", "GOOD", SORRY)]
    settings = config(tmp_path, write_jsonl, None)
    counts = run(settings, rows)["counts"]
    assert counts == {"in": 2, "kept": 1, "dropped": {"refusal_chosen": 1}}
    assert pairs(settings) == {"p1": "GOOD"}


def test_balancing_leaves_the_audit_as_it_is(
    tmp_path: Path, write_jsonl: Any, planted: Scripted
) -> None:
    rows = [(f"q{n}", "GOOD", "poor") if n < 4 else (f"q{n}", "poor", "GOOD") for n in range(5)]
    settings = config(tmp_path, write_jsonl, None, balance="temperature")
    result = run(settings, rows)
    assert result["counts"] == {"in": 5, "kept": 2, "dropped": {"unbalanced": 3}}
    shares = {share["name"]: share for share in result["audit"]}
    assert shares["first_slot_where_similar"]["n"] == 5
    assert shares["first_slot_where_similar"]["mean"] == 0.8
    assert set(pairs(settings).values()) == {"GOOD"}


@pytest.mark.parametrize(("loss", "warned"), [("robust", False), ("sigmoid", True), (None, False)])
def test_kept_inconsistent_pairs_are_counted_and_ask_for_their_smoothing(
    tmp_path: Path,
    write_jsonl: Any,
    planted: Scripted,
    capsys: pytest.CaptureFixture[str],
    loss: str | None,
    warned: bool,
) -> None:
    settings = config(tmp_path, write_jsonl, None, inconsistent="keep")
    if loss is not None:
        values = settings.model_dump()
        values["train"] = {"loss": loss, "label_smoothing": 0.1 if loss == "robust" else 0.0}
        settings = Config.model_validate(values)
    rows = [
        ("q0", "GOOD", "bad"),
        ("q1", "FIRST", "FIRST too"),
        ("q2", "poor", "LEAN"),
    ]
    counts = run(settings, rows)["counts"]
    assert counts == {"in": 3, "kept": 3, "dropped": {}, "kept_inconsistent": 2}
    assert pairs(settings)["p0"] == "GOOD" and pairs(settings)["p2"] == "LEAN"
    said = capsys.readouterr().err
    assert "2 of 3 pairs are inconsistent and kept" in said
    assert "train.label_smoothing: 0.167 " in said
    assert ("train.loss: robust; no other" in said) is warned


def test_by_default_inconsistent_pairs_are_dropped(
    tmp_path: Path, write_jsonl: Any, planted: Scripted
) -> None:
    rows = [("q0", "GOOD", "bad"), ("q1", "FIRST", "FIRST too"), ("q2", "poor", "LEAN")]
    counts = run(config(tmp_path, write_jsonl, None), rows)["counts"]
    assert counts == {
        "in": 3,
        "kept": 1,
        "dropped": {"inconsistent": 2},
    }


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

    monkeypatch.setattr(judge, "build_judge", build)
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
    with pytest.raises(DataError, match=r"decided no pair; dropped: \{'inconsistent': 6\}"):
        run(settings, [("q0", "FIRST", "FIRST too", "FIRST of all", "FIRST and last")])


def test_a_cycle_is_one_pair_or_three(
    tmp_path: Path, write_jsonl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Circle(Planted):
        def decide(self, item: Comparison) -> BallotOutcome:
            beats = {"rock": "scissors", "scissors": "paper", "paper": "rock"}
            return "first" if beats[item.first_text] == item.second_text else "second"

    monkeypatch.setattr(judge, "build_judge", lambda config, folder: Circle())
    rows = [(f"question {n}", "rock", "scissors", "paper") for n in range(60)]
    won = {("rock", "scissors"), ("scissors", "paper"), ("paper", "rock")}
    for mode, kept in (("best_vs_worst", 60), ("all", 180)):
        settings = config(tmp_path / mode, write_jsonl, None, pairs=mode)
        result = run(settings, rows)
        found = Counter((chosen, rejected) for _, chosen, rejected in every_pair(settings))
        assert set(found) == won and found.total() == kept and min(found.values()) > kept / 6
        (share,) = [share for share in result["audit"] if share["name"] == "transitive"]
        assert (share["mean"], share["n"]) == (0.0, 60) and "circles" in share["remedy"]


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

    monkeypatch.setattr(judge, "build_judge", lambda config, folder: Longest())
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
    with pytest.raises(ConfigError, match="weighs two slots against each other, and there are 3"):
        run(settings, [("q0", "GOOD", "bad", "poor")])
    assert planted.asked == 0
