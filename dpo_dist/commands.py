"""The commands that are no phase: what they are asked on the command line, and who does it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def _watch(options: argparse.Namespace) -> int:
    from dpo_dist.watching.run import WatchedRun
    from dpo_dist.watching.screen import watch

    watch(WatchedRun.open(options.run_file, options.set), once=options.once)
    return 0


def add_watch(commands: Commands) -> None:
    """The parser of `dpo-dist watch`."""
    command = _command(
        commands,
        "watch",
        "show how far a run is, from any machine that sees its directory",
        "Files are read, none is written.",
        example="runs/incident-triage",
    )
    command.add_argument("run_file", type=Path, metavar="RUN", help="a run's directory or run file")
    add_set(command)
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


def add_push(commands: Commands) -> None:
    """The parser of `dpo-dist push`."""
    command = _command(
        commands,
        "push",
        "make a folder of the trained model with its model card, and upload it to the Hub",
        "The folder is <run>/card; without --repo nothing leaves the machine. The token is read "
        "from HF_TOKEN.",
        example="runs/incident-triage --license apache-2.0 --dry-run",
    )
    command.add_argument("run_file", type=Path, metavar="RUN", help="a run's directory or run file")
    add_set(command)
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


def _compare(options: argparse.Namespace) -> int:
    from dpo_dist.artifacts import write_json, write_text
    from dpo_dist.phases.compare import compare_runs
    from dpo_dist.reporting.compare import to_page, to_terminal

    figures = compare_runs(options.runs)
    print(to_terminal(figures), end="")
    if options.json:
        write_json(options.json, figures)
    if options.html:
        write_text(options.html, to_page(figures))
    return 0


def add_compare(commands: Commands) -> None:
    """The parser of `dpo-dist compare`."""
    command = _command(
        commands,
        "compare",
        "set finished runs side by side, and dpo against dpo where the prompts agree",
        example="runs/first runs/second",
    )
    command.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="a run's directory, a point's of a sweep, or a run file",
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="write all figures, too")
    command.add_argument("--html", type=Path, metavar="FILE", help="write a page, too")


def _command(
    commands: Commands, name: str, purpose: str, more: str = "", *, example: str
) -> argparse.ArgumentParser:
    """The parser of a command, whose help begins with its purpose and goes on with `more`."""
    return commands.add_parser(
        name,
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}. {more}".rstrip(),
        epilog=f"example: dpo-dist {name} {example}",
    )


def add_set(command: argparse.ArgumentParser, more: str = "") -> None:
    """The option of all commands that read a run file; `more` is added to its help."""
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key of the run file, e.g. --set train.beta=0.3 (repeatable)" + more,
    )


TOOLS = {"watch": _watch, "push": _push, "compare": _compare}
