"""What the parsers of the commands have in common."""

from __future__ import annotations

import argparse
from functools import partial
from textwrap import fill
from typing import TypeAlias

from dpo_dist.errors import UserError
from dpo_dist.system.ranks import Nodes

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


class Paragraphs(argparse.HelpFormatter):
    """Keeps the paragraphs of a description and of an epilog apart, and options whole."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lay = partial(fill, width=width, initial_indent=indent, subsequent_indent=indent)
        return "\n\n".join(lay(part, break_on_hyphens=False) for part in text.split("\n\n"))


def add_command(
    commands: Commands, name: str, purpose: str, more: str = "", *, example: str
) -> argparse.ArgumentParser:
    """The parser of a command, whose help begins with its purpose and goes on with `more`."""
    command = commands.add_parser(
        name,
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}. {more}".rstrip(),
        formatter_class=Paragraphs,
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


NODE_OPTIONS = ("nodes", "node_rank", "main_address", "main_port", "launch_id")


def add_nodes(command: argparse.ArgumentParser, join_seconds: float = Nodes.join_seconds) -> None:
    """The options of the commands that several machines run together, the same on all of them but
    for the rank."""
    add = command.add_argument_group("several machines (give all of these or none)").add_argument
    add("--nodes", type=int, metavar="N", help="number of machines")
    add("--node-rank", type=int, metavar="R", help="rank of this machine; 0 leads")
    add("--main-address", metavar="HOST", help="address at which the others reach node 0")
    add("--main-port", type=int, metavar="PORT", help="a free port on node 0")
    add(
        "--launch-id",
        metavar="ID",
        help="identifies this launch, the same on all nodes; a new one for every launch",
    )
    for name, default, purpose in (
        ("join", join_seconds, "seconds to wait for the other nodes to join"),
        (
            "node",
            Nodes.silent_seconds,
            "seconds without a sign of life after which a node counts as lost",
        ),
    ):
        add(
            f"--{name}-timeout",
            type=float,
            default=default,
            metavar="SECONDS",
            help=f"{purpose} (default: {default:.0f})",
        )


def nodes_of(options: argparse.Namespace) -> Nodes | None:
    """The machines of the command line; None for one alone. Raises `UserError`."""
    given = {name: getattr(options, name, None) for name in NODE_OPTIONS}
    missing = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is None]
    if len(missing) == len(NODE_OPTIONS):
        return None
    if missing:
        raise UserError(f"several machines need all node options; {missing[0]} is missing")
    if options.nodes == 1:  # a job's script, which has them whatever the number is
        return None
    try:
        return Nodes(
            count=options.nodes,
            rank=options.node_rank,
            address=options.main_address,
            port=options.main_port,
            launch_id=options.launch_id,
            join_seconds=options.join_timeout,
            silent_seconds=options.node_timeout,
        )
    except ValueError as error:
        raise UserError(str(error)) from None
