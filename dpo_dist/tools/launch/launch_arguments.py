"""What the targets of `dpo-dist launch` have in common."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_dist.tools.arguments import add_set

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def fields_of(options: argparse.Namespace, target: type[DataclassInstance]) -> dict[str, Any]:
    """The options that are fields of a target, those that can be repeated as tuples."""
    values = {field.name: getattr(options, field.name) for field in fields(target)}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}


def add_common(command: argparse.ArgumentParser, workdir: Path | None = None) -> None:
    """The arguments of every target; `workdir` is where its jobs start if nobody says otherwise,
    None where they start in the folder of the command."""
    command.add_argument("run_file", type=Path, metavar="RUN.yaml", help="the run file")
    add_set(command)
    add = command.add_argument
    add(
        "--workdir",
        type=Path,
        default=workdir,
        metavar="DIR",
        help=f"working directory of the jobs (default: {workdir or 'the current one'})",
    )
    add(
        "--yes",
        action="store_true",
        help="use the run's paid judges without asking for confirmation",
    )
    what = command.add_mutually_exclusive_group()
    what.add_argument(
        "--dry-run", action="store_true", help="print the files instead of writing them"
    )
    what.add_argument("--submit", action="store_true", help="also submit them")


def add_setup(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--setup",
        action="append",
        default=[],
        metavar="LINE",
        help="a shell line to run first, e.g. 'source .venv/bin/activate' (repeatable)",
    )


def add_machines(command: argparse.ArgumentParser) -> None:
    """The arguments of the targets that have several machines."""
    add = command.add_argument
    add(
        "--nodes",
        type=int,
        default=1,
        metavar="N",
        help="number of machines to train on (default: 1)",
    )
    add(
        "--gpus-per-node",
        type=int,
        default=0,
        metavar="M",
        help="GPUs per machine; 0: CPU only (default: 0)",
    )
    add("--shards", type=int, metavar="K", help="number of sampling jobs (default: one per engine)")
