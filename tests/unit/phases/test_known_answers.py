"""Answers of the same weights are generated once, whichever round or point of a sweep asks for
them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpo_dist.cli import main
from dpo_dist.config import Config
from dpo_dist.phases import evaluate
from dpo_dist.phases.known_answers import known_answers
from dpo_dist.runs.run import Run
from dpo_dist.storage.artifacts import write_json, write_records
from dpo_dist.storage.records import Generation
from tests.report_run import manifest
from tests.tiny import make_model
from tests.unit.runs.test_run import at

HELD_OUT = 5
WEIGHTS = {"base": {"model": "b"}, "sft": {"model": "s"}, "dpo": {"model": "two"}}
PROMPTS = {"sha256": "x", "limit": None}


@pytest.fixture
def run_file(tmp_path: Path, tiny_model: Path, write_run, write_jsonl) -> Path:
    write_jsonl(tmp_path / "eval.jsonl", [{"prompt": f"held out {n}"} for n in range(HELD_OUT)])
    return write_run(
        model={"base": str(tiny_model), "dtype": "float32"},
        evaluate={
            "prompts": {"path": "eval.jsonl"},
            "engine": {"type": "hf", "max_model_len": 256},
            "arms": ["base", "sft"],
            "decodings": [{"temperature": 1.0}],
            "max_new_tokens": 4,
            "metrics": [{"type": "faithful_quotes", "field": "evidence"}],
        },
    )


def ask(run_file: Path, point: str, *more: str) -> int:
    return main(["evaluate", str(run_file), "--point", point, *more])


def results(tmp_path: Path, point: str) -> tuple[str, dict[str, Any]]:
    folder = tmp_path / "runs" / "test" / "sweep" / point / "evaluate"
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return (folder / "generations.jsonl").read_text(), manifest


def test_another_points_answers_are_taken_over_by_every_shard(
    run_file: Path, tmp_path: Path, monkeypatch
) -> None:
    assert ask(run_file, "x=1") == 0
    first, manifest = results(tmp_path, "x=1")
    assert manifest["taken_over"] == 0 and first.count("\n") == 2 * HELD_OUT

    def no_engine(*_: Any, **__: Any) -> None:
        raise AssertionError("there is nothing to generate")

    monkeypatch.setattr(evaluate, "build_engine", no_engine)
    assert ask(run_file, "x=2") == 0
    for shard in ("0/2", "1/2"):
        assert ask(run_file, "x=3", "--shard", shard) == 0
    assert ask(run_file, "x=3") == 0
    for point in ("x=2", "x=3"):
        again, manifest = results(tmp_path, point)
        assert again == first and manifest["taken_over"] == 2 * HELD_OUT


@pytest.mark.parametrize(
    "override",
    [
        "evaluate.max_new_tokens=5",
        "evaluate.decodings=[{temperature: 0.9}]",
        "evaluate.engine.batch_size=3",
        "run.seed=18",
        "evaluate.prompts.limit=4",
        "model.dtype=bfloat16",
    ],
)
def test_answers_given_otherwise_are_not(run_file: Path, tmp_path: Path, override: str) -> None:
    assert ask(run_file, "x=1") == 0
    assert ask(run_file, "x=2", "--set", override) == 0
    assert results(tmp_path, "x=2")[1]["taken_over"] == 0


def test_an_arm_with_other_weights_answers_for_itself(run_file: Path, tmp_path: Path) -> None:
    retrained = make_model(tmp_path / "retrained", seed=1)
    assert ask(run_file, "x=1") == 0
    assert ask(run_file, "x=2", "--set", f"model.sft={retrained}") == 0
    first, again = (results(tmp_path, point)[0].splitlines() for point in ("x=1", "x=2"))
    assert first[:HELD_OUT] == again[:HELD_OUT], "the base's answers"
    assert not set(first[HELD_OUT:]) & set(again[HELD_OUT:])
    assert results(tmp_path, "x=2")[1]["taken_over"] == HELD_OUT


def test_a_point_that_is_not_complete_is_not_believed(run_file: Path, tmp_path: Path) -> None:
    assert ask(run_file, "x=1") == 0
    (tmp_path / "runs/test/sweep/x=1/evaluate/manifest.json").unlink()
    assert ask(run_file, "x=2") == 0
    assert results(tmp_path, "x=2")[1]["taken_over"] == 0


def evaluated(run: Run, weights: dict[str, Any], **inputs: Any) -> None:
    """A finished evaluation of a round, in which every arm has answered one prompt."""
    folder = run.directory("evaluate")
    answers = [
        Generation(
            prompt_id="p",
            arm=arm,
            decoding=0,
            text=f"{arm} in round {run.round}",
            token_ids=(1,),
            finish_reason="stop",
            engine="e",
        )
        for arm in weights
    ]
    write_records(folder / "generations.jsonl", answers)
    inputs = {"weights": weights, "prompts": PROMPTS} | inputs
    write_json(folder / "fingerprint.json", {"inputs": inputs})
    write_json(folder / "manifest.json", manifest("evaluate", run.config))


def known(run: Run) -> list[str]:
    return [
        answer.text
        for answer in known_answers(run, {"weights": WEIGHTS, "prompts": PROMPTS}).values()
    ]


def test_arms_of_the_same_weights_are_taken_over_by_later_rounds(tmp_path: Path) -> None:
    first, second, third = at(tmp_path, rounds=3).rounds()
    assert known(first) == known(second) == []
    evaluated(first, WEIGHTS | {"dpo": {"model": "one"}})
    assert known(second) == ["base in round 1", "sft in round 1"]
    evaluated(second, WEIGHTS | {"sft": {"model": "another"}})
    assert sorted(known(third)) == ["base in round 2", "dpo in round 2", "sft in round 1"]


@pytest.mark.parametrize(
    "change",
    [
        {"evaluate": {"max_new_tokens": 7}},
        {"evaluate": {"decodings": [{"temperature": 0.3}]}},
        {"evaluate": {"engine": {"type": "hf", "batch_size": 3}}},
        {"sample": {"engine": {"type": "hf", "batch_size": 3}}},
        {"run": {"seed": 5}},
        {"model": {"dtype": "float32"}},
    ],
)
def test_no_round_takes_over_answers_to_other_settings(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    first, second = at(tmp_path, rounds=2).rounds()
    evaluated(first, WEIGHTS)
    values = second.config.dump()
    other = Config.model_validate(
        values | {section: values[section] | keys for section, keys in change.items()}
    )
    assert known(second) and not known(Run(other, round=2))


def test_no_round_takes_over_answers_to_other_prompts_or_of_an_unfinished_evaluation(
    tmp_path: Path,
) -> None:
    first, second = at(tmp_path, rounds=2).rounds()
    evaluated(first, WEIGHTS, prompts={"sha256": "y", "limit": None})
    assert not known(second)
    evaluated(first, WEIGHTS)
    assert known(second)
    (first.directory("evaluate") / "manifest.json").unlink()
    assert not known(second)
