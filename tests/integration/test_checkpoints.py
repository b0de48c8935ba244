"""A training that was killed or stopped continues as if nothing had happened; the best step."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_dist.data.chat import load_tokenizer
from dpo_dist.errors import PREEMPTED
from dpo_dist.storage.artifacts import directory_digest
from dpo_dist.training.checkpoints import damage
from tests.conftest import ROOT
from tests.in_process import in_this_process
from tests.integration.test_saving import load_adapter, mean_logp
from tests.integration.trainings import (
    command,
    losses,
    newest,
    saved,
    shipped,
    stop,
    train,
)


@pytest.mark.slow
def test_a_training_that_is_killed_stopped_and_damaged_ends_as_an_undisturbed_one(
    tmp_path: Path,
    long_file: Path,
    whole: Callable[[str], Path],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """One training: every command continues what the one before it left."""
    folder = tmp_path / "runs" / "test" / "train"
    stop(command(long_file), folder, signal.SIGKILL, group=True)
    assert not (folder / "manifest.json").exists()
    _refuse_other_inputs(long_file, capfd)
    _stop_run(long_file, folder, capfd)
    _refuse_zero(long_file, capfd)
    state = newest(folder) / "optimizer.pt"
    state.write_bytes(state.read_bytes()[:-100])
    log = _stop_local_script(long_file, folder)
    assert f"{state.parent.name} is incomplete (optimizer.pt has changed)" in log
    undisturbed = whole("cpu")
    assert losses(folder) == pytest.approx(losses(undisturbed), abs=1e-6)
    assert directory_digest(folder / "model", "*.safetensors") == directory_digest(
        undisturbed / "model", "*.safetensors"
    )


def _refuse_other_inputs(run_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Another beta or another file of pairs is an error that names the difference."""
    assert train(run_file, "train.beta=0.2") == 2
    assert "config.train.beta: 0.1 -> 0.2" in capfd.readouterr().err
    data = run_file.with_name("train.jsonl")
    pairs = data.read_text()
    data.write_text(pairs.replace("good", "fine", 1))
    assert train(run_file) == 2
    assert "inputs.pairs" in capfd.readouterr().err
    data.write_text(pairs)


def _stop_run(run_file: Path, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`run` passes SIGTERM on to the training, and its exit code up."""
    words = command(run_file, name="run")
    assert stop(words, folder, signal.SIGTERM, after=saved(folder)) == PREEMPTED
    said = capfd.readouterr().err
    assert said.count("run the same command again") == 1, "the phase leaves it to `run`"
    assert said.endswith(f"run the same command again:\n  dpo-dist run {run_file}\n")
    assert damage(newest(folder)) is None


def _refuse_zero(run_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert train(run_file, shipped("cpu_zero2")) == 2
    assert "was written with no sharding" in capfd.readouterr().err


def _stop_local_script(run_file: Path, folder: Path) -> str:
    """`launch local --submit` passes SIGTERM on; its script, run again, trains to the end. The log
    of the first start."""
    root = folder.parent
    setup = f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={ROOT}"
    words = [sys.executable, "-m", "dpo_dist", "launch", "local", str(run_file), "--setup", setup]
    stopped = stop([*words, "--submit"], folder, signal.SIGTERM, after=saved(folder))
    assert stopped == PREEMPTED
    again = ["bash", str(root / "launch" / "local" / "local.sh")]
    done = subprocess.run(again, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    first, second = (log.read_text() for log in sorted(root.glob("logs/local-*.log")))
    assert "which is saved" in first and "train: done in" in second
    return first


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cpu", "cpu_zero2"])
def test_the_best_step_by_validation_accuracy_is_kept(
    name: str, training_file: Path, tmp_path: Path, tiny_model: Path
) -> None:
    settings = ("train.select=best", "train.eval_per_epoch=6", "train.save_steps=1")
    with in_this_process():
        assert train(training_file, shipped(name), "train.keep_checkpoints=1", *settings) == 0
    folder = tmp_path / "runs" / "test" / "train"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    accuracies = {
        line["step"]: line["eval_rewards/accuracies"]
        for line in lines
        if "eval_rewards/accuracies" in line
    }
    best = max(accuracies, key=lambda step: (accuracies[step], -step))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["selected_step"] == best and manifest["steps"] == 6
    at_best = next(line for line in lines if line["step"] == best and "eval_logps/chosen" in line)
    model, tokenizer = load_adapter(tiny_model, folder / "model"), load_tokenizer(str(tiny_model))
    expected = pytest.approx(at_best["eval_logps/chosen"], abs=2e-3)
    assert mean_logp(model, tokenizer, "chosen") == expected
