"""What the targets of `dpo-dist launch` have in common."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_dist.commands.arguments import add_set

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def fields_of(options: argparse.Namespace, target: type[DataclassInstance]) -> dict[str, Any]:
    """The options that are fields of a target, those that can be repeated as tuples."""
    values = {field.name: getattr(options, field.name) for field in fields(target)}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}


def add_common(command: argparse.ArgumentParser, workdir: Path | None = None) -> None:
    """The arguments of every target; `workdir` is where its jobs start if nobody says otherwise,
    None where they start in the folder of the command."""
    command.add_argument("run_file", type=Path, metavar="RUN.yaml")
    add_set(command)
    add = command.add_argument
    add(
        "--workdir",
        type=Path,
        default=workdir,
        metavar="DIR",
        help=f"where the jobs start (default: {workdir or 'here'})",
    )
    add("--yes", action="store_true", help="agree to what the run's judges cost")
    what = command.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="print the files, write none")
    what.add_argument("--submit", action="store_true", help="submit them, too")


def add_setup(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--setup",
        action="append",
        default=[],
        metavar="LINE",
        help="a line of shell before the work, e.g. 'source .venv/bin/activate' (repeatable)",
    )


def add_machines(command: argparse.ArgumentParser) -> None:
    """The arguments of the targets that have several machines."""
    add = command.add_argument
    add("--nodes", type=int, default=1, metavar="N", help="machines that train together (1)")
    add("--gpus-per-node", type=int, default=0, metavar="M", help="0: processors only (0)")
    add("--shards", type=int, metavar="K", help="jobs that sample; default: one for each engine")
