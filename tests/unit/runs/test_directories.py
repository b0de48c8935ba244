"""Where a run keeps its phases, with rounds and without."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dpo_dist.config import Config
from dpo_dist.errors import ConfigError, DataError
from dpo_dist.runs.directories import (
    ROUND_PHASES,
    phase_dir,
    phases_of,
    sampling_seed,
    select_round,
    steps_of,
)
from dpo_dist.runs.weights import arm_weights, reference_weights, start_weights

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


def test_without_rounds_everything_is_where_it_was(tmp_path: Path) -> None:
    plain = config(tmp_path)
    assert [step.phase for step in steps_of(plain)] == phases_of(plain)
    assert {phase_dir(plain, phase) for phase in phases_of(plain)} == {
        tmp_path / "test" / phase
        for phase in ("sft", "sample", "judge", "train", "evaluate", "report")
    }
    assert select_round(plain, "judge", None) is plain
    assert sampling_seed(plain) == plain.run.seed and reference_weights(plain) is None


def test_every_round_keeps_its_own_directories(tmp_path: Path) -> None:
    rounds = config(tmp_path, rounds=2)
    assert [str(step) for step in steps_of(rounds)] == [
        "sft",
        *(f"round-{n}/{phase}" for n in (1, 2) for phase in ROUND_PHASES),
        "report",
    ]
    for step in steps_of(rounds):
        at = rounds.at_round(step.round)
        assert phase_dir(at, step.phase) == tmp_path / "test" / str(step)
    assert rounds.round == 0, "the run file itself is at no round"


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
        select_round(config(tmp_path, rounds=rounds), "judge", number)


def test_what_lies_outside_of_the_rounds_needs_no_number(tmp_path: Path) -> None:
    rounds = config(tmp_path, rounds=3)
    assert select_round(rounds, "report", None) is rounds
    assert select_round(rounds, "train", 2).round == 2


def test_a_round_starts_where_the_one_before_has_ended(tmp_path: Path, tiny_model: Path) -> None:
    rounds = config(tmp_path, tiny_model, sft=None, model={"base": str(tiny_model)}, rounds=3)
    assert start_weights(rounds.at_round(1)) == arm_weights(rounds, "sft")
    with pytest.raises(
        DataError, match=r"round 3 starts from the model trained in round 2, .*--round 2"
    ):
        start_weights(rounds.at_round(3))
    trained = tmp_path / "test" / "round-2" / "train"
    trained.mkdir(parents=True)
    (trained / "model").symlink_to(tiny_model)
    (trained / "manifest.json").write_text("{}")
    start = start_weights(rounds.at_round(3))
    assert start.model == str(trained / "model")
    assert arm_weights(rounds.at_round(2), "dpo") == start
    assert arm_weights(rounds.at_round(3), "sft") == arm_weights(rounds, "sft")


def test_the_reference_is_another_in_later_rounds_only(tmp_path: Path, tiny_model: Path) -> None:
    model = {"sft": None, "model": {"base": str(tiny_model)}}
    previous = config(tmp_path, **model, rounds=2)
    initial = config(tmp_path, **model, rounds={"count": 2, "reference": "initial"})
    assert reference_weights(previous.at_round(2)) is None
    assert reference_weights(initial.at_round(1)) is None
    assert reference_weights(initial.at_round(2)) == arm_weights(initial, "sft")


def test_rounds_draw_from_seeds_that_never_meet(tmp_path: Path) -> None:
    rounds = config(tmp_path, rounds=3)
    seeds = [sampling_seed(rounds.at_round(n)) for n in (1, 2, 3)]
    assert seeds[0] == rounds.run.seed
    assert min(b - a for a, b in pairwise(seeds)) > 10**6
