"""`dpo-dist sweep`."""

from __future__ import annotations

import argparse

from dpo_dist.errors import INTERRUPTED
from dpo_dist.system.options import add_options
from dpo_dist.tools.arguments import Command, Parser, RunOptions, add_run_file, show_report


def _add(parser: Parser) -> None:
    add_run_file(parser, "; several comma-separated values are swept")
    add_options(parser, RunOptions, ("force", "quiet", "yes"))


def _run(options: argparse.Namespace) -> int:
    from dpo_dist.system.console import keep_log
    from dpo_dist.tools.sweep.points import plan_sweep, report_folder, sweep

    plan = plan_sweep(options.run_file, options.set)
    with keep_log(plan.base.log):
        status = sweep(plan, options.run_file, force=options.force)
        if status == INTERRUPTED:
            raise KeyboardInterrupt
        if status == 0:
            show_report(report_folder(plan.base), "sweep.html")
        return status


COMMAND = Command(
    "sweep",
    "train and evaluate once for every combination of settings, on the same pairs",
    "run.yaml --set train.beta=0.03,0.1,0.3",
    add=_add,
    run=_run,
    exit_codes=True,
)
