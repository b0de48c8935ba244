"""SIGTERM to a whole process group and to `run`; ZeRO-3 on another number of processes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dpo_dist.errors import PREEMPTED
from dpo_dist.training.checkpoints import damage
from tests.conftest import ROOT
from tests.integration.test_checkpoints import stop
from tests.integration.test_training import command, losses, run_file, train

__all__ = ["run_file"]  # the fixture


def with_config(name: str) -> str:
    return f"train.accelerate_config={ROOT}/accelerate_configs/{name}.yaml"


@pytest.fixture
def one_process(tmp_path: Path) -> str:
    """ZeRO-3 with a single process."""
    values = yaml.safe_load((ROOT / "accelerate_configs" / "cpu_zero3.yaml").read_text())
    path = tmp_path / "zero3_one.yaml"
    path.write_text(yaml.safe_dump({**values, "num_processes": 1}))
    return f"train.accelerate_config={path}"


def newest(folder: Path) -> Path:
    return max(folder.glob("checkpoints/checkpoint-*"), key=lambda p: int(p.name[11:]))


@pytest.mark.slow
def test_zero_3_stopped_as_a_group_goes_on_on_one_process_and_back(
    run_file: Path, tmp_path: Path, one_process: str
) -> None:
    runs, two = tmp_path / "runs", with_config("cpu_zero3")
    assert train(run_file, "run.name=whole", two).returncode == 0
    whole = losses(runs / "whole" / "train")
    for name, first, then in (
        ("fewer", two, one_process),
        ("more", one_process, two),
    ):
        folder = runs / name / "train"
        words = command(run_file, f"run.name={name}", first, "train.save_steps=1")
        assert stop(words, folder, signal.SIGTERM, group=True) == PREEMPTED
        assert damage(newest(folder)) is None
        assert 0 < len(losses(folder)) < len(whole)
        done = train(run_file, f"run.name={name}", then)
        assert done.returncode == 0, done.stderr[-3000:]
        assert losses(folder) == pytest.approx(whole, abs=2e-5), name


@pytest.mark.slow
def test_run_passes_sigterm_on_and_its_exit_code_up(
    run_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs" / "test" / "train"
    words = [sys.executable, "-m", "dpo_dist", "run", str(run_file)]
    assert stop(words, folder, signal.SIGTERM) == PREEMPTED
    said = capfd.readouterr().err
    assert said.count("run the same command again") == 1, "the phase leaves it to `run`"
    assert said.endswith(f"run the same command again:\n  dpo-dist run {run_file}\n")
    assert damage(newest(folder)) is None
    refused = train(run_file, with_config("cpu_zero2"))
    assert refused.returncode == 2 and "was written without ZeRO" in refused.stderr
    assert subprocess.run(words, cwd=ROOT, check=False).returncode == 0
    assert len(losses(folder)) == 6
