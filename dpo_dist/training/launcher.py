"""`accelerate launch` that ignores SIGTERM, and records the exit codes of failed ranks. A scheduler
may signal all processes of a job, and the launcher must not end while the ranks write a checkpoint.

The ranks handle SIGTERM themselves. With several processes torch's elastic agent also installs a
handler: it forwards the signal and waits (`TORCH_ELASTIC_SHUTDOWN_TIMEOUT`).
"""

from __future__ import annotations

import signal
import subprocess

from dpo_dist.system.processes import die_with_parent
from dpo_dist.training.logs import given_attempt, record_exit


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
    if attempt := given_attempt():
        for rank, status in statuses.items():
            record_exit(attempt, rank, status)


if __name__ == "__main__":
    main()
