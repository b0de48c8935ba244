"""Runs a training from the phase's process: resume, start the training processes, watch them."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from dpo_dist.data.models import check_unquantized
from dpo_dist.errors import INTERRUPTED, ConfigError, PhaseFailed, Preempted
from dpo_dist.storage.artifacts import write_text
from dpo_dist.system.console import counted, say
from dpo_dist.system.processes import run_to_end
from dpo_dist.training.accelerate_command import (
    check_launch,
    launcher_command,
    launcher_environment,
)
from dpo_dist.training.checkpoints import convert_shards, last_complete
from dpo_dist.training.job import PREEMPTED, STOP, TrainingJob
from dpo_dist.training.logs import Echo, any_failed, explain, new_attempt, node_log, rank_log
from dpo_dist.training.nodes import GRACE_SECONDS, Leader

CHECK_SECONDS = 1.0


def resume(job: TrainingJob) -> TrainingJob:
    """The job with its last complete checkpoint, if it has one. If the number of processes changed,
    DeepSpeed's shards are converted. Raises `ConfigError` if the ZeRO stage changed."""
    checkpoint = last_complete(job.out / "checkpoints")
    if checkpoint is None:
        return job
    accelerate_config = job.settings.accelerate_config
    processes, stage = job.shape.processes, job.shape.zero_stage
    if stage != checkpoint.zero_stage:
        raise ConfigError(
            f"accelerate_config: {accelerate_config} trains {_zero_name(stage)}, but "
            f"{checkpoint.path} was written {_zero_name(checkpoint.zero_stage)}. Resume with a "
            "matching configuration (the number of processes may differ), or start over under "
            "another run.name."
        )
    say(f"resuming from step {checkpoint.step}")
    # Without ZeRO the checkpoint is not sharded: any number of processes can load it.
    reshard = stage > 0 and checkpoint.world_size != processes
    if reshard:
        say(
            f"converting its shards from {checkpoint.world_size} to "
            f"{counted(processes, 'process', 'processes')}"
        )
        convert_shards(checkpoint.path)
    return job.model_copy(update={"checkpoint": checkpoint.path, "reshard": reshard})


def _zero_name(stage: int) -> str:
    return f"with DeepSpeed ZeRO-{stage}" if stage else "without ZeRO"


def launch(job: TrainingJob, leader: Leader | None = None) -> None:
    """Train, on all nodes if there is a `leader`, and return when the model is saved. Raises
    `PhaseFailed` with the first error if a process fails, `NodeLost` if a machine fails,
    `Preempted` after SIGTERM, and `KeyboardInterrupt` after SIGINT."""
    accelerate_config, nodes = job.settings.accelerate_config, leader.nodes if leader else None
    check_launch(job.settings, nodes)
    check_unquantized(job.model)
    for name in (STOP, PREEMPTED):
        (job.out / name).unlink(missing_ok=True)
    logs = new_attempt(job.out / "logs")
    job = resume(job).model_copy(update={"logs": logs})
    path = job.out / "job.json"
    write_text(path, job.model_dump_json(indent=2) + "\n")
    if leader:
        path = leader.announce(job)
    watch = _Watch(logs, job.out / STOP, leader)
    try:
        status = run_to_end(
            launcher_command(path, accelerate_config, nodes),
            launcher_environment(accelerate_config, nodes),
            # `accelerate launch` does not forward signals.
            on_terminate=lambda _: write_text(job.out / STOP, ""),
            output=node_log(logs, 0),
            look=watch.check,
        )
    finally:
        watch.echo.show_new()
    if status in (INTERRUPTED, -signal.SIGINT):
        raise KeyboardInterrupt
    if (job.out / PREEMPTED).exists():
        step = (job.out / PREEMPTED).read_text(encoding="utf-8").strip()
        raise Preempted(f"training was stopped after step {step}, which is saved")
    if status and (job.out / STOP).exists():
        raise Preempted("training was stopped before it could save its last steps")
    if status:
        raise PhaseFailed(explain(logs, status))


class _Watch:
    """Watches a training while it runs: shows its log, and raises if it cannot finish."""

    def __init__(self, logs: Path, stop: Path, leader: Leader | None) -> None:
        self.echo = Echo(rank_log(logs, 0))
        self._logs, self._stop, self._leader = logs, stop, leader
        self._next = 0.0
        self._failed_at: float | None = None

    def check(self) -> None:
        self.echo.show_new()
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + CHECK_SECONDS
        if any_failed(self._logs):
            self._failed_at = self._failed_at or now
            # The other ranks may wait a very long time for the failed one.
            if now - self._failed_at > GRACE_SECONDS:
                raise PhaseFailed(explain(self._logs, 1))
        if self._leader:
            self._leader.check(stopping=self._stop.exists())
