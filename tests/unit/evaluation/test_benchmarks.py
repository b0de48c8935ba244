"""lm-evaluation-harness on a task of one's own; the rest of what it does is its own affair."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dpo_dist.cli import main
from dpo_dist.config.runfile import load_config
from dpo_dist.evaluation.benchmarks import BenchmarkResult, benchmark_rows, read_results
from dpo_dist.phases.verdicts import arm_benchmarks
from dpo_dist.runs.run import Run
from dpo_dist.storage.artifacts import phase_directory, write_json
from tests.conftest import ROOT

INSTALLED = importlib.util.find_spec("lm_eval") is not None
DOCUMENTS = 12


def sample(number: int, filtered: str = "none", **values: object) -> dict:
    return {"doc_id": number, "filter": filtered, "metrics": list(values), **values}


def test_only_means_over_documents_are_compared(capsys) -> None:
    found = {
        "samples": {
            "arc": [sample(0, acc=1.0, acc_norm=0), sample(3, acc=0.0, acc_norm=0)],
            "math": [sample(0, "strict", exact=1), sample(0, "flexible", exact=0)],
            "wiki": [sample(0, perplexity=(-3.5, 4), bits=2.0), sample(1, perplexity=(-1, 2))],
        },
        "results": {
            "arc": {"acc,none": 0.5, "acc_norm,none": 0.0},
            "math": {"exact,strict": 1.0, "exact,flexible": 0.0},
            "wiki": {"perplexity,none": 2.1, "bits,none": 7.4},
        },
        "higher_is_better": {
            "arc": {"acc": True, "acc_norm": True},
            "math": {"exact": None},
            "wiki": {"perplexity": False, "bits": False},
        },
    }
    assert read_results(found) == [
        BenchmarkResult("arc, acc", "higher", {"0": 1.0, "3": 0.0}),
        BenchmarkResult("arc, acc_norm", "higher", {"0": 0.0, "3": 0.0}),
        BenchmarkResult("math, exact (strict)", None, {"0": 1.0}),
        BenchmarkResult("math, exact (flexible)", None, {"0": 0.0}),
    ]
    said = capsys.readouterr().err
    assert said.count("is not a mean over documents") == 2
    assert "wiki, perplexity" in said and "wiki, bits" in said


def test_a_unit_holds_for_all_arms() -> None:
    arms = {
        "sft": [BenchmarkResult("a, nll", "lower", {"0": 0.5})],
        "dpo": [BenchmarkResult("a, nll", "lower", {"0": 1.5})],
    }
    figures, scores = benchmark_rows(arms)
    assert [(f.key, f.label, f.unit, f.better) for f in figures] == [
        ("benchmark:a, nll", "Benchmark a, nll", "points", "lower")
    ]
    assert [(s.arm, s.prompt_id, s.value) for s in scores] == [("sft", "0", 0.5), ("dpo", "0", 1.5)]
    share, _ = benchmark_rows({"sft": arms["sft"]})
    assert share[0].unit == "share"


@pytest.fixture
def run_file(tmp_path: Path, tiny_model: Path, write_run, write_jsonl) -> Path:
    """An evaluation with a task that asks whether numbers are even."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"question": f"Is {n} even?", "answer": n % 2} for n in range(DOCUMENTS)]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    task = {
        "task": "even_numbers",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}\nAnswer:",
        "doc_to_choice": ["yes", "no"],
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "even_numbers.yaml").write_text(yaml.safe_dump(task))
    write_jsonl(tmp_path / "held_out.jsonl", [{"id": "e", "prompt": "question"}])
    return write_run(
        model={"base": str(tiny_model), "dtype": "float32"},
        preferences={"source": "path", "path": "held_out.jsonl"},
        evaluate={
            "prompts": {"path": "held_out.jsonl"},
            "engine": {"type": "hf", "max_model_len": 256},
            "arms": ["base", "sft"],
            "max_new_tokens": 4,
            "metrics": [{"type": "stop_rate"}],
            "benchmarks": {"tasks": ["even_numbers"], "limit": 10, "include_path": "tasks"},
        },
    )


@pytest.mark.skipif(INSTALLED, reason="the extra `benchmarks` is installed")
def test_without_the_extra_the_command_to_install_it_is_said(run_file: Path, capsys) -> None:
    assert main(["evaluate", str(run_file)]) == 2
    assert "lm_eval is not installed. Install it with: pip install" in capsys.readouterr().err


def test_an_arm_that_is_done_is_not_done_again(run_file: Path, tmp_path: Path) -> None:
    """Without the harness it could not be."""
    results = {"results": [{"name": "t, acc", "better": "higher", "values": {"7": 0.25}}]}
    with phase_directory(tmp_path / "out", {}) as out:
        for arm in ("base", "sft"):
            write_json(out.path / f"benchmarks-{arm}.json", results)
        figures, scores = arm_benchmarks(Run(load_config(run_file)), out)
    assert [figure.label for figure in figures] == ["Benchmark t, acc"]
    assert [(s.arm, s.prompt_id, s.value) for s in scores] == [
        ("base", "7", 0.25),
        ("sft", "7", 0.25),
    ]


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="needs the extra `benchmarks`")
def test_a_task_of_ones_own_stands_in_the_table(run_file: Path, tmp_path: Path) -> None:
    def evaluate(*overrides: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dpo_dist", "evaluate", str(run_file), *overrides]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    for task, reason in (
        ("nonsense", "has no nonsense"),
        ("arc_easy", "cannot be loaded: "),  # there is no hub here
    ):
        refused = evaluate("--set", f"evaluate.benchmarks.tasks=[even_numbers, {task}]", "--force")
        assert refused.returncode == 2 and reason in refused.stderr
    out = tmp_path / "runs" / "test" / "evaluate"
    assert not (out / "generations.journal.jsonl").exists()
    ended = evaluate("--force")
    assert ended.returncode == 0, ended.stderr
    rows = json.loads((out / "scores.json").read_text())["metrics"]
    (row,) = [row for row in rows if row["metric"].startswith("benchmark:")]
    assert (row["label"], row["unit"], row["better"]) == (
        "Benchmark even_numbers, acc",
        "share",
        "higher",
    )
    # Both arms are the same model, which always says the same: half of the numbers are even.
    assert [row["arms"][arm]["mean"] for arm in ("base", "sft")] == [0.5, 0.5]
    assert row["arms"]["base"]["n"] == 10
    (kept,) = json.loads((out / "benchmarks-sft.json").read_text())["results"]
    assert len(kept["values"]) == 10 and set(kept["values"].values()) == {0.0, 1.0}
