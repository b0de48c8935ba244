"""Starting the training processes with `accelerate launch`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dpo_dist import ranks
from dpo_dist.artifacts import write_text
from dpo_dist.errors import INTERRUPTED, PhaseFailed, Preempted
from dpo_dist.processes import run_to_end
from dpo_dist.training.job import PREEMPTED, STOP, TrainingJob, num_processes
from dpo_dist.training.resume import resume

# glibc hands every large buffer back to the kernel when it is freed and faults it in again at
# the next allocation; keeping them makes a CPU training step about twice as fast.
CPU_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "17179869184"}
# Threads that wait for each other sleep: spinning costs nothing on an idle machine, and keeps the
# one that is waited for from its core on a busy one (three times the time of a small step).
CPU_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}


def launch(job: TrainingJob) -> None:
    """Train, and return when the model has been saved.

    Raises `PhaseFailed` when a process fails (its own message is already on the console),
    `Preempted` after SIGTERM and `KeyboardInterrupt` when it was interrupted.
    """
    for name in (STOP, PREEMPTED):
        (job.out / name).unlink(missing_ok=True)
    job = resume(job)
    path = job.out / "job.json"
    write_text(path, job.model_dump_json(indent=2) + "\n")
    accelerate_config = job.settings.accelerate_config
    command = [
        *(sys.executable, "-m", "dpo_dist.training.launcher"),
        *("--config_file", str(accelerate_config)),
        *("-m", "dpo_dist.training.worker", str(path)),
    ]
    status = run_to_end(
        command,
        _environment(accelerate_config),
        # The launcher passes no signals on.
        on_terminate=lambda _: write_text(job.out / STOP, ""),
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


def _environment(accelerate_config: Path) -> dict[str, str]:
    ranks.strip_launcher_variables()
    # SIGTERM may come in the middle of a long step, and saving takes its time; torch's launcher
    # would kill the workers after 30 s. Whoever sent the signal sets the limit.
    environment = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "1800", **os.environ}
    if not _has_cuda():
        threads = max(1, (os.cpu_count() or 1) // num_processes(accelerate_config))
        environment |= {"OMP_NUM_THREADS": str(threads), "DS_ACCELERATOR": "cpu"}
        environment |= {**CPU_ALLOCATOR, **CPU_THREADS}
    return environment


def _has_cuda() -> bool:
    # Asking torch would cost seconds of import in a process that only waits.
    return Path("/proc/driver/nvidia/version").exists()
