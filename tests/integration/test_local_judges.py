"""The judge phase with judges that need no provider: a reward model, a server, and people."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_dist.artifacts import read_json
from dpo_dist.cli import main
from tests import openai_server
from tests.contracts.test_judges import fill_in
from tests.tiny import make_reward_model

PROMPTS = 6


@pytest.fixture
def judge_with(tmp_path: Path, tiny_model: Path, write_run, write_jsonl):
    """Sample once; then `judge_with(section, *options)` is the judge phase's exit code."""
    rows = [{"id": f"p{n}", "prompt": f"question {n}"} for n in range(PROMPTS)]
    write_jsonl(tmp_path / "prompts.jsonl", rows)
    (tmp_path / "rubric.md").write_text("Prefer GOOD.")
    sample = {
        "prompts": {"path": "prompts.jsonl"},
        "engine": {"type": "hf", "max_model_len": 512},
        # Hardly one of a random model's answers ends before its room does.
        "slots": [{"temperature": 0.7}, {"temperature": 1.2, "top_p": 0.9}],
        "max_new_tokens": 300,
    }
    model = {"base": str(tiny_model), "dtype": "float32"}

    def judge(section: dict[str, object], *options: str) -> int:
        run = write_run(model=model, sample=sample, judge={"judge": section})
        assert main(["sample", str(run)]) == 0
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
    assert "done before" in capsys.readouterr().err
    assert judge_with(section, "--set", "judge.judge.tie_margin=1") == 2
    assert "tie_margin: 0.0 -> 1" in capsys.readouterr().err


def test_people_are_waited_for(judge_with, tmp_path: Path, capsys) -> None:
    section = {"type": "human", "sheet": "sheet.csv"}
    assert judge_with(section) == 1
    assert "fill in the column `choice`" in capsys.readouterr().err
    longer = {}

    def prefers_longer(row: dict[str, str]) -> str:
        first, second = len(row["answer_1"]), len(row["answer_2"])
        longer[row["number"]] = max(first, second)
        return "1" if first > second else "2"

    fill_in(tmp_path / "sheet.csv", prefers_longer)
    assert judge_with(section) == 0
    assert manifest(tmp_path)["judge"] == "human:sheet"
    assert manifest(tmp_path)["counts"]["kept"] == len(longer) // 2 > 0


def test_a_server_of_one_s_own_needs_no_key_and_no_confirmation(judge_with, tmp_path: Path) -> None:
    with openai_server.serve() as server:
        section = {
            "type": "openai_compatible",
            "model": openai_server.MODEL,
            "base_url": server.url,
            "rubric": "rubric.md",
        }
        # No answer of a random model holds GOOD: all are ties, and there is nothing to train on.
        assert judge_with(section) == 2
    assert server.keys == {"Bearer none"}
    assert len(server.requests) >= 2
