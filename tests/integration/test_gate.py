"""`dpo-dist evaluate --gate`: the exit code follows the outcome, now or in an earlier command."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dpo_dist.cli import main
from dpo_dist.errors import GATE
from dpo_dist.storage.artifacts import read_json, write_json


@pytest.fixture
def run_file(tmp_path: Path, tiny_model: Path, write_run, write_jsonl) -> Path:
    """sft and dpo are the same model, and no metric tells them apart."""
    shutil.copytree(tiny_model, tmp_path / "runs" / "test" / "train" / "model")
    rows = [{"id": f"e{n}", "prompt": f"held-out question {n}"} for n in range(4)]
    write_jsonl(tmp_path / "held_out.jsonl", rows)
    quotes = {"type": "faithful_quotes", "field": "evidence"}
    return write_run(
        model={"base": str(tiny_model), "dtype": "float32"},
        evaluate={
            "prompts": {"path": "held_out.jsonl"},
            "engine": {"type": "hf", "max_model_len": 256},
            "arms": ["sft", "dpo"],
            "max_new_tokens": 4,
            "metrics": [quotes],
            "judge": {"type": "metric", "metrics": [quotes]},
        },
    )


def test_the_exit_code_follows_the_outcome(run_file: Path, tmp_path: Path, capsys) -> None:
    gate = ["evaluate", str(run_file), "--gate"]
    assert main(gate) == GATE["no_evidence"] == 3
    said = capsys.readouterr().err
    assert "no_evidence: SFT+DPO's win rate over SFT has no interval (all ties)" in said
    assert "gate: guarded: Faithfulness" in said
    path = tmp_path / "runs" / "test" / "evaluate" / "scores.json"
    scores = read_json(path)
    assert scores["outcome"]["outcome"] == "no_evidence"
    assert scores["preferred"]["length_controlled"]["note"] == "all_equal"

    delta = {"n": 4, "mean": -0.5, "low": -0.7, "high": -0.2, "p_holm": 0.01}
    scores["metrics"][0]["delta"] |= delta
    scores["preferred"] |= {"low": 0.6, "high": 0.8, "worst": 0.7}
    write_json(path, scores)
    assert main(gate) == GATE["regressed"] == 4
    assert "Faithfulness is significantly worse" in capsys.readouterr().err
    assert main([*gate, "--set", "evaluate.guard=[]"]) == GATE["improved"] == 0
    said = capsys.readouterr().err
    assert "already done" in said and "guarded: no metric" in said
    assert main(gate[:-1]) == 0, "only the gate looks at the outcome"


def test_a_guard_that_names_no_metric_is_bad_input(run_file: Path, capsys) -> None:
    options = ["--gate", "--set", "evaluate.guard=[Faithfulnes]"]
    assert main(["evaluate", str(run_file), *options]) == 2
    assert "no metric is labelled 'Faithfulnes'; available: Faithfulness" in capsys.readouterr().err
