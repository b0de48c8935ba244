"""DPO on a tiny model: DDP and every ZeRO stage give the losses of one process."""

from __future__ import annotations

import json
import math
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_dist.storage.artifacts import write_text
from dpo_dist.training.job import TrainingJob
from tests.conftest import REAL_PREFERENCES
from tests.in_process import in_this_process
from tests.integration.trainings import (
    EPOCHS,
    STEPS,
    losses,
    metrics,
    saved,
    shipped,
    stop,
    train,
    write_training,
)
from tests.tiny import make_model


@pytest.mark.slow
def test_ddp_and_every_zero_stage_train_as_one_process_does(whole: Callable[[str], Path]) -> None:
    found = {}
    for name in ("cpu", "cpu_zero2", "cpu_zero3", "cpu_zero1", "cpu_ddp"):
        folder = whole(name)
        found[name] = losses(folder)
        assert len(found[name]) == EPOCHS * STEPS
        weights = folder / "model" / "adapter_model.safetensors"
        assert _largest(weights) > 0, "an adapter gathered from all ranks is not empty"
    assert found["cpu"][0] == pytest.approx(math.log(2), abs=1e-6)
    assert abs(found["cpu"][-1] - math.log(2)) > 1e-3, "training moved the loss"
    for name, values in found.items():
        assert values == pytest.approx(found["cpu"], abs=2e-5), name

    lines = metrics(whole("cpu"))
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
def test_a_quantized_base_trains_the_same_under_zero_3(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    model = make_model(tmp_path / "model", hidden=64)
    found = []
    for name in ("cpu", "cpu_zero3"):
        (tmp_path / name).mkdir()
        method = {"type": "lora", "r": 4, "alpha": 8, "quantization": "nf4"}
        assert train(write_training(tmp_path / name, model, method=method), shipped(name)) == 0
        found.append(losses(tmp_path / name / "runs/test/train"))
    one, sharded = found
    assert len(one) == STEPS and one[0] == pytest.approx(math.log(2), abs=1e-6)
    assert sharded == pytest.approx(one, abs=2e-5)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_every_rank_and_names_its_rows(
    training_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A learning rate that no model survives: the loss of a later step is not a number."""
    settings = ("train.learning_rate=1.0e+20", "train.save_steps=1", shipped("cpu_zero2"))
    assert train(training_file, *settings) == 1
    (message,) = re.findall(r"error: (loss is .*)", capfd.readouterr().err)
    assert re.search(r"loss is (nan|inf) at step [1-5], in rows \w{16}", message)
    assert "The last checkpoint is kept" in message
    assert list((tmp_path / "runs/test/train/checkpoints").glob("checkpoint-*/COMPLETE"))


@pytest.mark.slow
@pytest.mark.skipif(not REAL_PREFERENCES.exists(), reason="the real rows are not here")
def test_200_real_public_preferences_train(training_file: Path, tmp_path: Path) -> None:
    settings = (
        f"preferences.path={REAL_PREFERENCES}",
        "preferences.validation=null",
        "preferences.limit=200",
        "train.max_length=1536",
        "train.micro_batch_size=4",
        "train.global_batch_size=20",
    )
    with in_this_process():
        assert train(training_file, *settings) == 0
    manifest = json.loads((tmp_path / "runs/test/train/manifest.json").read_text())
    counts = manifest["counts"]
    assert counts["in"] == 200 == counts["kept"] + sum(counts["dropped"].values())
    assert losses(tmp_path / "runs/test/train")[0] == pytest.approx(math.log(2), abs=1e-5)


WITH_LOADERS = """
import sys
from pathlib import Path
from dpo_dist.training.process import prepare
prepare()
from dpo_dist.training import trainer, worker
from dpo_dist.training.job import TrainingJob
plain = trainer._arguments
trainer._arguments = lambda job: plain(job) | {"dataloader_num_workers": 2}
worker._train(TrainingJob.model_validate_json(Path(sys.argv[1]).read_text()))
worker.end_process(0)
"""


@pytest.mark.slow
def test_workers_that_collate_change_no_loss_and_end_with_the_training(
    long_file: Path, tmp_path: Path
) -> None:
    """As on a GPU. SIGTERM reaches them, too, and the step still ends and is saved."""
    with in_this_process():
        assert train(long_file) == 0
    alone = tmp_path / "runs/test/train"
    job = json.loads((alone / "job.json").read_text())
    out = tmp_path / "again"
    again = TrainingJob.model_validate(job | {"out": out, "logs": out / "logs"})
    (out / "logs").mkdir(parents=True)
    write_text(out / "job.json", again.model_dump_json())
    status = stop(
        [sys.executable, "-c", WITH_LOADERS, str(out / "job.json")],
        out,
        signal.SIGTERM,
        group=True,
        after=1,
    )
    assert status == 0
    steps = int((out / "PREEMPTED").read_text())
    assert 1 < steps < EPOCHS * STEPS and saved(out) == steps
    assert losses(out) == losses(alone)[:steps]


def test_processes_that_cannot_share_the_batch_are_refused_before_any_work(
    training_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(training_file, "train.global_batch_size=3", shipped("cpu_zero2")) == 2
    assert "3 is not a multiple of micro_batch_size 1 x 2 processes" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
