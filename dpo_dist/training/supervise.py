"""Starts the ranks of a training phase and watches them, for `dpo-dist train` and `sft`."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from dpo_dist.config import Optimization
from dpo_dist.errors import INTERRUPTED, ConfigError, PhaseFailed, Preempted
from dpo_dist.storage.artifacts import write_text
from dpo_dist.system.console import counted, say
from dpo_dist.system.processes import Process, run_to_end
from dpo_dist.system.ranks import Nodes
from dpo_dist.training.accelerate_command import (
    launcher_command,
    launcher_environment,
    starts_directly,
)
from dpo_dist.training.checkpoints import convert_shards, last_complete
from dpo_dist.training.job import PREEMPTED, TrainingJob
from dpo_dist.training.logs import (
    Echo,
    any_failed,
    explain,
    given_attempt,
    new_attempt,
    node_log,
    rank_log,
    record_exit,
    refusal,
    stop_file,
)
from dpo_dist.training.nodes import GRACE_SECONDS, Leader

CHECK_SECONDS = 1.0


def resume(job: TrainingJob) -> TrainingJob:
    """The job with its last complete checkpoint, if it has one. If the number of processes changed,
    DeepSpeed's shards are converted. Raises `ConfigError` if the sharding changed."""
    checkpoint = last_complete(job.out / "checkpoints")
    if checkpoint is None:
        return job
    processes, shape = job.shape.processes, job.shape
    if shape.sharding != checkpoint.sharding:
        own = f"accelerate_config: {job.settings.accelerate_file}"
        raise ConfigError(
            f"{own if given_attempt() else 'the launcher'} trains with {shape.sharding}, but "
            f"{checkpoint.path} was written with {checkpoint.sharding}. Resume with a "
            "matching configuration (the number of processes may differ), or start over under "
            "another run.name."
        )
    say(f"resuming from step {checkpoint.step}")
    # Any number of processes can load a checkpoint that is not sharded, or that FSDP wrote.
    reshard = shape.zero_stage > 0 and checkpoint.world_size != processes
    if reshard:
        say(
            f"converting its shards from {checkpoint.world_size} to "
            f"{counted(processes, 'process', 'processes')}"
        )
        convert_shards(checkpoint.path)
    return job.model_copy(update={"checkpoint": checkpoint.path, "reshard": reshard})


def supervise(
    command: Sequence[str], settings: Optimization, folder: Path, leader: Leader | None = None
) -> None:
    """Start the ranks of a training phase, which run the `command`, and return when they have
    completed the phase's `folder`. With a `leader`, all nodes start theirs.

    Raises `PhaseFailed` with the first error if a rank fails, `NodeLost` if a machine fails,
    `UserError` if the input must change, `Preempted` after SIGTERM, and `KeyboardInterrupt` after
    SIGINT."""
    logs = new_attempt(folder / "logs")
    for path in (stop := stop_file(logs), folder / PREEMPTED):
        path.unlink(missing_ok=True)
    if leader:
        leader.start_all(logs)
    nodes = leader.nodes if leader else None
    watch = _Watch(logs, stop, leader)
    try:
        status = run_to_end(
            launcher_command(command, settings.accelerate_file, nodes),
            launcher_environment(settings.accelerate_file, nodes, logs),
            # `accelerate launch` does not forward signals.
            on_terminate=lambda _: write_text(stop, ""),
            output=node_log(logs, 0),
            look=watch.check,
        )
    finally:
        watch.echo.show_new()
    if status in (INTERRUPTED, -signal.SIGINT):
        raise KeyboardInterrupt
    if status:
        if error := refusal(logs):
            raise error
        if stop.exists():
            raise Preempted("training was stopped before it could save its last steps")
        if nodes is None and starts_directly(settings.accelerate_file):
            record_exit(logs, 0, status)  # else the launcher has done it
        raise PhaseFailed(explain(logs, status))


def start_ranks(
    command: Sequence[str], settings: Optimization, nodes: Nodes, logs: Path
) -> Process:
    """Start the ranks of a follower node, which run the `command`."""
    say(f"node {nodes.rank} of {nodes.count}: starting its ranks ({logs})")
    config = settings.accelerate_file
    with node_log(logs, nodes.rank).open("ab") as file:
        return subprocess.Popen(
            launcher_command(command, config, nodes),
            env=launcher_environment(config, nodes, logs),
            stdout=file,
            stderr=file,
        )


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
        if any_failed(self._logs) and refusal(self._logs) is None:
            self._failed_at = self._failed_at or now
            # The other ranks may wait a very long time for the failed one.
            if now - self._failed_at > GRACE_SECONDS:
                raise PhaseFailed(explain(self._logs, 1))
        if self._leader:
            self._leader.check(stopping=self._stop.exists())
