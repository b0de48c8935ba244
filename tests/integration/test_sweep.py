"""A sweep on the tiny model: one set of pairs, one reference, points of their own, one report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess as Done

import pytest

from dpo_dist.cli import main
from dpo_dist.storage.artifacts import read_json, read_records
from dpo_dist.storage.records import Generation
from dpo_dist.training.reference import ReferenceLogProbs
from tests.conftest import ROOT
from tests.in_process import in_this_process

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
            "kl": {"prompts": 4, "max_new_tokens": 8, "max_share": 100},
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


@pytest.fixture
def dpo_dist(capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    def run(*arguments: str) -> Done:
        with in_this_process():
            status = main(list(arguments))
        return Done(arguments, status, *capfd.readouterr())

    return run


@pytest.mark.slow
def test_points_share_reference_and_answers_and_are_resumed(
    run_file: Path, tmp_path: Path, dpo_dist: Callable[..., Done]
) -> None:
    root = tmp_path / "runs" / "test"
    swept = ["sweep", str(run_file), "--set", "train.beta=0.1,0.9"]
    done = dpo_dist(*swept)
    assert done.returncode == 0, done.stderr[-3000:]

    # The reference: every row once in the one cache, and computed by the first point alone.
    (cache,) = (tmp_path / "runs" / "reference_logps").glob("*.jsonl")
    rows = [record.row for record in read_records(cache, ReferenceLogProbs)]
    assert len(rows) == len(set(rows)) == PAIRS
    assert done.stderr.count("reference: train: 100 %") == 1

    points = [root / "sweep" / name for name in ("beta=0.1", "beta=0.9")]
    manifests = [read_json(point / "train" / "manifest.json") for point in points]
    assert [manifest["config"]["train"]["beta"] for manifest in manifests] == [0.1, 0.9]
    assert [manifest["steps"] for manifest in manifests] == [2, 2]
    assert not (root / "train").exists() and not (root / "evaluate").exists()
    reports = [read_json(point / "report" / "report.json") for point in points]
    assert [report["training"]["beta"] for report in reports] == [0.1, 0.9]
    page = (root / "sweep" / "report" / "sweep.html").read_text(encoding="utf-8")
    assert all(f'<a href="../{point.name}/report/report.html">' in page for point in points)

    # base and sft have answered once, dpo of each point for itself.
    taken = [read_json(point / "evaluate" / "manifest.json")["taken_over"] for point in points]
    assert taken == [0, 2 * HELD_OUT]
    first, second = (list(answers(point)) for point in points)
    assert [g for g in first if g.arm != "dpo"] == [g for g in second if g.arm != "dpo"]
    assert [g for g in first if g.arm == "dpo"] != [g for g in second if g.arm == "dpo"]

    report = read_json(root / "sweep" / "report" / "sweep.json")
    settings = [point["settings"] for point in report["points"]]
    assert settings == [{"train.beta": 0.1}, {"train.beta": 0.9}]
    assert [point["training"]["kl"]["answers"] for point in report["points"]] == [4, 4]
    assert report["points"][0]["evaluation"]["preferred"]["n"] == HELD_OUT
    assert "2 points were tried on the same held-out prompts" in done.stdout
    assert "<svg" in (root / "sweep" / "report" / "sweep.html").read_text()

    # As if the second evaluation had been killed after its first answers of dpo.
    evaluation = points[1] / "evaluate"
    (evaluation / "manifest.json").unlink()
    journal = evaluation / "generations.journal.jsonl"
    kept = b"".join(journal.read_bytes().splitlines(keepends=True)[: 2 * HELD_OUT + 2])
    journal.write_bytes(kept)
    again = dpo_dist(*swept)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stderr.count("already done") == 4
    assert journal.read_bytes().startswith(kept)
    assert [g.token_ids for g in answers(points[1])] == [g.token_ids for g in second]

    compared = dpo_dist("compare", *map(str, points))
    assert compared.returncode == 0, compared.stderr
    (line,) = [line for line in compared.stdout.splitlines() if line.startswith("train.")]
    assert line.split() == ["train.beta", "0.1", "0.9"]
    assert "SFT+DPO of A minus SFT+DPO of B, paired by prompt" in compared.stdout


@pytest.mark.slow
def test_a_point_that_fails_is_reported_and_does_not_stop_the_others(
    run_file: Path, tmp_path: Path, dpo_dist: Callable[..., Done]
) -> None:
    """Nobody evaluates here: the points are told apart by their validation accuracy."""
    swept = ["--set", "train.learning_rate=1.0e+30,0.01", "--set", "evaluate=null"]
    done = dpo_dist("sweep", str(run_file), *swept)
    assert done.returncode == 1
    assert "1 of 2 points failed: learning_rate=1e+30" in done.stderr
    report = read_json(tmp_path / "runs" / "test" / "sweep" / "report" / "sweep.json")
    assert report["measure"] == "accuracy" and report["frontier"] == ["learning_rate=0.01"]
    assert report["points"][0]["training"] is None
    assert report["points"][1]["training"]["accuracy"]["n"] == 4
    assert "2 points were tried on the same validation pairs" in report["caveats"][0]


def answers(point: Path) -> Iterator[Generation]:
    return read_records(point / "evaluate" / "generations.jsonl", Generation)
