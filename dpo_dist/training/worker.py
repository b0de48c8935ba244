"""One training process: `accelerate launch ... -m dpo_dist.training.worker JOB.json`."""

from __future__ import annotations

import atexit
import faulthandler
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
from dpo_dist.system.processes import die_with_parent
from dpo_dist.tracking import start
from dpo_dist.training.failures import record
from dpo_dist.training.job import TrainingJob
from dpo_dist.training.logs import rank_log, write_to


def main(path: str) -> int:
    """Run the job in a JSON file and return the exit code."""
    # At once: a signal during the imports would end this process, and with it all the others.
    preempted = Event()
    signal.signal(signal.SIGTERM, lambda *_: preempted.set())
    die_with_parent()
    quiet_libraries()
    job = TrainingJob.model_validate_json(Path(path).read_text(encoding="utf-8"))
    if job.logs is None:
        return _run(job, preempted)
    write_to(rank_log(job.logs, ranks.rank()))
    faulthandler.enable()
    try:
        return _run(job, preempted)
    except DpoDistError as error:
        record(job.logs, ranks.rank(), error)
        return error.exit_code
    except Exception as error:
        record(job.logs, ranks.rank(), error)
        traceback.print_exc()
        return 1


def _run(job: TrainingJob, preempted: Event) -> int:
    import transformers

    from dpo_dist.training.trainer import train

    transformers.utils.logging.disable_progress_bar()
    try:
        if job.wandb is not None and ranks.is_main():
            start(job.wandb)  # the trainer's callback goes on with what has begun
        train(job, preempted)
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def end_process(status: int) -> NoReturn:
    """End the process without taking the interpreter apart.

    Gloo's threads may still hold tensors, also once the group is destroyed; freeing one while the
    interpreter goes away aborts the process (SIGABRT), after all its work is done.
    """
    if status == 0:  # after a failure the others may never answer
        _leave_process_group()
    atexit._run_exitfuncs()  # Weights & Biases sends its last lines there
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _leave_process_group() -> None:
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    end_process(main(sys.argv[1]))
