"""`accelerate launch`, deaf to SIGTERM: a scheduler that signals all processes of a job must not
take the launcher away from under workers that are writing a checkpoint.

The workers have a handler of their own. With several processes torch's elastic agent installs
one as well: it passes the signal on and waits (`TORCH_ELASTIC_SHUTDOWN_TIMEOUT`).
"""

from __future__ import annotations

import signal

from dpo_dist.processes import die_with_parent


def main() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    die_with_parent()
    from accelerate.commands.launch import main as accelerate_launch

    accelerate_launch()


if __name__ == "__main__":
    main()
