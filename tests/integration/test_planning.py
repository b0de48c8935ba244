"""A plan that uses what a training on this machine has measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpo_dist.cli import main
from tests.conftest import ROOT


@pytest.mark.slow
def test_a_plan_is_calibrated_by_a_finished_run(
    tmp_path: Path, tiny_model: Path, write_run, write_jsonl, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(ROOT)
    rows = [
        {"prompt": f"question {n}", "chosen": f"a good answer {n}", "rejected": f"bad {n}"}
        for n in range(24)
    ]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    path = str(
        write_run(
            model={"base": str(tiny_model), "dtype": "float32"},
            preferences={"source": "path", "path": "pairs.jsonl", "validation_fraction": 0},
            train={"global_batch_size": 4, "micro_batch_size": 2, "bf16": False},
        )
    )
    assert main(["train", path]) == 0
    target = tmp_path / "plan.json"
    run = str(tmp_path / "runs" / "test")
    words = ["plan", path, "--gpus", "2xL4-24G", "--calibrate", run, "--json", str(target)]
    assert main(words) == 0
    assert "measured" in capsys.readouterr().out
    figures = json.loads(target.read_text())
    share = figures["figures"]["share of the GPU's peak in training"]
    assert share["source"] == "measured" and share["note"] == run
    assert 0 < share["value"] < 0.35  # a tiny model on a CPU is far from an L4's peak
    (train,) = figures["phases"]
    assert train["measured"] and train["phase"] == "train"
    assert figures["figures"]["pairs to train on"]["value"] == 24


@pytest.mark.slow
def test_the_planned_memory_is_what_training_takes(tmp_path: Path, monkeypatch) -> None:
    """Within 15 %; `python -m benchmarks.plan_memory` compares every kind of checkpointing, and
    ZeRO on two processes."""
    monkeypatch.chdir(ROOT)
    from benchmarks.plan_memory import blocks, compare, random_model
    from dpo_dist.runs.resources import model_shape

    small = str(random_model(tmp_path / "small", layers=2, hidden=64))
    model = str(random_model(tmp_path / "model", layers=8, hidden=512))
    block = dict(blocks(model, small, tmp_path))["full, none checkpointing"]
    figures = compare("full", block, model_shape(model, False))
    assert figures["full: planned / measured"] == pytest.approx(1, abs=0.15)
