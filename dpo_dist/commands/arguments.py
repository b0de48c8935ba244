"""What the parsers of the commands have in common."""

from __future__ import annotations

import argparse
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_command(
    commands: Commands, name: str, purpose: str, more: str = "", *, example: str
) -> argparse.ArgumentParser:
    """The parser of a command, whose help begins with its purpose and goes on with `more`."""
    command = commands.add_parser(
        name,
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}. {more}".rstrip(),
    )
    command.epilog = f"example: {command.prog} {example}"  # with the command that it is one of
    return command


def add_set(command: argparse.ArgumentParser, more: str = "") -> None:
    """The option of all commands that read a run file; `more` is added to its help."""
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key of the run file, e.g. --set train.beta=0.3 (repeatable)" + more,
    )
