"""The command line: `dpo-dist run RUN.yaml`, or one phase of it at a time."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from dpo_dist import __version__
from dpo_dist.errors import INTERRUPTED, DpoDistError, Preempted, UserError
from dpo_dist.ranks import WHOLE, Shard

COMMANDS = {
    "run": "all phases that the run file asks for, in order; what is complete is skipped",
    "sft": "train the SFT model on demonstrations",
    "sample": "let the SFT model answer every prompt once per slot",
    "judge": "let the judge compare the answers and write the preference pairs",
    "train": "train with DPO on the preference pairs",
    "evaluate": "compare base, SFT and SFT+DPO on held-out prompts",
    "report": "write report.html, report.md and report.json",
}
EXIT_CODES = (
    "exit codes: 0 done, 1 failed, 2 bad input or configuration, 75 stopped by SIGTERM (run the "
    "same command again), 130 interrupted"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    options = _parser().parse_args(arguments)
    from dpo_dist.console import YES, quiet_libraries, say, scrub

    quiet_libraries()
    if getattr(options, "yes", False):
        os.environ[YES] = "1"  # the phases' processes inherit it
    try:
        return _TOOLS.get(options.command, _execute)(options)
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
    from dpo_dist.phases.pipeline import command_of, run_all, run_phase
    from dpo_dist.runfile import load_config

    config = load_config(options.run_file, options.set)
    if getattr(options, "selftest", False):
        from dpo_dist.phases.selftest import selftest

        return selftest(config)
    if options.command != "run":
        shard = getattr(options, "shard", WHOLE)
        if options.force and not shard.whole:
            raise UserError("--force with --shard: other shards may be at work; use it without")
        alone = getattr(options, "worker", True)
        command = command_of(options.command, options.run_file, options.set)
        run_phase(
            options.command,
            config,
            force=options.force,
            shard=shard,
            command=() if alone else command,
        )
        return 0
    status = run_all(options.run_file, config, options.set, force=options.force)
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    if status == 0:
        _show_result(options, config)
    return status


def _watch(options: argparse.Namespace) -> int:
    from dpo_dist.watching.run import WatchedRun
    from dpo_dist.watching.screen import watch

    watch(WatchedRun.open(options.run_file, options.set), once=options.once)
    return 0


def _add_watch(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    description = "show how far a run is, from any machine that sees its directory"
    command = commands.add_parser(
        "watch",
        help=description,
        description=f"{description[0].upper()}{description[1:]}. Files are read, none is written.",
        epilog="example: dpo-dist watch runs/incident-triage",
    )
    command.add_argument("run_file", type=Path, metavar="RUN", help="a run's directory or run file")
    _add_set(command)
    command.add_argument("--once", action="store_true", help="print the state once and end")


def _push(options: argparse.Namespace) -> int:
    from dpo_dist.publishing import push
    from dpo_dist.reporting.card import CardFacts

    facts = CardFacts(
        base_model=options.base_model,
        adapter=not options.merged,
        repo=options.repo,
        license=options.license,
        license_name=options.license_name,
        license_link=options.license_link,
        languages=tuple(options.language),
        datasets=tuple(options.dataset),
        tags=tuple(options.tag),
    )
    push(
        options.run_file,
        options.set,
        facts,
        merged=options.merged,
        dry_run=options.dry_run,
        private=not options.public,
    )
    return 0


def _add_push(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    description = "make a folder of the trained model with its model card, and upload it to the Hub"
    command = commands.add_parser(
        "push",
        help=description,
        description=f"{description[0].upper()}{description[1:]}. The folder is <run>/card; "
        "without --repo nothing leaves the machine. The token is read from HF_TOKEN.",
        epilog="example: dpo-dist push runs/incident-triage --license apache-2.0 --dry-run",
    )
    command.add_argument("run_file", type=Path, metavar="RUN", help="a run's directory or run file")
    _add_set(command)
    add = command.add_argument
    add("--repo", metavar="OWNER/NAME", help="where to upload to; made, private, if need be")
    add("--public", action="store_true", help="a repository that is made now is public")
    add("--merged", action="store_true", help="the whole model instead of the adapter")
    add("--dry-run", action="store_true", help="write the folder only")
    add("--base-model", metavar="OWNER/NAME", help="the base's Hub id, where the run has a path")
    add("--license", default="unknown", metavar="ID", help="the Hub's id, e.g. apache-2.0, other")
    add("--license-name", metavar="NAME", help="with --license other")
    add("--license-link", metavar="URL", help="with --license other")
    for name, example in (("language", "en"), ("dataset", "OWNER/NAME"), ("tag", "WORD")):
        add(f"--{name}", action="append", default=[], metavar=example, help="(repeatable)")


_TOOLS = {"watch": _watch, "push": _push}  # commands that are no phase


def _show_result(options: argparse.Namespace, config: object) -> None:
    from dpo_dist.config import Config
    from dpo_dist.phases.runs import run_root

    assert isinstance(config, Config)
    folder = run_root(config) / "report"
    table = folder / "table.txt"
    if table.exists():
        print(f"\n{table.read_text(encoding='utf-8')}")
        print(f"report: {folder / 'report.html'}")
    else:
        print(f"done: {run_root(config)}")


def _command_line(options: argparse.Namespace) -> str:
    words = ["dpo-dist", options.command, str(options.run_file)]
    for override in options.set:
        words += ["--set", override]
    if not getattr(options, "shard", WHOLE).whole:
        words += ["--shard", str(options.shard)]
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
            epilog=f"example: dpo-dist {name} recipes/incident_triage/run.yaml; {EXIT_CODES}",
        )
        command.add_argument("run_file", type=Path, metavar="RUN.yaml")
        _add_set(command)
        command.add_argument(
            "--force",
            action="store_true",
            help="where settings changed, move the old phase directory aside and start again",
        )
        if name in ("run", "judge", "evaluate"):
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
        if name == "judge":
            command.add_argument(
                "--selftest",
                action="store_true",
                help="let judges with a planted taste label planted answers, check every pair, "
                "and do nothing else",
            )
    _add_watch(commands)
    _add_push(commands)
    return parser


def _add_set(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key of the run file, e.g. --set train.beta=0.3 (repeatable)",
    )


if __name__ == "__main__":
    raise SystemExit(main())
