"""A training seen from the phase: its processes are started, watched, and ended if need be."""

from __future__ import annotations

import signal
import time

from dpo_dist.errors import INTERRUPTED, PhaseFailed, Preempted
from dpo_dist.storage.artifacts import write_text
from dpo_dist.system.processes import run_to_end
from dpo_dist.training.accelerate_command import (
    check_launch,
    launcher_command,
    launcher_environment,
)
from dpo_dist.training.failures import any_failed, explain
from dpo_dist.training.job import PREEMPTED, STOP, TrainingJob
from dpo_dist.training.logs import Echo, new_attempt, node_log, rank_log
from dpo_dist.training.nodes import GRACE_SECONDS, Leader
from dpo_dist.training.resume import resume

_CHECK_SECONDS = 1.0


def launch(job: TrainingJob, leader: Leader | None = None) -> None:
    """Train, on all nodes where there is a `leader`, and return when the model has been saved.

    Raises `PhaseFailed` when a process fails, with what the first one failed of, `NodeLost` when a
    machine does, `Preempted` after SIGTERM and `KeyboardInterrupt` when it was interrupted.
    """
    accelerate_config, nodes = job.settings.accelerate_config, leader.nodes if leader else None
    check_launch(job.settings, nodes)
    for name in (STOP, PREEMPTED):
        (job.out / name).unlink(missing_ok=True)
    logs = new_attempt(job.out / "logs")
    job = resume(job).model_copy(update={"logs": logs})
    path = job.out / "job.json"
    write_text(path, job.model_dump_json(indent=2) + "\n")
    if leader:
        path = leader.announce(job)
    watch = _Watch(job, leader)
    try:
        status = run_to_end(
            launcher_command(path, accelerate_config, nodes),
            launcher_environment(accelerate_config, nodes),
            # The launcher passes no signals on.
            on_terminate=lambda _: write_text(job.out / STOP, ""),
            output=node_log(logs, 0),
            look=watch.look,
        )
    finally:
        watch.echo.look()
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
    """Looks at a training while it runs: shows its log, and ends it when it cannot go on."""

    def __init__(self, job: TrainingJob, leader: Leader | None) -> None:
        assert job.logs is not None
        self.echo = Echo(rank_log(job.logs, 0))
        self._logs = job.logs
        self._stop = job.out / STOP
        self._leader = leader
        self._next = 0.0
        self._failed_at: float | None = None

    def look(self) -> None:
        self.echo.look()
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _CHECK_SECONDS
        if any_failed(self._logs):
            self._failed_at = self._failed_at or now
            # A rank that waits for one that has failed may wait for very long.
            if now - self._failed_at > GRACE_SECONDS:
                raise PhaseFailed(explain(self._logs, 1))
        if self._leader:
            self._leader.check(stopping=self._stop.exists())
