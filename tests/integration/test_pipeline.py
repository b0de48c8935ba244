"""All phases in one command on a tiny model: sft, train on public pairs, evaluate, report."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from dpo_dist.storage.artifacts import read_records
from dpo_dist.storage.records import Generation, Verdict
from tests.conftest import ROOT
from tests.wandb_file import config, history


@pytest.mark.slow
def test_one_command_from_demonstrations_to_the_report(
    tmp_path: Path, tiny_model: Path, write_run, write_jsonl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    answer = '{"ok": 1}'
    write_jsonl(
        tmp_path / "sft.jsonl", [{"prompt": f"ask {n}", "completion": answer} for n in range(8)]
    )
    write_jsonl(
        tmp_path / "pairs.jsonl",
        [{"prompt": f"question {n}", "chosen": answer, "rejected": "no"} for n in range(12)],
    )
    write_jsonl(tmp_path / "eval.jsonl", [{"prompt": f"held out {n}"} for n in range(5)])
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    metrics = [{"type": "json_schema", "label": "Format", "schema_path": "schema.json"}]
    accelerate_config = str(ROOT / "accelerate_configs" / "cpu.yaml")
    batch = {"global_batch_size": 4, "micro_batch_size": 2, "accelerate_config": accelerate_config}
    run_file = write_run(
        run={"name": "test", "output_dir": str(tmp_path / "runs")},
        model={"base": str(tiny_model), "sft": "phase", "dtype": "float32"},
        sft={
            **{"data": {"path": "sft.jsonl"}, "bf16": False, "learning_rate": 1e-2, **batch},
            "args": {"report_to": ["wandb"]},
        },
        preferences={"source": "path", "path": "pairs.jsonl", "validation_fraction": 0.34},
        train={
            **{"bf16": False, "learning_rate": 1e-2, "max_length": 128, **batch},
            "args": {"report_to": ["wandb"], "project": "mine"},
        },
        evaluate={
            "prompts": {"path": "eval.jsonl"},
            "engine": {"type": "hf", "max_model_len": 256},
            "decodings": [{"temperature": 0.0}, {"temperature": 1.0}],
            "max_new_tokens": 16,
            "metrics": metrics,
            "judge": {"type": "metric", "metrics": metrics},
        },
    )
    command = [sys.executable, "-m", "dpo_dist", "run", str(run_file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    root = tmp_path / "runs" / "test"

    # Outside a terminal, progress is in lines, and nothing is printed twice.
    assert "\r" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if " remaining" in line]
    assert [line.split()[1] for line in lines if "(100 %" not in line] == [
        *("sft:", "reference:", "reference:", "train:", "evaluate:", "evaluate:"),
    ]
    kept_log = (root / "run.log").read_text()
    assert all(line in kept_log for line in done.stderr.splitlines() if line.startswith("20"))
    assert "Preferred (judge, pairwise vs SFT)" in kept_log

    # Policy and reference start as the SFT adapter: with the base as reference the first loss
    # would differ, since the adapter has moved.
    lines = (root / "train" / "metrics.jsonl").read_text().splitlines()
    first = next(line for line in map(json.loads, lines) if "loss" in line)
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert (root / "train" / "model" / "adapter_config.json").exists()
    assert not (root / "train" / "model" / "ref").exists()
    kept = sorted(root.glob("wandb/offline-run-*/*.wandb"))
    run_id = json.loads((root / "wandb.json").read_text())["id"]
    names = [f"run-{run_id}-{phase}.wandb" for phase in ("sft", "train", "train")]
    assert [path.name for path in kept] == names, "the report is added to the training"
    sft, train, report = map(history, kept)
    assert "train/loss" in sft
    assert {"train/loss", "eval/loss"} <= train.keys()
    assert config(kept[1])["run_file"]["evaluate"]["max_new_tokens"] == 16
    assert report["report/comparison"]["nrows"] == 4, "two decodings, the preference twice"

    generations = list(read_records(root / "evaluate" / "generations.jsonl", Generation))
    assert len(generations) == 3 * 2 * 5
    texts = {arm: [g.text for g in generations if g.arm == arm] for arm in ("base", "sft", "dpo")}
    assert texts["base"] != texts["sft"] != texts["dpo"], "each arm has its own weights"
    assert "Preferred (judge, pairwise vs SFT)" in done.stdout
    scores = json.loads((root / "evaluate" / "scores.json").read_text())
    compared = [("dpo", "sft"), ("sft", "base"), ("dpo", "base")]
    assert [(pair["a"], pair["b"], pair["n"]) for pair in scores["pairwise"]] == [
        (*pair, 5) for pair in compared
    ]
    verdicts = Counter(v.between for v in read_records(root / "evaluate/verdicts.jsonl", Verdict))
    assert verdicts == dict.fromkeys(compared, 5)
    assert scores["preferred"] == scores["pairwise"][0]
    assert str(root / "report" / "report.html") in done.stdout
    assert {path.name for path in (root / "report").iterdir()} >= {
        *("report.html", "report.md", "report.json", "manifest.json")
    }

    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0
    assert again.stderr.count("already done") == 4
    assert again.stdout.count("\n") >= 6 and done.stdout.endswith(again.stdout)
