"""`dpo-dist run`, and one command per phase."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dpo_dist.errors import INTERRUPTED, Preempted, UserError
from dpo_dist.system import ranks
from dpo_dist.system.options import add_options, from_options, set_options
from dpo_dist.system.ranks import WHOLE
from dpo_dist.tools.arguments import (
    Command,
    Parser,
    RunOptions,
    add_nodes,
    add_run_file,
    load_run,
    nodes_of,
    show_report,
)

if TYPE_CHECKING:
    from dpo_dist.runs.run import Run, Step


def _run(options: argparse.Namespace) -> int:
    from dpo_dist.system.console import keep_log

    run = load_run(options)
    if options.dry_run:
        return _show_preview(run, run.steps, options)
    with keep_log(run.log):
        return _run_phases(options, run)


def _run_phases(options: argparse.Namespace, run: Run) -> int:
    from dpo_dist.phases.pipeline import run_all
    from dpo_dist.system.console import show_result

    if options.preflight and (status := _preflight(options, run)):
        return status
    status = run_all(options.run_file, run, options.set, force=options.force)
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    folder = run.root / "report"
    if status == 0 and (folder / "table.txt").exists():
        show_report(folder, "report.html")
    elif status == 0:
        show_result(f"done: {run.root}")
    return status


def _show_preview(run: Run, steps: Sequence[Step], options: argparse.Namespace) -> int:
    from dpo_dist.tools.run.preview import preview

    for line in preview(run, steps, force=options.force):
        print(line)
    return 0


def _preview_phase(options: argparse.Namespace) -> int:
    """Show what one phase would do."""
    from dpo_dist.runs.run import Step

    run = load_run(options)
    run = run.select_round(options.command, from_options(RunOptions, options).round)
    return _show_preview(run, [Step(options.command, run.round)], options)


def _preflight(options: argparse.Namespace, run: Run) -> int:
    """Check this machine if a training remains to be done, and return the exit code."""
    from dpo_dist.phases.pipeline import check_before_work
    from dpo_dist.system.processes import run_to_end

    check_before_work(run)
    if run.is_trained():
        return 0
    command = [sys.executable, "-m", "dpo_dist", "preflight", str(options.run_file)]
    # A separate process, so that this one does not keep the imports in memory for hours.
    status = run_to_end([*command, *set_options(options.set)])
    if status == -signal.SIGTERM:
        raise Preempted("stopped during the preflight")
    return abs(status)


def _training(options: argparse.Namespace) -> int:
    """Run a training phase, on this machine or together with others. A process that a launcher has
    started is one of its ranks."""
    from dpo_dist.phases.pipeline import command_of, run_rank, start_training
    from dpo_dist.training.worker import join, leading

    phase, given, nodes = options.command, from_options(RunOptions, options), nodes_of(options)

    def selected() -> Run:
        return load_run(options).select_round(phase, given.round)

    if not ranks.launched():
        run = selected()
        command = command_of(phase, run, options.run_file, options.set)
        return start_training(phase, run, command, force=given.force, nodes=nodes)
    if nodes is not None:
        raise UserError("--nodes: the launcher of this process has already started the ranks")
    if not ranks.is_main():
        return join()
    with leading():
        run_rank(phase, selected(), force=given.force)
    return 0


def _phase(options: argparse.Namespace) -> int:
    """Run one phase on this machine."""
    from dpo_dist.phases.pipeline import command_of, run_phase

    phase, run, given = options.command, load_run(options), from_options(RunOptions, options)
    shard = given.shard or WHOLE
    if given.force and not shard.whole:
        raise UserError("--force cannot be combined with --shard: other shards may be running")
    run = run.select_round(phase, given.round)
    command = () if given.worker else command_of(phase, run, options.run_file, options.set)
    run_phase(phase, run, force=given.force, shard=shard, command=command)
    if given.gate:
        from dpo_dist.phases.evaluate import gate

        return gate(run)
    return 0


def _judge(options: argparse.Namespace) -> int:
    if not options.selftest:
        return _phase(options)
    from dpo_dist.phases.selftest import selftest

    return selftest(load_run(options).config)


def _command(
    name: str,
    summary: str,
    options: tuple[str, ...] = (),
    *,
    run: Callable[[argparse.Namespace], int] = _phase,
) -> Command:
    """A command with `--force`, `--quiet` and the options of these fields of `RunOptions`; a
    training also has those of several machines."""

    def add(parser: Parser) -> None:
        add_run_file(parser)
        add_options(parser, RunOptions, ("force", "quiet", *options))
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="print what would be done or skipped, from which inputs, at what cost; do nothing",
        )
        if run is _training:
            add_nodes(parser)

    def act(given: argparse.Namespace) -> int:
        return _preview_phase(given) if given.dry_run and name != "run" else run(given)

    return Command(name, summary, "run.yaml", add=add, run=act, exit_codes=True)


RUN = _command(
    "run",
    "run all phases of the run file in order; completed ones are skipped",
    ("preflight", "yes"),
    run=_run,
)
PHASES = (
    _command("sft", "train the SFT model on demonstrations", run=_training),
    _command(
        "sample",
        "sample an answer from the SFT model for every prompt and slot",
        ("shard", "worker", "round"),
    ),
    _command(
        "judge",
        "have the judge compare the answers, and write the preference pairs",
        ("yes", "round", "selftest"),
        run=_judge,
    ),
    _command("train", "train with DPO on the preference pairs", ("round", "point"), run=_training),
    _command(
        "evaluate",
        "compare base, SFT and SFT+DPO on held-out prompts",
        ("yes", "shard", "worker", "gate", "round", "point"),
    ),
    _command("report", "write report.html, report.md and report.json", ("point",)),
)
