"""`accelerate launch`, deaf to SIGTERM: a scheduler that signals all processes of a job must not
take the launcher away from under workers that are writing a checkpoint.

The workers have a handler of their own. With several processes torch's elastic agent installs
one as well: it passes the signal on and waits (`TORCH_ELASTIC_SHUTDOWN_TIMEOUT`).
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from dpo_dist.system.processes import die_with_parent
from dpo_dist.training.failures import record_exit
from dpo_dist.training.job import TrainingJob


def main() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    die_with_parent()
    from accelerate.commands.launch import main as accelerate_launch
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        accelerate_launch()
    except ChildFailedError as error:  # of several processes
        _record({rank: failure.exitcode for rank, failure in error.failures.items()})
        raise
    except subprocess.CalledProcessError as error:  # of one
        _record({0: error.returncode})
        raise


def _record(statuses: dict[int, int]) -> None:
    """Keep how the training processes ended; `main`'s last argument is their job's file."""
    job = TrainingJob.model_validate_json(Path(sys.argv[-1]).read_text(encoding="utf-8"))
    if job.logs is not None:
        for rank, status in statuses.items():
            record_exit(job.logs, rank, status)


if __name__ == "__main__":
    main()
