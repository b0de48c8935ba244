"""`dpo-dist watch`."""

from __future__ import annotations

import argparse
from pathlib import Path

from dpo_dist.tools.arguments import Commands, add_command, add_set


def run(options: argparse.Namespace) -> int:
    from dpo_dist.tools.watch.run import WatchedRun
    from dpo_dist.tools.watch.screen import watch

    watch(WatchedRun.open(options.run_file, options.set), once=options.once)
    return 0


def add(commands: Commands) -> None:
    """The parser of `dpo-dist watch`."""
    command = add_command(
        commands,
        "watch",
        "show the progress of a run, from any machine that sees its directory",
        "Files are only read, never written.",
        example="runs/incident-triage",
    )
    command.add_argument("run_file", type=Path, metavar="RUN", help="a run directory or run file")
    add_set(command)
    command.add_argument("--once", action="store_true", help="print the state once and exit")
