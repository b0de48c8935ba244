"""DPO on a tiny model: one process, ZeRO-2 and ZeRO-3 give the same losses; kill and resume."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from dpo_dist.storage.artifacts import directory_digest
from tests.conftest import REAL_PREFERENCES, ROOT

STEPS = 6
GLOBAL_BATCH = 4


def rows(count: int) -> list[dict]:
    return [
        {
            "prompt": f"question {n} " + "word " * (n % 5),
            "chosen": f"a good answer {n * 7 % 11} " + "very " * (n % 3),
            "rejected": f"bad {n * 5 % 13}",
        }
        for n in range(count)
    ]


@pytest.fixture
def run_file(tmp_path: Path, tiny_model: Path, write_run, write_jsonl) -> Path:
    write_jsonl(tmp_path / "train.jsonl", rows(STEPS * GLOBAL_BATCH))
    write_jsonl(tmp_path / "validation.jsonl", rows(40)[-4:])
    return write_run(
        model={"base": str(tiny_model), "dtype": "float32"},
        preferences={
            "source": "path",
            "path": "train.jsonl",
            "validation_path": "validation.jsonl",
        },
        train={
            "learning_rate": 5e-3,
            "global_batch_size": GLOBAL_BATCH,
            "micro_batch_size": 1,
            "max_length": 256,
            "bf16": False,
            "eval_per_epoch": 2,
            "save_steps": 2,
            "kl": {"prompts": 4, "max_new_tokens": 8},
            "accelerate_config": str(ROOT / "accelerate_configs" / "cpu.yaml"),
        },
    )


def command(run_file: Path, *overrides: str) -> list[str]:
    words = [sys.executable, "-m", "dpo_dist", "train", str(run_file)]
    return words + [word for override in overrides for word in ("--set", override)]


def train(run_file: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(run_file, *overrides), cwd=ROOT, text=True, capture_output=True, check=False
    )


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in metrics(folder) if "loss" in line]


def accelerate_configs(folder: Path) -> dict[str, Path]:
    """The shipped ones for a CPU, and two more kinds of two processes made from them."""
    shipped = {name: ROOT / "accelerate_configs" / f"{name}.yaml" for name in SHIPPED}
    values = yaml.safe_load(shipped["cpu_zero2"].read_text())
    deepspeed = values.pop("deepspeed_config")
    made = {
        "cpu_zero1": {**values, "deepspeed_config": {**deepspeed, "zero_stage": 1}},
        "cpu_ddp": {**values, "distributed_type": "MULTI_CPU", "use_cpu": True},
    }
    for name, content in made.items():
        shipped[name] = folder / f"{name}.yaml"
        shipped[name].write_text(yaml.safe_dump(content))
    return shipped


SHIPPED = ("cpu", "cpu_zero2", "cpu_zero3")


@pytest.mark.slow
def test_ddp_and_every_zero_stage_train_as_one_process_does(run_file: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    found = {}
    configs = accelerate_configs(tmp_path)
    for name, path in configs.items():
        done = train(run_file, f"run.name={name}", f"train.accelerate_config={path}")
        assert done.returncode == 0, done.stderr[-3000:]
        found[name] = losses(runs / name / "train")
        assert len(found[name]) == STEPS
        weights = runs / name / "train" / "model" / "adapter_model.safetensors"
        assert _largest(weights) > 0, "an adapter gathered from all ranks is not empty"
    assert found["cpu"][0] == pytest.approx(math.log(2), abs=1e-6)
    assert abs(found["cpu"][-1] - math.log(2)) > 1e-3, "training moved the loss"
    for name in configs:
        assert found[name] == pytest.approx(found["cpu"], abs=2e-5), name

    lines = metrics(runs / "cpu" / "train")
    start, *_, last = lines
    assert start["step"] == 0 and start["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    first, second, *_ = (line for line in lines if "loss" in line)
    for key in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert key in first
    assert {"logps/chosen", "grad_norm"} <= first.keys()
    # Where all margins are 0 by construction, their signs are no accuracy.
    evaluated, counted = (
        {line["step"] for line in lines if f"eval_rewards/{name}" in line}
        for name in ("margins", "accuracies")
    )
    assert evaluated - counted == {0} < evaluated
    assert "rewards/accuracies" in second.keys() - first.keys()
    assert any(line.get("tokens_per_second", 0) > 0 for line in lines)
    assert "train_loss" in last


def _largest(path: Path) -> float:
    from safetensors.torch import load_file

    tensors = load_file(path)
    assert all("lora_" in name for name in tensors)
    return max(float(value.abs().max()) for name, value in tensors.items() if "lora_B" in name)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_every_rank_and_names_its_rows(
    run_file: Path, tmp_path: Path
) -> None:
    """A learning rate that no model survives: the loss of a later step is not a number."""
    done = train(
        run_file,
        "train.learning_rate=1.0e+20",
        "train.save_steps=1",
        f"train.accelerate_config={ROOT}/accelerate_configs/cpu_zero2.yaml",
    )
    assert done.returncode == 1
    (message,) = re.findall(r"error: (loss is .*)", done.stderr)
    assert re.search(r"loss is (nan|inf) at step [1-5], in rows \w{16}", message)
    assert "The last checkpoint is kept" in message
    assert list((tmp_path / "runs/test/train/checkpoints").glob("checkpoint-*/COMPLETE"))


@pytest.mark.slow
def test_a_killed_training_goes_on_as_if_nothing_had_happened(
    run_file: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    assert train(run_file, "run.name=whole").returncode == 0

    process = subprocess.Popen(
        command(run_file, "run.name=killed"), cwd=ROOT, start_new_session=True
    )
    killed = runs / "killed" / "train"
    deadline = time.monotonic() + 240
    while not list(killed.glob("checkpoints/checkpoint-*/COMPLETE")):
        assert process.poll() is None, "training ended before its first checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "manifest.json").exists()

    done = train(run_file, "run.name=killed")
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(killed) == pytest.approx(losses(runs / "whole" / "train"), abs=1e-6)
    assert directory_digest(killed / "model", "*.safetensors") == directory_digest(
        runs / "whole" / "train" / "model", "*.safetensors"
    )


@pytest.mark.slow
@pytest.mark.skipif(not REAL_PREFERENCES.exists(), reason="the real rows are not here")
def test_200_real_public_preferences_train(run_file: Path, tmp_path: Path, write_run) -> None:
    done = train(
        run_file,
        f"preferences.path={REAL_PREFERENCES}",
        "preferences.validation_path=null",
        "preferences.limit=200",
        "train.max_length=1536",
        "train.micro_batch_size=4",
        "train.global_batch_size=20",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    manifest = json.loads((tmp_path / "runs/test/train/manifest.json").read_text())
    counts = manifest["counts"]
    assert counts["in"] == 200 == counts["kept"] + sum(counts["dropped"].values())
    assert losses(tmp_path / "runs/test/train")[0] == pytest.approx(math.log(2), abs=1e-5)


def test_processes_that_cannot_share_the_batch_are_refused_before_any_work(
    run_file: Path, tmp_path: Path
) -> None:
    done = train(
        run_file,
        "train.global_batch_size=3",
        f"train.accelerate_config={ROOT}/accelerate_configs/cpu_zero2.yaml",
    )
    assert done.returncode == 2
    assert "3 is not a multiple of micro_batch_size 1 x 2 processes" in done.stderr
    assert not (tmp_path / "runs").exists()
