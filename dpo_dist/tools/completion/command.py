"""`dpo-dist completion`."""

from __future__ import annotations

import argparse
from pathlib import Path

from dpo_dist.tools.arguments import Command, CommandParser, Parser, add_commands

SHELLS = ("bash", "zsh", "fish")


def _add(parser: Parser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="the shell that reads the script")


def _run(options: argparse.Namespace) -> int:
    import shtab

    print(shtab.complete(whole_parser(), shell=options.shell))
    return 0


def whole_parser() -> Parser:
    """The parser of `dpo-dist` with the options of all commands, which complete file names."""
    from dpo_dist.tools import COMMANDS

    parser = argparse.ArgumentParser(prog="dpo-dist")
    add_commands(parser, COMMANDS, "command")
    _fill(parser)
    return parser


def _fill(parser: Parser) -> None:
    import shtab

    if isinstance(parser, CommandParser):
        parser.fill()
    for action in parser._actions:  # argparse has no public list of them
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _fill(inner)
        elif action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]


COMMAND = Command(
    "completion",
    "print a script with which a shell completes commands, options and files",
    "bash > ~/.local/share/bash-completion/completions/dpo-dist",
    add=_add,
    run=_run,
    details="zsh: write it to a file `_dpo-dist` in a folder of $fpath. fish: write it to "
    "~/.config/fish/completions/dpo-dist.fish.",
)
