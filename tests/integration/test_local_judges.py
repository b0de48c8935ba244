"""The judge phase with judges that need no provider: a reward model, a server, and people."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_dist.cli import main
from dpo_dist.config.runfile import load_config
from dpo_dist.phases.selftest import write_candidates
from dpo_dist.runs.run import Run
from dpo_dist.storage.artifacts import read_json, write_json
from tests import openai_server
from tests.contracts.test_judges import fill_in, prefers_good
from tests.tiny import make_reward_model

PAIRS = 38  # of the planted candidates, those worth a judgement


@pytest.fixture
def judge_with(tmp_path: Path, write_run):
    """`judge_with(section, *options)` is the judge phase's exit code on planted candidates."""
    (tmp_path / "rubric.md").write_text("Prefer GOOD.")
    sample = {"prompts": {"path": "unused.jsonl"}, "engine": {"type": "hf"}}

    def judge(section: dict[str, object], *options: str) -> int:
        judge = {"judge": section, "canaries": None}
        run = write_run(model={"base": "unused"}, sample=sample, judge=judge)
        write_candidates(Run(load_config(run)))
        write_json(tmp_path / "runs" / "test" / "sample" / "manifest.json", {})
        return main(["judge", str(run), *options])

    return judge


def manifest(tmp_path: Path) -> dict:
    return read_json(tmp_path / "runs" / "test" / "judge" / "manifest.json")


def test_a_reward_model_labels_and_its_batches_may_change(
    judge_with, tmp_path: Path, capsys
) -> None:
    reward = make_reward_model(tmp_path / "reward", max_position_embeddings=1024)
    section = {"type": "reward_model", "model": str(reward), "max_length": 1024}
    assert judge_with(section) == 0
    assert manifest(tmp_path)["judge"].startswith(f"reward_model:{reward}:")
    assert manifest(tmp_path)["counts"]["kept"] > 0
    assert manifest(tmp_path)["spend"] is None
    assert judge_with(section, "--set", "judge.judge.batch_size=1") == 0
    assert "already done" in capsys.readouterr().err
    assert judge_with(section, "--set", "judge.judge.tie_margin=1") == 2
    assert "tie_margin: 0.0 -> 1" in capsys.readouterr().err


def test_people_are_waited_for(judge_with, tmp_path: Path, capsys) -> None:
    section = {"type": "human", "sheet": "sheet.csv"}
    assert judge_with(section) == 1
    assert "fill in the column `choice`" in capsys.readouterr().err
    fill_in(tmp_path / "sheet.csv", prefers_good)
    assert judge_with(section) == 0
    assert manifest(tmp_path)["judge"] == "human:sheet"
    assert manifest(tmp_path)["counts"]["kept"] == PAIRS


def test_a_server_of_one_s_own_needs_no_key_and_no_confirmation(judge_with, tmp_path: Path) -> None:
    with openai_server.serve() as server:
        section = {
            "type": "openai_compatible",
            "model": openai_server.MODEL,
            "base_url": server.url,
            "rubric": "rubric.md",
        }
        assert judge_with(section) == 0
    assert server.keys == {"Bearer none"}
    assert len(server.requests) == 2 * PAIRS
    assert manifest(tmp_path)["counts"]["kept"] == PAIRS
