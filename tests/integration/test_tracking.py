"""The report goes to Weights & Biases: an offline run is read back, an unreachable service is no
failure."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb

from dpo_dist.config import Config, required
from dpo_dist.config.runfile import load_config
from dpo_dist.phases.report import ReportPhase
from dpo_dist.runs.run import Run
from dpo_dist.storage.artifacts import PhaseDirectory, read_json
from tests.conftest import ROOT
from tests.unit.reporting.test_build import make_run
from tests.wandb_file import history, read_records

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning:wandb.*")


@pytest.fixture(autouse=True)
def _own_surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WANDB_DATA_DIR", "")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    yield
    wandb.teardown()  # what it has read of the environment, too


@pytest.fixture
def config(write_run, tmp_path: Path) -> Config:
    make_run(tmp_path / "runs" / "test")
    return load_config(
        write_run(
            model={"base": "m"},
            preferences={"source": "path", "path": "p.jsonl"},
            train={"args": {"report_to": ["wandb"], "project": "p"}},
            evaluate={
                "prompts": {"path": "e.jsonl"},
                "engine": {"type": "hf"},
                "metrics": [{"type": "label_match", "field": "severity"}],
            },
        )
    )


def run_report(config: Config) -> Path:
    """The run's directory, once the report is made."""
    run = Run(config)
    out = run.directory("report")
    out.mkdir(exist_ok=True)
    ReportPhase().run(run, PhaseDirectory(out, {}))
    wandb.teardown()  # as at the end of the process: everything is on disk
    return run.root


def kept(root: Path) -> Path:
    (path,) = root.glob("wandb/offline-run-*/*.wandb")
    return path


def table(offline: Path, value: dict) -> dict:
    assert value["_type"] == "table-file"
    return json.loads((offline.parent / "files" / value["path"]).read_text())


def test_the_offline_run_holds_table_samples_plots_and_files(config: Config, capsys) -> None:
    root = run_report(config)
    said = capsys.readouterr().err
    assert f"wandb sync {root}/wandb/offline-run-*" in said
    path = kept(root)
    found = history(path)

    comparison = table(path, found["report/comparison"])
    assert comparison["columns"] == [
        "Decoding",
        "Metric",
        "Base",
        "SFT",
        "SFT+DPO",
        "Δ DPO over SFT",
    ]
    assert comparison["data"][0] == [
        *("temperature 0.7", "Severity match", "10.0 % [3–30] n=20", "25.0 % [11–47] n=20"),
        *("50.0 % [30–70] n=20", "+25.0 pp [+5, +45] n=20"),
    ]
    assert comparison["data"][1][1:3] == ["Preferred (judge, pairwise vs SFT)", "–"]
    assert comparison["data"][2][:2] == ["greedy", "Severity match"]

    figures = table(path, found["report/figures"])
    assert ["temperature 0.7", "Severity match", "share", "SFT+DPO", 0.5, 0.3, 0.7, 20] in figures[
        "data"
    ]
    assert figures["data"][-1] == [
        *("temperature 0.7", "Preferred over SFT", "share", "SFT+DPO", 0.55, 0.4, 0.7, 20)
    ]

    samples = table(path, found["report/samples"])
    assert samples["columns"][:5] == ["Id", "Prompt", "Base", "SFT", "SFT+DPO"]
    (row,) = samples["data"]
    assert row[0] == "p<0>" and row[4].startswith("dpo <script>") and "\x1b" not in "".join(row)

    plot = found["report/Reward gap (chosen − rejected)"]
    assert plot["_type"] == "html-file"
    assert "<svg" in (path.parent / "files" / plot["path"]).read_text()


def test_the_files_are_an_artifact_that_lies_with_the_run(config: Config) -> None:
    root = run_report(config)
    artifacts = [
        record.request.log_artifact.artifact if record.HasField("request") else record.artifact
        for record in read_records(kept(root))
        if record.HasField("artifact")
    ]
    (files,) = [artifact for artifact in artifacts if artifact.name == "test-report"]
    entries = {entry.path: Path(entry.local_path) for entry in files.manifest.contents}
    assert entries.keys() == {"report.html", "report.md", "report.json", "table.txt"}
    for name, place in entries.items():
        assert place.is_relative_to(root.resolve()), "it travels with the run's directory"
        assert place.read_bytes() == (root / "report" / name).read_bytes()


def test_every_phase_goes_on_with_the_same_run(config: Config) -> None:
    first = run_report(config)
    run_id = read_json(first / "wandb.json")["id"]
    assert kept(first).name == f"run-{run_id}-train.wandb"
    run_report(config)
    found = {path.name for path in first.glob("wandb/offline-run-*/*.wandb")}
    assert found == {f"run-{run_id}-train.wandb"}


@pytest.mark.parametrize("key", ["0" * 40, None], ids=["no network", "no key"])
def test_a_service_that_cannot_be_reached_is_a_warning(
    key: str | None, config: Config, capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "absent"))
    if key is not None:
        monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.delenv("WANDB_MODE")
    root = run_report(config)
    said = capsys.readouterr().err
    assert "warning: Weights & Biases: " in said
    assert f"wandb sync {root}/wandb/offline-run-*" in said
    assert "report/comparison" in history(kept(root)), "nothing is not responding"


@pytest.mark.slow
def test_training_goes_on_without_the_service(
    tmp_path: Path, tiny_model: Path, write_run, write_jsonl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.delenv("WANDB_MODE")
    pairs = [{"prompt": f"q {n}", "chosen": "good", "rejected": f"no {n}"} for n in range(12)]
    write_jsonl(tmp_path / "pairs.jsonl", pairs)
    run_file = write_run(
        model={"base": str(tiny_model), "dtype": "float32"},
        preferences={"source": "path", "path": "pairs.jsonl", "validation_fraction": 0.34},
        train={
            **{"bf16": False, "max_length": 128, "global_batch_size": 4, "micro_batch_size": 2},
            "accelerate_config": str(ROOT / "accelerate_configs" / "cpu.yaml"),
            "args": {"report_to": "wandb"},
        },
    )
    command = [sys.executable, "-m", "dpo_dist", "train", str(run_file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    root = tmp_path / "runs" / "test"
    assert f"wandb sync {root}/wandb/offline-run-*" in done.stderr
    assert {"train/loss", "eval/loss", "train/rewards/margins"} <= history(kept(root)).keys()


def test_without_report_to_nothing_is_logged(config: Config) -> None:
    train = required(config.train).model_copy(update={"args": {}})
    root = run_report(config.model_copy(update={"train": train}))
    assert not (root / "wandb.json").exists() and not (root / "wandb").exists()
