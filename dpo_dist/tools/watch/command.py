"""`dpo-dist watch`."""

from __future__ import annotations

import argparse

from dpo_dist.tools.arguments import Command, Parser, add_run


def _add(parser: Parser) -> None:
    add_run(parser)
    parser.add_argument("--once", action="store_true", help="print the state once and exit")


def _run(options: argparse.Namespace) -> int:
    from dpo_dist.tools.watch.run import WatchedRun
    from dpo_dist.tools.watch.screen import watch

    watch(WatchedRun.open(options.run_file, options.set), once=options.once)
    return 0


COMMAND = Command(
    "watch",
    "show the progress of a run, from any machine that can read its directory",
    "runs/incident-triage",
    add=_add,
    run=_run,
    details="Files are only read, never written.",
)
