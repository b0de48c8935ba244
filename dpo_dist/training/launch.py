"""Starting the training processes with `accelerate launch`."""

from __future__ import annotations

from dpo_dist.artifacts import write_text
from dpo_dist.errors import INTERRUPTED, PhaseFailed, Preempted
from dpo_dist.processes import run_to_end
from dpo_dist.training.job import PREEMPTED, STOP, TrainingJob
from dpo_dist.training.nodes import Leader
from dpo_dist.training.resume import resume
from dpo_dist.training.start import check_machines, launcher_command, launcher_environment


def launch(job: TrainingJob, leader: Leader | None = None) -> None:
    """Train, on all nodes where there is a `leader`, and return when the model has been saved.

    Raises `PhaseFailed` when a process fails, `NodeLost` when a node does, `Preempted` after
    SIGTERM and `KeyboardInterrupt` when it was interrupted.
    """
    accelerate_config, nodes = job.settings.accelerate_config, leader.nodes if leader else None
    check_machines(accelerate_config, nodes)
    for name in (STOP, PREEMPTED):
        (job.out / name).unlink(missing_ok=True)
    job = resume(job)
    path = job.out / "job.json"
    write_text(path, job.model_dump_json(indent=2) + "\n")
    if leader:
        path = leader.announce(job)

    def look() -> None:
        if leader:
            leader.check(stopping=(job.out / STOP).exists())

    status = run_to_end(
        launcher_command(path, accelerate_config, nodes),
        launcher_environment(accelerate_config, nodes),
        # The launcher passes no signals on.
        on_terminate=lambda _: write_text(job.out / STOP, ""),
        look=look,
    )
    if status == INTERRUPTED or status == -2:
        raise KeyboardInterrupt
    if (job.out / PREEMPTED).exists():
        step = (job.out / PREEMPTED).read_text(encoding="utf-8").strip()
        raise Preempted(f"training was stopped after step {step}, which is saved")
    if status and (job.out / STOP).exists():
        raise Preempted("training was stopped before it could save its last steps")
    if status:
        raise PhaseFailed(f"training ended with exit code {status}; see the messages above")
