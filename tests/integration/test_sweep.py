"""A sweep on the tiny model: one set of pairs, one reference, points of their own, one report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dpo_dist.artifacts import read_records
from dpo_dist.training.reference import ReferenceLogProbs
from tests.conftest import ROOT

PAIRS, HELD_OUT = 12, 5


@pytest.fixture
def run_file(tmp_path: Path, tiny_model: Path, write_run, write_jsonl) -> Path:
    answer = '{"ok": 1}'
    write_jsonl(
        tmp_path / "pairs.jsonl",
        [{"prompt": f"question {n}", "chosen": answer, "rejected": "no"} for n in range(PAIRS)],
    )
    write_jsonl(tmp_path / "eval.jsonl", [{"prompt": f"held out {n}"} for n in range(HELD_OUT)])
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    metrics = [{"type": "json_schema", "label": "Format", "schema_path": "schema.json"}]
    return write_run(
        run={"name": "test", "output_dir": str(tmp_path / "runs")},
        model={"base": str(tiny_model), "dtype": "float32"},
        preferences={"source": "path", "path": "pairs.jsonl", "validation_fraction": 0.34},
        train={
            "bf16": False,
            "learning_rate": 1e-2,
            "max_length": 128,
            "global_batch_size": 4,
            "micro_batch_size": 2,
            "kl": {"prompts": 4, "max_new_tokens": 8},
            "accelerate_config": str(ROOT / "accelerate_configs" / "cpu.yaml"),
        },
        evaluate={
            "prompts": {"path": "eval.jsonl"},
            "engine": {"type": "hf", "max_model_len": 256},
            "max_new_tokens": 16,
            "metrics": metrics,
            "judge": {"type": "metric", "metrics": metrics},
        },
    )


def dpo_dist(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dpo_dist", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_points_share_reference_and_answers_and_are_resumed(run_file: Path, tmp_path: Path) -> None:
    root = tmp_path / "runs" / "test"
    swept = ["sweep", str(run_file), "--set", "train.beta=0.1,0.9"]
    done = dpo_dist(*swept)
    assert done.returncode == 0, done.stderr[-3000:]

    # The reference: every row once in the one cache, and computed by the first point alone.
    (cache,) = (tmp_path / "runs" / "reference_logps").glob("*.jsonl")
    rows = [record.row for record in read_records(cache, ReferenceLogProbs)]
    assert len(rows) == len(set(rows)) == PAIRS
    assert done.stderr.count("reference: train: 100%") == 1

    betas = {}
    for point in ("beta=0.1", "beta=0.9"):
        manifest = json.loads((root / "sweep" / point / "train" / "manifest.json").read_text())
        betas[point] = manifest["config"]["train"]["beta"]
        assert manifest["steps"] == 2
    assert betas == {"beta=0.1": 0.1, "beta=0.9": 0.9}
    assert not (root / "train").exists() and not (root / "evaluate").exists()

    # base and sft answered once; dpo of each point for itself.
    first, second = (
        [
            json.loads(line)
            for line in (root / "sweep" / point / "evaluate" / "generations.jsonl")
            .read_text()
            .splitlines()
        ]
        for point in betas
    )
    assert [g for g in first if g["arm"] != "dpo"] == [g for g in second if g["arm"] != "dpo"]
    assert [g for g in first if g["arm"] == "dpo"] != [g for g in second if g["arm"] == "dpo"]
    taken = [
        json.loads((root / "sweep" / point / "evaluate" / "manifest.json").read_text())[
            "taken_over"
        ]
        for point in betas
    ]
    assert taken == [0, 2 * HELD_OUT]

    report = json.loads((root / "sweep" / "report" / "sweep.json").read_text())
    assert [point["settings"] for point in report["points"]] == [
        {"train.beta": 0.1},
        {"train.beta": 0.9},
    ]
    assert all(point["training"]["kl"]["reference"] == "base" for point in report["points"])
    assert report["points"][0]["evaluation"]["preferred"]["n"] == HELD_OUT
    assert "2 points were tried on the same held-out prompts" in done.stdout
    page = (root / "sweep" / "report" / "sweep.html").read_text()
    assert "<svg" in page and "beta=0.9" in page
