"""One training process: `accelerate launch ... -m dpo_dist.training.worker JOB.json`."""

from __future__ import annotations

import atexit
import faulthandler
import multiprocessing
import os
import signal
import sys
import traceback
from pathlib import Path
from threading import Event
from typing import NoReturn

from dpo_dist.errors import INTERRUPTED, DpoDistError
from dpo_dist.system import ranks
from dpo_dist.system.console import quiet_libraries
from dpo_dist.tracking import start
from dpo_dist.training.job import TrainingJob
from dpo_dist.training.logs import rank_log, record, redirect_output
from dpo_dist.training.process import prepare, shield_loaders, take_device


def main(path: str) -> int:
    """Run the job in a JSON file and return the exit code."""
    # First: a SIGTERM during the imports would end this process and, with it, all the others.
    preempted = Event()
    signal.signal(signal.SIGTERM, lambda *_: preempted.set())
    prepare()
    quiet_libraries()
    job = TrainingJob.model_validate_json(Path(path).read_text(encoding="utf-8"))
    if job.logs is not None:
        redirect_output(rank_log(job.logs, ranks.rank()))
        faulthandler.enable()
    try:
        return _run(job, preempted)
    except Exception as error:
        if job.logs is None:
            raise
        record(job.logs, ranks.rank(), error)
        if isinstance(error, DpoDistError):
            return error.exit_code
        traceback.print_exc()
        return 1


def _run(job: TrainingJob, preempted: Event) -> int:
    take_device()
    shield_loaders()

    import transformers

    from dpo_dist.training.trainer import train

    transformers.utils.logging.disable_progress_bar()
    try:
        if job.wandb is not None and ranks.is_main():
            start(job.wandb)  # the trainer's callback uses the W&B run that is already active
        train(job, preempted)
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def end_process(status: int) -> NoReturn:
    """End the process without finalizing the interpreter. gloo's threads may hold tensors after the
    process group is destroyed, and freeing one during finalization aborts the process."""
    if status == 0:  # after a failure the other ranks may never answer
        import torch.distributed

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    for loader in multiprocessing.active_children():
        loader.kill()  # Python would send SIGTERM, which it ignores, and wait for it
    atexit._run_exitfuncs()  # Weights & Biases uploads its last data there
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    end_process(main(sys.argv[1]))
