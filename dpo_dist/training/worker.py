"""One training process: `accelerate launch ... -m dpo_dist.training.worker JOB.json`."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from pathlib import Path
from threading import Event
from typing import NoReturn

from dpo_dist import ranks
from dpo_dist.console import quiet_libraries, say, scrub
from dpo_dist.errors import INTERRUPTED, DpoDistError
from dpo_dist.tracking import start
from dpo_dist.training.job import TrainingJob


def main(path: str) -> int:
    """Run the job in a JSON file and return the exit code."""
    # At once: a signal during the imports would end this process, and with it all the others.
    preempted = Event()
    signal.signal(signal.SIGTERM, lambda *_: preempted.set())
    quiet_libraries()
    job = TrainingJob.model_validate_json(Path(path).read_text(encoding="utf-8"))
    import transformers

    from dpo_dist.training.trainer import train

    transformers.utils.logging.disable_progress_bar()

    try:
        if job.wandb is not None and ranks.is_main():
            start(job.wandb)  # the trainer's callback goes on with what has begun
        train(job, preempted)
    except DpoDistError as error:
        say(f"error: {scrub(str(error))}")
        return error.exit_code
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
