"""Speed and memory in the metrics of a training."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from types import SimpleNamespace

import pytest

from dpo_dist.training import usage
from dpo_dist.training.job import TrainingJob
from dpo_dist.training.monitors import MetricsWriter
from dpo_dist.training.usage import SpeedMeter, peak_memory
from tests.training_jobs import training_job


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 50.0
        monkeypatch.setattr(usage.time, "monotonic", lambda: self.now)

    def after(self, seconds: float) -> None:
        self.now += seconds


def job(folder: Path, **figures: float) -> TrainingJob:
    return training_job(folder, dtype="bfloat16", **figures)


def test_the_speed_is_that_of_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps between two logs, with a validation and a checkpoint in between."""
    clock = Clock(monkeypatch)
    monkeypatch.setenv("WORLD_SIZE", "4")
    writer = MetricsWriter(
        tmp_path / "metrics.jsonl", "train", job(tmp_path, flops_per_token=6e9, gpu_flops=1e15)
    )
    args, state = SimpleNamespace(device=None), SimpleNamespace(global_step=0, max_steps=9, epoch=1)
    control = SimpleNamespace(should_evaluate=False)
    writer.on_train_begin(args, state, control)

    def step(seconds: float, *, evaluates: bool = False) -> None:
        clock.after(seconds)
        state.global_step += 1
        control.should_evaluate = evaluates
        writer.on_step_end(args, state, control)

    step(100.0)  # the first is slow, and has no speed
    writer.on_log(args, state, control, logs={"loss": 1.0, "num_tokens": 5000.0})
    step(2.0, evaluates=True)
    clock.after(1000.0)
    writer.on_log(args, state, control, logs={"eval_loss": 1.0})
    writer.on_evaluate(args, state, control)
    clock.after(300.0)  # the KL
    writer.on_log(args, state, control, logs={"kl/per_token": 0.1})
    step(2.0)
    clock.after(500.0)
    writer.on_save(args, state, control)
    step(2.0)
    logs = {"loss": 1.0, "num_tokens": 5000.0 + 6 * 200_000}
    writer.on_log(args, state, control, logs=logs)
    assert logs["tokens_per_second"] == 200_000, "trackers get it, too"
    assert logs["mfu"] == pytest.approx(200_000 * 6e9 / (4 * 1e15))
    writer.on_train_end(args, state, control)
    lines = [json.loads(line) for line in writer._log.path.read_text().splitlines()]
    assert [("mfu" in line, "peak_memory_gib" in line) for line in lines] == [
        *((False, True), (False, False), (False, False), (True, True))
    ]


@pytest.mark.parametrize("figures", [{}, {"flops_per_token": 6e9}])
def test_without_a_known_gpu_there_is_no_mfu(tmp_path: Path, figures: dict[str, float]) -> None:
    meter = SpeedMeter(job(tmp_path, **figures))
    assert meter.log(10.0) == {}
    assert meter.log(20.0).keys() == {"tokens_per_second"}


def test_the_peak_is_this_process_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage.torch.cuda, "is_available", lambda: False)
    before = peak_memory()
    content = bytearray(b"1" * 300 * 2**20)
    after = peak_memory()
    assert after.device_bytes is None and after.bytes == after.rss_bytes
    assert after.rss_bytes == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert after.rss_bytes >= max(before.rss_bytes, len(content))
