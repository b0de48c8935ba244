"""`dpo-dist launch`: a command for each target; the target's options are its own arguments."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from dpo_dist.tools.arguments import Commands, add_command
from dpo_dist.tools.launch import launch_images
from dpo_dist.tools.launch.launch_arguments import (
    add_common,
    add_machines,
    add_setup,
    fields_of,
)

if TYPE_CHECKING:
    from dpo_dist.tools.launch.render import Target


def run(options: argparse.Namespace) -> int:
    from dpo_dist.config.runfile import load_config
    from dpo_dist.system.console import INNER, counted, say
    from dpo_dist.system.processes import run_to_end
    from dpo_dist.tools.launch.layout import Layout
    from dpo_dist.tools.launch.render import write

    layout = Layout(
        run_file=options.run_file,
        config=load_config(options.run_file, options.set),
        overrides=tuple(options.set),
        nodes=options.nodes,
        gpus_per_node=options.gpus_per_node,
        shards=options.shards,
        workdir=options.workdir or Path.cwd(),
        yes=options.yes,
    )
    target = _TARGETS[options.target](options)
    files = target.files(layout)
    folder = layout.folder(target.name)
    if options.dry_run:
        for name, text in files.items():
            print(f"==> {folder / name} <==\n{text}")
        return 0
    write(files, folder)
    command = target.submission(folder, layout)
    if options.submit:
        # What is submitted to others goes on without this process.
        inner = {INNER: "1"} if target.name == "local" else {}
        status = run_to_end(command, {**os.environ, **inner})
        return status if status >= 0 else 128 - status  # ended by a signal, as shells say it
    say(f"wrote {counted(len(files), 'file')} to {folder}. To submit:\n  {shlex.join(command)}")
    return 0


def add(commands: Commands) -> None:
    """The parser of `dpo-dist launch`, with one of its own for each target."""
    command = add_command(
        commands,
        "launch",
        "write the scripts that run all phases on one machine or a cluster, and submit them",
        "They are written to <run>/launch/<target>.",
        example="local recipes/incident_triage/run.yaml --dry-run",
    )
    targets = command.add_subparsers(dest="target", required=True, metavar="TARGET")
    _add_local(targets)
    _add_slurm(targets)
    launch_images.add(targets)


def _add_local(targets: Commands) -> None:
    command = add_command(
        targets,
        "local",
        "all phases on this machine, with whatever GPUs it has",
        example="RUN.yaml --submit",
    )
    add_common(command)
    add_setup(command)
    command.set_defaults(nodes=1, gpus_per_node=0, shards=None)


def _add_slurm(targets: Commands) -> None:
    command = add_command(
        targets,
        "slurm",
        "one SLURM job per phase, each waiting for the one before",
        example="RUN.yaml --nodes 2 --gpus-per-node 8 --partition gpu --submit",
    )
    add_common(command)
    add_machines(command)
    add_setup(command)
    add = command.add_argument
    add("--partition", metavar="NAME", help="partition for jobs with GPUs")
    add(
        "--cpu-partition",
        metavar="NAME",
        help="partition for jobs without GPUs (default: that of --partition)",
    )
    add("--account", metavar="NAME", help="account to charge")
    add("--time", metavar="LIMIT", help="time limit of each job; a job that reaches it is requeued")
    add("--cpus-per-gpu", type=int, default=8, metavar="N", help="CPUs per GPU (default: 8)")
    add("--cpus", type=int, default=4, metavar="N", help="CPUs of jobs without GPUs (default: 4)")
    add(
        "--save-seconds",
        type=int,
        default=300,
        metavar="S",
        help="seconds before the limit at which training is told to save (default: 300)",
    )
    add(
        "--max-requeues",
        type=int,
        default=100,
        metavar="N",
        help="how often a job is requeued at most (default: 100)",
    )
    add(
        "--container",
        default="",
        metavar="WORDS",
        help="command to put before dpo-dist, e.g. 'apptainer exec IMAGE'",
    )
    for name, example in (("sbatch", "--qos=high"), ("srun", "--container-image=IMAGE")):
        add(
            f"--{name}",
            action="append",
            default=[],
            metavar="OPTION",
            help=f"pass an option to {name}, e.g. --{name}={example} (repeatable)",
        )


def _slurm(options: argparse.Namespace) -> Target:
    from dpo_dist.tools.launch.slurm import Slurm

    return Slurm(**fields_of(options, Slurm))


def _local(options: argparse.Namespace) -> Target:
    from dpo_dist.tools.launch.local import Local

    return Local(**fields_of(options, Local))


_TARGETS = {"local": _local, "slurm": _slurm, **launch_images.TARGETS}
