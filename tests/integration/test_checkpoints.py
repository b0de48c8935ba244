"""Trainings that are stopped, killed or moved to other processes go on as if nothing had been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from dpo_dist.data.chat import load_tokenizer
from dpo_dist.errors import PREEMPTED
from tests.conftest import ROOT
from tests.integration.test_saving import load_adapter, mean_logp
from tests.integration.test_training import command, losses, run_file, train

__all__ = ["run_file"]  # the fixture

ZERO2 = ROOT / "accelerate_configs" / "cpu_zero2.yaml"


def with_config(path: Path) -> str:
    return f"train.accelerate_config={path}"


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> Path:
    """ZeRO-2 with a single process."""
    path = tmp_path_factory.mktemp("configs") / "zero2_one.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(ZERO2.read_text()), "num_processes": 1}))
    return path


def stop(
    words: list[str], folder: Path, number: int, *, group: bool = False, after: int = 0
) -> int:
    """Run a command, send a signal (to its whole group) once a checkpoint of `folder` that lies
    `after` a step is whole; its exit code."""
    process = subprocess.Popen(words, cwd=ROOT, start_new_session=True)
    deadline = time.monotonic() + 240
    while not any(
        int(whole.parent.name.removeprefix("checkpoint-")) > after
        for whole in folder.glob("checkpoints/checkpoint-*/COMPLETE")
    ):
        assert process.poll() is None, "training ended before that checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (os.killpg if group else os.kill)(process.pid, number)
    return process.wait(timeout=120)


@pytest.mark.slow
def test_zero_2_goes_on_after_a_kill_and_on_another_number_of_processes(
    run_file: Path, tmp_path: Path, one_process: Path
) -> None:
    """All are stopped in their second epoch, whose order is not the first one's."""
    runs, epochs, steps = tmp_path / "runs", "train.num_epochs=2", 6
    assert train(run_file, "run.name=whole", epochs, with_config(ZERO2)).returncode == 0
    whole = losses(runs / "whole" / "train")
    assert len(whole) == 2 * steps

    killed = runs / "killed" / "train"
    words = (run_file, "run.name=killed", epochs, with_config(ZERO2))
    stop(command(*words), killed, signal.SIGKILL, group=True, after=steps)
    assert train(*words).returncode == 0
    assert losses(killed) == pytest.approx(whole, abs=1e-6)

    for name, first, then in (("fewer", ZERO2, one_process), ("more", one_process, ZERO2)):
        folder = runs / name / "train"
        settings = (f"run.name={name}", epochs)
        begun = command(run_file, *settings, with_config(first))
        assert stop(begun, folder, signal.SIGTERM, after=steps) == PREEMPTED
        assert steps < len(losses(folder)) < len(whole)
        assert not (folder / "manifest.json").exists()
        done = train(run_file, *settings, with_config(then))
        assert done.returncode == 0, done.stderr[-3000:]
        assert "converting its shards from" in done.stderr
        assert losses(folder) == pytest.approx(whole, abs=2e-5), name


@pytest.mark.slow
def test_sigterm_saves_says_how_to_go_on_and_a_torn_checkpoint_is_passed_over(
    run_file: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    assert train(run_file, "run.name=whole").returncode == 0
    whole = losses(runs / "whole" / "train")
    folder = runs / "stopped" / "train"
    assert stop(command(run_file, "run.name=stopped"), folder, signal.SIGTERM) == PREEMPTED
    *_, newest = sorted(folder.glob("checkpoints/checkpoint-*"), key=lambda p: int(p.name[11:]))
    state = newest / "optimizer.pt"
    state.write_bytes(state.read_bytes()[:-100])
    done = train(run_file, "run.name=stopped")
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{newest.name} is incomplete (optimizer.pt has changed)" in done.stderr
    assert losses(folder) == pytest.approx(whole, abs=1e-6)


@pytest.mark.slow
def test_another_beta_or_another_file_is_refused_with_the_difference(
    run_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "test" / "train"
    stop(command(run_file), folder, signal.SIGKILL, group=True)
    done = train(run_file, "train.beta=0.2")
    assert done.returncode == 2 and "config.train.beta: 0.1 -> 0.2" in done.stderr
    data = tmp_path / "train.jsonl"
    data.write_text(data.read_text().replace("good", "fine", 1))
    done = train(run_file)
    assert done.returncode == 2 and "inputs.pairs" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cpu", "cpu_zero2"])
def test_the_best_step_by_validation_accuracy_is_kept(
    name: str, run_file: Path, tmp_path: Path, tiny_model: Path
) -> None:
    config = with_config(ROOT / "accelerate_configs" / f"{name}.yaml")
    settings = ("train.select=best", "train.eval_per_epoch=6", "train.save_steps=1")
    done = train(run_file, config, "train.keep_checkpoints=1", *settings)
    assert done.returncode == 0, done.stderr[-3000:]
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
