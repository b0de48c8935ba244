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
from dpo_dist.errors import INTERRUPTED, DpoDistError, Preempted, UserError
from dpo_dist.system.ranks import WHOLE, Shard
from dpo_dist.tools import TOOLS
from dpo_dist.tools.arguments import Paragraphs, add_nodes, add_set, nodes_of

if TYPE_CHECKING:
    from dpo_dist.config import Config

COMMANDS = {
    "run": "run all phases of the run file in order; completed ones are skipped",
    "sft": "train the SFT model on demonstrations",
    "sample": "sample an answer from the SFT model for every prompt and slot",
    "judge": "have the judge compare the answers, and write the preference pairs",
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
    words = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(words)
    from dpo_dist.system.console import YES, quiet_libraries, scrub

    quiet_libraries()
    if getattr(options, "yes", False):
        os.environ[YES] = "1"  # the phases' processes inherit it
    try:
        tool = TOOLS.get(options.command)
        return tool.run(options) if tool else _execute(options)
    except KeyboardInterrupt:
        _say_how_to_go_on("interrupted", words, options)
        return INTERRUPTED
    except Preempted as error:
        _say_how_to_go_on(str(error), words, options)
        return error.exit_code
    except DpoDistError as error:
        print(f"error: {scrub(str(error))}", file=sys.stderr)
        return error.exit_code


def _execute(options: argparse.Namespace) -> int:
    if options.command == "sweep":
        return _sweep(options)
    from dpo_dist.config.runfile import load_config
    from dpo_dist.phases.pipeline import run_all

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
    from dpo_dist.runs.directories import to_be_trained
    from dpo_dist.system.processes import run_to_end

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
    from dpo_dist.runs.directories import select_round

    shard = getattr(options, "shard", WHOLE)
    if options.force and not shard.whole:
        raise UserError("--force cannot be combined with --shard: other shards may be running")
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
    from dpo_dist.tools.sweep.points import plan_sweep, report_folder, sweep

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
    from dpo_dist.runs.directories import run_root

    folder = run_root(config) / "report"
    table = folder / "table.txt"
    if table.exists():
        print(f"\n{table.read_text(encoding='utf-8')}")
        print(f"report: {folder / 'report.html'}")
    else:
        print(f"done: {run_root(config)}")


def _say_how_to_go_on(reason: str, words: Sequence[str], options: argparse.Namespace) -> None:
    """Why the command ends, and which one goes on; of a part of another command only the reason:
    what the user has typed is that one's to say."""
    from dpo_dist.system.console import INNER, say

    if os.environ.get(INNER):
        say(reason)
        return
    say(f"{reason}. To go on, run the same command again:\n  {_command_line(words, options)}")


def _command_line(words: Sequence[str], options: argparse.Namespace) -> str:
    """The command as it was typed, without `--force`, which would move the work aside once more;
    a launch id has to be a new one."""
    kept: list[str] = []
    waiting = iter(words)
    for word in waiting:
        name, equals, _ = word.partition("=")
        if getattr(options, "force", False) and _means(name, "--force"):
            continue
        if getattr(options, "launch_id", None) is not None and _means(name, "--launch-id"):
            kept += ["--launch-id", "..."]
            if not equals:
                next(waiting)
            continue
        kept.append(word)
    return shlex.join(["dpo-dist", *kept])


def _means(word: str, option: str) -> bool:
    """Whether argparse takes a word for that option: it may be cut short."""
    return len(word) > 2 and option.startswith(word)


def _shard(text: str) -> Shard:
    try:
        return Shard.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dpo-dist",
        description=(
            "Train a DPO-aligned model from an SFT model and prompts, and prove what changed."
        ),
        epilog=EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"dpo-dist {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, description in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=description,
            description=description[0].upper() + description[1:] + ".",
            epilog=f"example: dpo-dist {name} {_example(name)}\n\n{EXIT_CODES}",
            formatter_class=Paragraphs,
        )
        command.add_argument("run_file", type=Path, metavar="RUN.yaml", help="the run file")
        add_set(
            command,
            "; several comma-separated values are swept" if name == "sweep" else "",
        )
        command.add_argument(
            "--force",
            action="store_true",
            help="if settings changed, move the old phase directory aside and start over",
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
                help="use paid judges without asking for confirmation",
            )
        if name in ("sample", "evaluate"):
            command.add_argument(
                "--shard",
                type=_shard,
                default=WHOLE,
                metavar="INDEX/COUNT",
                help="generate for this part of the prompts only, counting from 0; for array jobs",
            )
            command.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
        if name == "evaluate":
            command.add_argument(
                "--gate",
                action="store_true",
                help="report the outcome as the exit code: 0 improved, 3 no evidence, 4 regressed",
            )
        if name in ("sample", "judge", "train", "evaluate"):
            command.add_argument(
                "--round",
                type=int,
                metavar="N",
                help="which of the run file's rounds, counting from 1",
            )
        if name in ("sft", "train"):
            add_nodes(command)
        if name == "judge":
            command.add_argument(
                "--selftest",
                action="store_true",
                help="only test the label path: simulated judges with known preferences label "
                "simulated answers, and every pair is checked",
            )
    for tool in TOOLS.values():
        tool.add(commands)
    return parser


def _example(command: str) -> str:
    more = " --set train.beta=0.03,0.1,0.3" if command == "sweep" else ""
    return f"recipes/incident_triage/run.yaml{more}"


if __name__ == "__main__":
    raise SystemExit(main())
