"""Where a run keeps its phases, with rounds, with points of a sweep, and without."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dpo_dist.config import Config
from dpo_dist.errors import ConfigError, DataError
from dpo_dist.runs.run import ROUND_PHASES, Run

TASK = {"type": "metric", "metrics": [{"type": "label_match", "field": "f"}]}


def config(tmp_path: Path, base: object = "org/model", **sections: Any) -> Config:
    prompts = {"path": tmp_path / "p.jsonl"}
    return Config.model_validate(
        {
            "run": {"name": "test", "output_dir": tmp_path},
            "model": {"base": str(base), "sft": "phase"},
            "sft": {"data": prompts},
            "sample": {"prompts": prompts, "engine": {"type": "hf"}},
            "judge": {"judge": TASK},
            "train": {},
            "evaluate": {"prompts": prompts, "metrics": TASK["metrics"]},
            **sections,
        }
    )


def at(tmp_path: Path, **sections: Any) -> Run:
    return Run(config(tmp_path, **sections))


def test_without_rounds_every_phase_is_in_the_run_itself(tmp_path: Path) -> None:
    plain = at(tmp_path)
    assert [step.phase for step in plain.steps] == plain.phases
    assert {plain.directory(phase) for phase in plain.phases} == {
        tmp_path / "test" / phase
        for phase in ("sft", "sample", "judge", "train", "evaluate", "report")
    }
    assert plain.folder == plain.root == tmp_path / "test" and plain.rounds() == []
    assert plain.select_round("judge", None) is plain
    assert plain.sampling_seed == plain.config.run.seed and plain.reference_weights() is None
    assert plain.earlier_evaluations() == []


def test_every_round_keeps_its_own_directories(tmp_path: Path) -> None:
    run = at(tmp_path, rounds=2)
    assert [str(step) for step in run.steps] == [
        "sft",
        *(f"round-{n}/{phase}" for n in (1, 2) for phase in ROUND_PHASES),
        "report",
    ]
    for step in run.steps:
        assert run.at_round(step.round).directory(step.phase) == tmp_path / "test" / str(step)
    assert run.round == 0, "the run itself is at no round"
    assert [found.folder.name for found in run.rounds()] == ["round-1", "round-2"]
    assert run.at_round(2).earlier_evaluations() == [run.at_round(1).directory("evaluate")]


def test_a_point_has_its_training_and_evaluation_and_the_run_everything_else(
    tmp_path: Path,
) -> None:
    pairs = {"source": "path", "path": tmp_path / "p.jsonl"}
    own = config(tmp_path, sft=None, model={"base": "m"}, preferences=pairs)
    run = Run(own, point="beta=0.1")
    root = tmp_path / "test"
    assert run.directory("sample") == root / "sample"
    assert run.directory("train") == root / "sweep" / "beta=0.1" / "train"
    assert run.phases == ["train", "evaluate", "report"]
    assert run.directory("report") == root / "sweep" / "beta=0.1" / "report"
    assert run.folder == root / "sweep" / "beta=0.1" and run.root == root
    for point in ("beta=0.1", "beta=0.3"):
        (root / "sweep" / point / "evaluate").mkdir(parents=True)
    others = [root / "evaluate", root / "sweep" / "beta=0.3" / "evaluate"]
    assert run.earlier_evaluations() == others


@pytest.mark.parametrize("point", ["", "..", ".x", "a/b", "a b", "-a", "x" * 201, "a\n"])
def test_a_point_s_name_is_that_of_a_directory(tmp_path: Path, point: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a directory"):
        Run(config(tmp_path), point=point)


@pytest.mark.parametrize(
    ("rounds", "number", "message"),
    [
        (3, None, r"add --round N \(1 to 3\)"),
        (3, 4, "--round 4: the run file has rounds 1 to 3"),
        (3, 0, "--round 0"),
        (None, 1, "--round 1: the run file has no `rounds`"),
    ],
)
def test_a_command_names_a_round_that_there_is(
    tmp_path: Path, rounds: int | None, number: int | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        at(tmp_path, rounds=rounds).select_round("judge", number)


def test_what_lies_outside_of_the_rounds_needs_no_number(tmp_path: Path) -> None:
    run = at(tmp_path, rounds=3)
    assert run.select_round("report", None) is run
    assert run.select_round("train", 2).round == 2


def test_a_round_starts_where_the_one_before_has_ended(tmp_path: Path, tiny_model: Path) -> None:
    run = at(tmp_path, sft=None, model={"base": str(tiny_model)}, rounds=3)
    assert run.at_round(1).start_weights() == run.weights("sft")
    with pytest.raises(
        DataError, match=r"round 3 starts from the model trained in round 2, .*--round 2"
    ):
        run.at_round(3).start_weights()
    trained = tmp_path / "test" / "round-2" / "train"
    trained.mkdir(parents=True)
    (trained / "model").symlink_to(tiny_model)
    (trained / "manifest.json").write_text("{}")
    start = run.at_round(3).start_weights()
    assert start.model == str(trained / "model")
    assert run.at_round(2).weights("dpo") == start
    assert run.at_round(3).weights("sft") == run.weights("sft")


def test_the_reference_is_another_in_later_rounds_only(tmp_path: Path, tiny_model: Path) -> None:
    model = {"sft": None, "model": {"base": str(tiny_model)}}
    previous = at(tmp_path, **model, rounds=2)
    initial = at(tmp_path, **model, rounds={"count": 2, "reference": "initial"})
    assert previous.at_round(2).reference_weights() is None
    assert initial.at_round(1).reference_weights() is None
    assert initial.at_round(2).reference_weights() == initial.weights("sft")
    assert (previous.at_round(2).reference_name, initial.at_round(2).reference_name) == (
        "round 1",
        "base",
    )


def test_rounds_draw_from_seeds_that_never_meet(tmp_path: Path) -> None:
    seeds = [run.sampling_seed for run in at(tmp_path, rounds=3).rounds()]
    assert seeds[0] == config(tmp_path).run.seed
    assert min(b - a for a, b in pairwise(seeds)) > 10**6


def test_a_run_is_trained_once_every_training_is_complete(tmp_path: Path) -> None:
    run = at(tmp_path, rounds=2)
    for folder in (
        run.root / "sft",
        run.root / "round-1" / "train",
        run.root / "round-2" / "train",
    ):
        assert not run.is_trained()
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
    assert run.is_trained()
    assert run.require("sft") == run.root / "sft"
    with pytest.raises(DataError, match=r"sample is not complete: run the phase `sample` first"):
        run.at_round(1).require("sample")


def test_a_split_gives_every_round_its_own_prompts(tmp_path: Path, write_jsonl) -> None:
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": f"question {n}"} for n in range(10)])
    split = at(tmp_path, rounds={"count": 3, "prompts": "split"}).rounds()
    parts = [{prompt.id for prompt in run.prompts()} for run in split]
    assert sorted(map(len, parts)) == [3, 3, 4] and len(set.union(*parts)) == 10
    assert split[1].prompts_part == "2 of 3"
    for whole in (at(tmp_path, rounds=3).at_round(2), at(tmp_path)):
        assert len(list(whole.prompts())) == 10 and whole.prompts_part is None
