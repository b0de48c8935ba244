"""Parsers and options that the commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, TypeAlias

from dpo_dist.errors import UserError
from dpo_dist.system.options import Option, add_options, flags, from_options
from dpo_dist.system.ranks import Nodes, Shard

if TYPE_CHECKING:
    from dpo_dist.runs.run import Run

Parser: TypeAlias = argparse.ArgumentParser

EXIT_CODES = (
    "exit codes: 0 done, 1 failed, 2 bad input or configuration, 3 no evidence and 4 regressed "
    "(evaluate --gate), 75 stopped by SIGTERM (run the same command again), 130 interrupted"
)


@dataclass(frozen=True)
class Command:
    """A command of `dpo-dist`, or of another command. `add` adds its options to a parser; `run`
    executes it and returns the exit code. Both import lazily, so that `--help` stays instant."""

    name: str
    summary: str
    example: str
    add: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], int]
    details: str = ""
    exit_codes: bool = False


class Paragraphs(argparse.HelpFormatter):
    """Keeps blank lines between paragraphs, and breaks no line at a hyphen."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        wrap = partial(fill, width=width, initial_indent=indent, subsequent_indent=indent)
        return "\n\n".join(wrap(part, break_on_hyphens=False) for part in text.split("\n\n"))


class CommandParser(argparse.ArgumentParser):
    """The parser of one command. It adds the command's options only when it parses."""

    def __init__(self, *, command: Command, prog: str) -> None:
        summary = f"{command.summary[0].upper()}{command.summary[1:]}"
        example = f"example: {prog} {command.example}"
        super().__init__(
            prog=prog,
            description=f"{summary}. {command.details}".rstrip(),
            epilog=f"{example}\n\n{EXIT_CODES}" if command.exit_codes else example,
            formatter_class=Paragraphs,
        )
        self._command: Command | None = command

    def fill(self) -> None:
        """Add the command's options, unless they are there."""
        command, self._command = self._command, None
        if command is not None:
            command.add(self)
            self.set_defaults(run=command.run)

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        self.fill()
        return super().parse_known_args(args, namespace)


def add_commands(parser: Parser, commands: Iterable[Command], dest: str) -> None:
    """Add a subparser per command; the parsed options have the chosen command's `run`."""
    parsers = parser.add_subparsers(
        dest=dest, required=True, metavar=dest.upper(), parser_class=CommandParser
    )
    for command in commands:
        parsers.add_parser(command.name, help=command.summary, command=command)


def add_run_file(parser: Parser, more: str = "") -> None:
    """Add the run file and `--set`; `more` is appended to the help of `--set`."""
    parser.add_argument("run_file", type=Path, metavar="RUN.yaml", help="the run file")
    add_set(parser, more)


def add_run(parser: Parser) -> None:
    """Add a run that is given by its directory or its run file, and `--set`."""
    parser.add_argument("run_file", type=Path, metavar="RUN", help="a run directory or run file")
    add_set(parser)


def load_run(options: argparse.Namespace) -> Run:
    """Load the run file that the options name. Raises `ConfigError`."""
    from dpo_dist.config.runfile import load_config
    from dpo_dist.runs.run import Run

    config = load_config(options.run_file, options.set)
    return Run(config, point=getattr(options, "point", None))


def show_report(folder: Path, page: str) -> None:
    """Print a report's table and the path of its page."""
    from dpo_dist.system.console import show_result

    table = (folder / "table.txt").read_text(encoding="utf-8")
    show_result(f"\n{table}\nreport: {folder / page}")


def add_set(parser: Parser, more: str = "") -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key of the run file, e.g. --set train.beta=0.3 (repeatable)" + more,
    )


def _shard(text: str) -> Shard:
    try:
        return Shard.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


@dataclass(frozen=True)
class RunOptions:
    """The options of the commands that run phases. Each of these commands has some of them."""

    force: Annotated[
        bool, Option("if settings changed, move the old phase directory aside and start over")
    ] = False
    yes: Annotated[bool, Option("use paid judges without asking for confirmation")] = False
    quiet: Annotated[bool, Option("print only warnings, errors and results")] = False
    preflight: Annotated[
        bool, Option("if a training remains, first check this machine (`dpo-dist preflight`)")
    ] = False
    shard: Annotated[
        Shard | None,
        Option(
            "generate only for this shard of the prompts, counting from 0; for array jobs",
            "INDEX/COUNT",
            parse=_shard,
        ),
    ] = None
    worker: Annotated[bool, Option(argparse.SUPPRESS)] = False
    gate: Annotated[
        bool, Option("exit with the outcome: 0 improved, 3 no evidence, 4 regressed")
    ] = False
    round: Annotated[int | None, Option("round of the run, counting from 1", "N")] = None
    point: Annotated[str | None, Option("name of a point of a sweep", "NAME")] = None
    selftest: Annotated[
        bool,
        Option(
            "only test the label path: simulated judges with known preferences label simulated "
            "answers, and every pair is checked"
        ),
    ] = False


def add_nodes(parser: Parser, join_seconds: float = Nodes.join_seconds) -> None:
    """Add the options of commands that run on several machines. Only the rank differs between the
    machines."""
    group = parser.add_argument_group("several machines (give all of these or none)")
    add_options(group, Nodes, optional=True, join_seconds=join_seconds)


def nodes_of(options: argparse.Namespace) -> Nodes | None:
    """The machines that the options describe; None: a single one. Raises `UserError`."""
    needed = [field.name for field in fields(Nodes) if field.default is MISSING]
    missing = [name for name in needed if getattr(options, name) is None]
    if missing == needed:
        return None
    if missing:
        flag = flags(Nodes)[missing[0]]
        raise UserError(f"several machines need all node options; {flag} is missing")
    if options.count == 1:  # job scripts pass all options, also for one machine
        return None
    try:
        return from_options(Nodes, options)
    except ValueError as error:
        raise UserError(str(error)) from None
