"""What the judge phase asks, keeps, counts and says, with a planted judge and planted answers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from math import comb
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from dpo_dist.config import Config
from dpo_dist.data.preferences import packed
from dpo_dist.errors import DataError
from dpo_dist.judging.judge import Comparison
from dpo_dist.judging.labels import Label
from dpo_dist.phases import asking, sample
from dpo_dist.phases.judge import JudgePhase, _comparisons_of, _pairs
from dpo_dist.phases.sample import SamplePhase
from dpo_dist.runs.run import Run
from dpo_dist.storage.artifacts import phase_directory, write_records
from dpo_dist.storage.figures import to_json
from dpo_dist.storage.records import BallotOutcome, Candidate, Message, Prompt
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
    monkeypatch.setattr(asking, "build_judge", lambda config, folder: planted)
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
    """The phase's result, as the manifest has it, on rows of a prompt and its answers; CUT ones
    are not whole."""
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
        result = to_json(JudgePhase().run(Run(config), out))
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
        SamplePhase().run(Run(settings), out)


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
        JudgePhase().inputs(Run(config(tmp_path, write_jsonl, held_out, **task)))
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
    assert "train.label_smoothing is 0.167\n" in said
    assert ("only train.loss: robust handles" in said) is warned


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


def sampled(slot: int, text: str, **more: Any) -> Candidate:
    values = {"settings": {}, "log_prob": -3.5 * (slot + 1), "prompt_ids": (7, slot)} | more
    return Candidate(
        prompt_id="p",
        slot=slot,
        text=text,
        token_ids=(slot, 9),
        finish_reason="stop",
        engine="planted",
        **values,
    )


@pytest.mark.parametrize(
    ("settings", "plain"),
    [
        ([{}, {}], (True, True)),
        ([{"system": None, "few_shot": []}, {"system": "be brief"}], (True, False)),
        ([{"few_shot": [{"role": "user", "content": "u"}]}, {}], (False, True)),
        ([{"system": "be brief"}, {"system": "be long"}], (False, False)),
    ],
)
@pytest.mark.parametrize("first_is_chosen", [True, False])
def test_a_pair_has_the_tokens_of_its_answers_and_of_the_plain_prompt(
    tmp_path: Path,
    write_jsonl: Any,
    settings: list[dict[str, Any]],
    plain: tuple[bool, bool],
    first_is_chosen: bool,
) -> None:
    prompt = Prompt(id="p", messages=(Message(role="user", content="u"),))
    texts = ("a long answer", "another answer")
    answers = [sampled(n, text, settings=settings[n]) for n, text in enumerate(texts)]
    where = Run(config(tmp_path, write_jsonl, None))
    write_records(where.directory("sample") / "candidates.jsonl", answers)
    (comparison,) = _comparisons_of(prompt, answers, Counter())
    (pair,) = _pairs(where, [Label(comparison, first_is_chosen)])
    assert pair.sampled is not None
    chosen, rejected = (0, 1) if first_is_chosen else (1, 0)
    assert (pair.chosen, pair.rejected) == (texts[chosen], texts[rejected])
    assert pair.sampled.chosen == packed([chosen, 9])
    assert pair.sampled.rejected == packed([rejected, 9])
    assert pair.sampled.prompt == packed([7, plain.index(True)] if any(plain) else [])
    log_probs = (pair.sampled.chosen_log_prob, pair.sampled.rejected_log_prob)
    for slot, log_prob in zip((chosen, rejected), log_probs, strict=True):
        assert log_prob == -3.5 * (slot + 1) if plain[slot] else math.isnan(log_prob)


@pytest.mark.parametrize("show_thinking", [True, False])
def test_the_judge_sees_thoughts_only_if_wanted_and_pairs_have_the_answers(
    tmp_path: Path, write_jsonl: Any, show_thinking: bool
) -> None:
    prompt = Prompt(id="p", messages=(Message(role="user", content="u"),))
    answers = [sampled(0, "an answer", thought="so"), sampled(1, "one without a thought")]
    where = Run(config(tmp_path, write_jsonl, None))
    write_records(where.directory("sample") / "candidates.jsonl", answers)
    (shown,) = _comparisons_of(prompt, answers, Counter(), show_thinking=show_thinking)
    expected = "<think>\nso\n</think>\n\nan answer" if show_thinking else "an answer"
    assert (shown.first_text, shown.second_text) == (expected, "one without a thought")
    (pair,) = _pairs(where, [Label(shown, True)])
    assert pair.chosen == "an answer"
