"""The sample phase with servers: all of them die, others are named, and the phase goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpo_dist.cli import main
from dpo_dist.storage.artifacts import read_records
from dpo_dist.storage.records import Candidate
from tests.vllm_server import Server, serve

PROMPTS = 20


@pytest.fixture
def run_file(tmp_path: Path, tiny_model: Path, write_run, write_jsonl) -> Path:
    rows = [{"id": f"p{n}", "prompt": f"question {n}"} for n in range(PROMPTS)]
    write_jsonl(tmp_path / "prompts.jsonl", rows)
    return write_run(
        model={"base": str(tiny_model), "dtype": "float32"},
        sample={
            "prompts": {"path": "prompts.jsonl"},
            "engine": {
                "type": "vllm_server",
                "urls": ["http://127.0.0.1:9"],
                "max_model_len": 256,
                "in_flight": 2,
            },
            "slots": [{"temperature": 0.7}, {"temperature": 1.2, "min_p": 0.05}],
            "max_new_tokens": 8,
        },
    )


def sample(run_file: Path, servers: list[Server]) -> int:
    urls = json.dumps([server.url for server in servers])
    engine = "sample.engine"
    settings = [f"{engine}.urls={urls}", f"{engine}.max_attempts=3"]
    return main(["sample", str(run_file), *(f"--set={setting}" for setting in settings)])


def test_the_phase_goes_on_with_other_servers_and_asks_only_for_what_is_missing(
    run_file: Path, tmp_path: Path, tiny_model: Path, capsys
) -> None:
    out = tmp_path / "runs" / "test" / "sample"
    with serve(2, model=str(tiny_model)) as dying, serve(model=str(tiny_model)) as others:
        for server in dying:
            server.dies_after = 6
        assert sample(run_file, dying) == 1
        said = capsys.readouterr().err
        assert "no vLLM server is reachable" in said
        assert "run the same command again" in said
        kept = list(read_records(out / "candidates.journal.jsonl", Candidate))
        assert 8 <= len(kept) <= 12, "two answers of each server may have died with it"
        assert not (out / "manifest.json").exists()

        assert sample(run_file, others) == 0
        assert len(others[0].requests) == 2 * PROMPTS - len(kept)
    candidates = list(read_records(out / "candidates.jsonl", Candidate))
    expected = [(f"p{n}", slot) for n in range(PROMPTS) for slot in (0, 1)]
    assert [(c.prompt_id, c.slot) for c in candidates] == expected
    assert {c.settings.get("min_p") for c in candidates if c.slot == 1} == {0.05}
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["engines"] == ["vllm serve: vllm-0.32.0-0a1b2c3d"]
    assert manifest["first_candidate_seconds"] > 0
    assert manifest["tokens_per_second"] > 0


def test_no_server_is_an_error_of_the_user_with_the_command_to_start_one(
    run_file: Path, tiny_model: Path, capsys
) -> None:
    assert main(["sample", str(run_file)]) == 2
    assert f"vllm serve {tiny_model} --max-model-len 256" in capsys.readouterr().err
