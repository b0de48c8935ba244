"""What a round takes over from the rounds before it, and what it does not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dpo_dist.config import Config
from dpo_dist.judging.judge import Comparison
from dpo_dist.judging.panel import Contest
from dpo_dist.judging.spend import Ledger
from dpo_dist.phases.asking import ask
from dpo_dist.phases.known_answers import known_answers
from dpo_dist.phases.rounds import part_identity, round_prompts
from dpo_dist.runs.directories import phase_dir
from dpo_dist.storage.artifacts import phase_directory, write_json, write_records
from dpo_dist.storage.records import Generation, Message, Prompt
from tests.unit.judging.test_panel import Planted
from tests.unit.runs.test_directories import config

WEIGHTS = {"base": {"model": "b"}, "sft": {"model": "s"}, "dpo": {"model": "two"}}
PROMPTS = {"sha256": "x", "limit": None}


def evaluated(config: Config, weights: dict[str, Any], **inputs: Any) -> None:
    """A finished evaluation, in which every arm has answered one prompt."""
    folder = phase_dir(config, "evaluate")
    answers = [
        Generation(
            prompt_id="p",
            arm=arm,
            decoding=0,
            text=f"{arm} in round {config.round}",
            token_ids=(1,),
            finish_reason="stop",
            engine="e",
        )
        for arm in weights
    ]
    write_records(folder / "generations.jsonl", answers)
    inputs = {"weights": weights, "prompts": PROMPTS} | inputs
    write_json(folder / "fingerprint.json", {"inputs": inputs})
    write_json(folder / "manifest.json", {"config": config.model_dump(mode="json")})


def known(config: Config) -> list[str]:
    return [
        answer.text
        for answer in known_answers(config, {"weights": WEIGHTS, "prompts": PROMPTS}).values()
    ]


def test_arms_of_the_same_weights_are_taken_over(tmp_path: Path) -> None:
    rounds = config(tmp_path, rounds=3)
    assert known(rounds.at_round(1)) == known(rounds.at_round(2)) == []
    evaluated(rounds.at_round(1), WEIGHTS | {"dpo": {"model": "one"}})
    assert known(rounds.at_round(2)) == ["base in round 1", "sft in round 1"]
    evaluated(rounds.at_round(2), WEIGHTS | {"sft": {"model": "another"}})
    assert sorted(known(rounds.at_round(3))) == [
        "base in round 2",
        "dpo in round 2",
        "sft in round 1",
    ]


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
def test_answers_to_other_settings_are_not(tmp_path: Path, change: dict[str, Any]) -> None:
    rounds = config(tmp_path, rounds=2)
    evaluated(rounds.at_round(1), WEIGHTS)
    values = rounds.model_dump(mode="json")
    other = Config.model_validate(
        values | {section: values[section] | keys for section, keys in change.items()}
    )
    assert known(rounds.at_round(2)) and not known(other.at_round(2))


def test_answers_to_other_prompts_or_of_an_unfinished_evaluation_are_not(tmp_path: Path) -> None:
    rounds = config(tmp_path, rounds=2)
    evaluated(rounds.at_round(1), WEIGHTS, prompts={"sha256": "y", "limit": None})
    assert not known(rounds.at_round(2))
    evaluated(rounds.at_round(1), WEIGHTS)
    assert known(rounds.at_round(2))
    (phase_dir(rounds.at_round(1), "evaluate") / "manifest.json").unlink()
    assert not known(rounds.at_round(2))


def test_a_split_gives_every_round_its_own_prompts(tmp_path: Path, write_jsonl) -> None:
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": f"question {n}"} for n in range(10)])
    split = config(tmp_path, rounds={"count": 3, "prompts": "split"})
    parts = [{p.id for p in round_prompts(split.at_round(n))} for n in (1, 2, 3)]
    assert sorted(map(len, parts)) == [3, 3, 4] and len(set.union(*parts)) == 10
    assert part_identity(split.at_round(2)) == {"part": "2 of 3"}
    whole = config(tmp_path, rounds=3).at_round(2)
    assert len(list(round_prompts(whole))) == 10 and part_identity(whole) == {}
    assert (
        len(list(round_prompts(config(tmp_path)))) == 10 and part_identity(config(tmp_path)) == {}
    )


class Paid(Planted):
    def expected_usage(self, comparisons: Sequence[Comparison]) -> dict[str, int]:
        return {"input_tokens": len(comparisons)} if comparisons else {}


def test_no_round_pays_for_the_ballots_of_another(tmp_path: Path) -> None:
    prompt = Prompt(id="p", messages=(Message(role="user", content="q"),))
    contest = Contest(prompt, "dpo", "sft", "GOOD", "bad")
    rounds = config(tmp_path, rounds=2)
    judges = []
    for number in (1, 2):
        at = rounds.at_round(number)
        judges.append(Paid())
        with phase_directory(phase_dir(at, "evaluate"), {}) as out:
            judged = ask(
                *(judges[-1], Ledger(), [contest], out, at), approve=lambda cost: None, name="t"
            )
        assert judged.verdicts[0].preferred == "dpo"
    assert [judge.asked for judge in judges] == [2, 0]
