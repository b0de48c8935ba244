"""`dpo-dist launch`: what it prints, what it writes, and what it refuses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dpo_dist.cli import main
from tests.conftest import ROOT
from tests.unit.tools.launch.runs import ONE_EACH, RECIPE, ZERO2


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command for two machines, which writes into `tmp_path`."""
    monkeypatch.chdir(ROOT)
    overrides = (*ZERO2, *ONE_EACH, f"run.output_dir={tmp_path}")
    settings = [word for override in overrides for word in ("--set", override)]
    machines = ["--nodes", "2", "--gpus-per-node", "2"]
    return ["launch", "slurm", str(RECIPE), *machines, *settings]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "incident-triage" / "launch" / "slurm"


def test_files_are_written_and_the_submission_is_said(
    words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    said = capsys.readouterr().err
    assert f"bash {folder}/submit.sh" in said and f"{len(list(folder.iterdir()))} files" in said
    scripts = {path.name for path in folder.iterdir() if os.access(path, os.X_OK)}
    assert {"submit.sh", "node.sh", "train.sbatch"} <= scripts
    assert "accelerate_train.yaml" not in scripts and "job.sh" not in scripts


def test_a_dry_run_prints_what_would_be_written_and_writes_nothing(
    words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--dry-run"]) == 0
    assert not folder.parent.exists()
    printed = capsys.readouterr().out
    assert main(words) == 0
    for path in folder.iterdir():
        assert f"==> {path} <==\n{path.read_text(encoding='utf-8')}" in printed


def test_submitting_gives_the_exit_code_of_the_submission(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked; echo "7;here"\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    assert main([*words, "--submit"]) == 0
    asked = (tmp_path / "asked").read_text().splitlines()
    jobs = [Path(line.split()[-1]).stem for line in asked]
    assert jobs == ["sft", "sample", "judge", "train", "evaluate", "score", "report"]
    assert "dependency" not in asked[0]
    assert all("--dependency=afterok:7 --kill-on-invalid-dep=yes" in line for line in asked[1:])
    sbatch.write_text("#!/bin/sh\nexit 4\n")
    assert main([*words, "--submit"]) == 4


def test_what_does_not_fit_is_refused_before_anything_is_written(
    words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--set", "train.global_batch_size=6"]) == 2
    assert "train: global_batch_size 6 is not a multiple of" in capsys.readouterr().err
    assert not folder.parent.exists()
