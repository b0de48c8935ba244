"""`dpo-dist launch`: one command per target, whose options are the target's fields."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from dpo_dist.system.options import add_options, from_options
from dpo_dist.tools.arguments import Command, Parser, add_commands, add_run_file, load_run

if TYPE_CHECKING:
    from dpo_dist.tools.launch.render import Target

IN_IMAGE = Path("/workspace")  # the Dockerfile copies recipes/ and accelerate_configs/ there


def _launch(target: Target, options: argparse.Namespace) -> int:
    from dpo_dist.system.console import INNER, counted, say
    from dpo_dist.system.processes import run_to_end
    from dpo_dist.tools.launch.layout import Layout
    from dpo_dist.tools.launch.render import write

    layout = from_options(Layout, options, run=load_run(options), overrides=tuple(options.set))
    files = target.files(layout)
    folder = layout.folder(target.name)
    if options.dry_run:
        for name, text in files.items():
            print(f"==> {folder / name} <==\n{text}")
        return 0
    write(files, folder)
    command = target.submission(folder, layout)
    if options.submit:
        # Jobs of other targets outlive this process, so they print themselves how to continue.
        inner = {INNER: "1"} if target.name == "local" else {}
        status = run_to_end(command, {**os.environ, **inner})
        return status if status >= 0 else 128 - status  # like a shell for a command that was killed
    say(f"wrote {counted(len(files), 'file')} to {folder}. To submit:\n  {shlex.join(command)}")
    return 0


def _class(name: str) -> type[Target]:
    match name:
        case "local":
            from dpo_dist.tools.launch.local import Local

            return Local
        case "slurm":
            from dpo_dist.tools.launch.slurm import Slurm

            return Slurm
        case "kubernetes":
            from dpo_dist.tools.launch.kubernetes.target import Kubernetes

            return Kubernetes
        case "compose":
            from dpo_dist.tools.launch.compose import Compose

            return Compose
        case "skypilot":
            from dpo_dist.tools.launch.skypilot import SkyPilot

            return SkyPilot
        case _:
            raise AssertionError(f"no class for the target {name}")


def _target(
    name: str,
    summary: str,
    example: str,
    details: str = "",
    *,
    several: bool = True,
    workdir: Path | None = None,
) -> Command:
    """The command of a target. `several`: it can have several machines. `workdir` is its default
    working directory (None: the current one)."""

    def add(parser: Parser) -> None:
        from dpo_dist.tools.launch.layout import Layout

        add_run_file(parser)
        fields = (*(("nodes", "gpus_per_node", "shards") if several else ()), "workdir", "yes")
        add_options(parser, Layout, fields, workdir=workdir or Path.cwd())
        group = parser.add_mutually_exclusive_group()
        group.add_argument(
            "--dry-run", action="store_true", help="print the files instead of writing them"
        )
        group.add_argument("--submit", action="store_true", help="also submit them")
        add_options(parser, _class(name))

    def run(options: argparse.Namespace) -> int:
        return _launch(from_options(_class(name), options), options)

    return Command(name, summary, f"RUN.yaml {example}", add=add, run=run, details=details)


TARGETS = (
    _target(
        "local",
        "all phases on this machine, with all its GPUs",
        "--submit",
        several=False,
    ),
    _target(
        "slurm",
        "one SLURM job per phase, each starting after the previous one",
        "--nodes 2 --gpus-per-node 8 --partition gpu --submit",
    ),
    _target(
        "kubernetes",
        "jobs in a Kubernetes cluster, on a shared volume",
        "--image registry/dpo-dist:0.1.0 --nodes 2 --gpus-per-node 8",
        "See docs/kubernetes.md.",
        workdir=IN_IMAGE,
    ),
    _target(
        "compose",
        "all phases in a container on one machine, with or without GPUs",
        "--image dpo-dist:0.1.0",
        "See docs/kubernetes.md.",
        several=False,
        workdir=IN_IMAGE,
    ),
    _target(
        "skypilot",
        "a managed SkyPilot job on rented machines, one task per phase",
        "--gpus-per-node 8 --gpu H100 --bucket my-runs --spot",
        "Run it in the directory that `sky jobs launch` is to upload. See docs/kubernetes.md.",
        workdir=Path(),
    ),
)


COMMAND = Command(
    "launch",
    "write the scripts that run all phases on one machine or a cluster, and submit them",
    "local run.yaml --dry-run",
    add=lambda parser: add_commands(parser, TARGETS, "target"),
    run=lambda options: 0,  # the chosen target's `run` replaces it
    details="The scripts are written to <run>/launch/<target>.",
)
