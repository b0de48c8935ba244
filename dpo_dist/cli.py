"""The command line: `dpo-dist run RUN.yaml`, or one phase of it at a time."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dpo_dist import __version__
from dpo_dist.commands import TOOLS
from dpo_dist.commands.arguments import add_nodes, add_set, nodes_of
from dpo_dist.errors import INTERRUPTED, DpoDistError, Preempted, UserError
from dpo_dist.ranks import WHOLE, Shard

if TYPE_CHECKING:
    from dpo_dist.config import Config

COMMANDS = {
    "run": "all phases that the run file asks for, in order; what is complete is skipped",
    "sft": "train the SFT model on demonstrations",
    "sample": "let the SFT model answer every prompt once per slot",
    "judge": "let the judge compare the answers and write the preference pairs",
    "train": "train with DPO on the preference pairs",
    "evaluate": "compare base, SFT and SFT+DPO on held-out prompts",
    "report": "write report.html, report.md and report.json",
    "sweep": "train and evaluate once for every combination of settings, on the same pairs",
}
EXIT_CODES = (
    "exit codes: 0 done, 1 failed, 2 bad input or configuration, 3 no evidence and 4 regressed "
    "(evaluate --gate), 75 stopped by SIGTERM (run the same command again), 130 interrupted"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    options = _parser().parse_args(arguments)
    from dpo_dist.console import YES, quiet_libraries, say, scrub

    quiet_libraries()
    if getattr(options, "yes", False):
        os.environ[YES] = "1"  # the phases' processes inherit it
    try:
        tool = TOOLS.get(options.command)
        return tool.run(options) if tool else _execute(options)
    except KeyboardInterrupt:
        say(f"interrupted. To go on, run the same command again:\n  {_command_line(options)}")
        return INTERRUPTED
    except Preempted as error:
        say(f"{error}. To go on, run the same command again:\n  {_command_line(options)}")
        return error.exit_code
    except DpoDistError as error:
        print(f"error: {scrub(str(error))}", file=sys.stderr)
        return error.exit_code


def _execute(options: argparse.Namespace) -> int:
    if options.command == "sweep":
        return _sweep(options)
    from dpo_dist.phases.pipeline import run_all
    from dpo_dist.runfile import load_config

    config = load_config(options.run_file, options.set)
    if getattr(options, "selftest", False):
        from dpo_dist.phases.selftest import selftest

        return selftest(config)
    if options.command != "run":
        return _phase(options, config)
    if options.preflight and (status := _preflight(options, config)):
        return status
    status = run_all(options.run_file, config, options.set, force=options.force)
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    if status == 0:
        _show_result(config)
    return status


def _preflight(options: argparse.Namespace, config: Config) -> int:
    """Check this machine where something is still to be trained; the exit code."""
    from dpo_dist.phases.pipeline import check_batches
    from dpo_dist.phases.runs import to_be_trained
    from dpo_dist.processes import run_to_end

    check_batches(config)
    if not to_be_trained(config):
        return 0
    words = [sys.executable, "-m", "dpo_dist", "preflight", str(options.run_file)]
    words += [word for override in options.set for word in ("--set", override)]
    status = run_to_end(words)  # what it imports is not kept for the hours of the run
    if status == -signal.SIGTERM:
        raise Preempted("stopped in the preflight")
    return abs(status)


def _phase(options: argparse.Namespace, config: Config) -> int:
    from dpo_dist.phases.pipeline import command_of, run_phase
    from dpo_dist.phases.runs import select_round

    shard = getattr(options, "shard", WHOLE)
    if options.force and not shard.whole:
        raise UserError("--force with --shard: other shards may be at work; use it without")
    config = select_round(config, options.command, getattr(options, "round", None))
    if (nodes := nodes_of(options)) is not None:
        from dpo_dist.phases.on_nodes import run_on_nodes

        return run_on_nodes(options.command, config, nodes, force=options.force)
    alone = getattr(options, "worker", True)  # only phases that generate have workers
    command = command_of(options.command, options.run_file, options.set, config.round)
    run_phase(
        options.command,
        config,
        force=options.force,
        shard=shard,
        command=() if alone else command,
    )
    if getattr(options, "gate", False):
        from dpo_dist.phases.gate import gate

        return gate(config)
    return 0


def _sweep(options: argparse.Namespace) -> int:
    from dpo_dist.phases.sweep import plan_sweep, report_folder, sweep

    plan = plan_sweep(options.run_file, options.set)
    status = sweep(plan, options.run_file, force=options.force)
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    if status == 0:
        folder = report_folder(plan.base)
        print(f"\n{(folder / 'table.txt').read_text(encoding='utf-8')}")
        print(f"report: {folder / 'sweep.html'}")
    return status


def _show_result(config: Config) -> None:
    from dpo_dist.phases.runs import run_root

    folder = run_root(config) / "report"
    table = folder / "table.txt"
    if table.exists():
        print(f"\n{table.read_text(encoding='utf-8')}")
        print(f"report: {folder / 'report.html'}")
    else:
        print(f"done: {run_root(config)}")


def _command_line(options: argparse.Namespace) -> str:
    if options.command == "compare":
        return shlex.join(["dpo-dist", "compare", *map(str, options.runs)])
    target = [options.target, "--submit"] if options.command == "launch" else []
    words = ["dpo-dist", options.command, *target, str(options.run_file)]
    for override in options.set:
        words += ["--set", override]
    if not getattr(options, "shard", WHOLE).whole:
        words += ["--shard", str(options.shard)]
    if getattr(options, "round", None) is not None:
        words += ["--round", str(options.round)]
    if getattr(options, "nodes", None) is not None:
        words += ["--nodes", str(options.nodes), "..."]  # the launch id has to be a new one
    return shlex.join(words)


def _shard(text: str) -> Shard:
    try:
        return Shard.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dpo-dist",
        description="From an SFT model and prompts to a DPO-aligned model and a proof.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"dpo-dist {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, description in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=description,
            description=description[0].upper() + description[1:] + ".",
            epilog=f"example: dpo-dist {name} {_example(name)}; {EXIT_CODES}",
        )
        command.add_argument("run_file", type=Path, metavar="RUN.yaml")
        add_set(
            command,
            "; several values with commas between them are swept" if name == "sweep" else "",
        )
        command.add_argument(
            "--force",
            action="store_true",
            help="where settings changed, move the old phase directory aside and start again",
        )
        if name == "run":
            command.add_argument(
                "--preflight",
                action="store_true",
                help="before anything else check this machine, as `dpo-dist preflight` does, where "
                "something is still to be trained",
            )
        if name in ("run", "judge", "evaluate", "sweep"):
            command.add_argument(
                "--yes",
                action="store_true",
                help="do not ask before a judge that costs money is used",
            )
        if name in ("sample", "evaluate"):
            command.add_argument(
                "--shard",
                type=_shard,
                default=WHOLE,
                metavar="INDEX/COUNT",
                help="generate for this part of the prompts only, counted from 0; for array jobs",
            )
            command.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
        if name == "evaluate":
            command.add_argument(
                "--gate",
                action="store_true",
                help="let the exit code say what came out: 0 improved, 3 no evidence, 4 regressed",
            )
        if name in ("sample", "judge", "train", "evaluate"):
            command.add_argument(
                "--round",
                type=int,
                metavar="N",
                help="which of the run file's rounds, counted from 1",
            )
        if name in ("sft", "train"):
            add_nodes(command)
        if name == "judge":
            command.add_argument(
                "--selftest",
                action="store_true",
                help="let judges with a planted taste label planted answers, check every pair, "
                "and do nothing else",
            )
    for tool in TOOLS.values():
        tool.add(commands)
    return parser


def _example(command: str) -> str:
    more = " --set train.beta=0.03,0.1,0.3" if command == "sweep" else ""
    return f"recipes/incident_triage/run.yaml{more}"


if __name__ == "__main__":
    raise SystemExit(main())
