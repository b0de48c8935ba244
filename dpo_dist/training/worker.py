"""One training process: `accelerate launch ... -m dpo_dist.training.worker JOB.json`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from threading import Event

from dpo_dist.console import quiet_libraries, say, scrub
from dpo_dist.errors import INTERRUPTED, DpoDistError
from dpo_dist.training.job import TrainingJob


def main(path: str) -> int:
    """Run the job in a JSON file and return the exit code."""
    # At once: a signal during the imports would end this process, and with it all the others.
    preempted = Event()
    signal.signal(signal.SIGTERM, lambda *_: preempted.set())
    quiet_libraries()
    job = TrainingJob.model_validate_json(Path(path).read_text(encoding="utf-8"))
    if job.wandb is not None:
        os.environ |= {
            "WANDB_PROJECT": job.wandb.project,
            "WANDB_MODE": job.wandb.mode,
            "WANDB_DIR": str(job.out),
        }
    import transformers

    from dpo_dist.training.trainer import train

    transformers.utils.logging.disable_progress_bar()

    try:
        train(job, preempted)
        _leave_process_group()
    except DpoDistError as error:
        say(f"error: {scrub(str(error))}")
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _leave_process_group() -> None:
    """A group that is torn down with the interpreter can abort it, after all work is done."""
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
