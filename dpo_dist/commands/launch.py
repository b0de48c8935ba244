"""`dpo-dist launch`: a command for each target; the target's options are its own arguments."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_dist import __version__
from dpo_dist.commands.arguments import Commands, add_command, add_set

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from dpo_dist.launching.render import Target

IN_IMAGE = Path("/workspace")  # where the Dockerfile puts recipes/ and accelerate_configs/


def run(options: argparse.Namespace) -> int:
    from dpo_dist.console import say
    from dpo_dist.launching.layout import Layout
    from dpo_dist.launching.render import write
    from dpo_dist.processes import run_to_end
    from dpo_dist.runfile import load_config

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
    command = target.submission(folder)
    if options.submit:
        status = run_to_end(command)
        return status if status >= 0 else 128 - status  # ended by a signal, as shells say it
    say(f"{len(files)} files are in {folder}. To submit them:\n  {shlex.join(command)}")
    return 0


def add(commands: Commands) -> None:
    """The parser of `dpo-dist launch`, with one of its own for each target."""
    command = add_command(
        commands,
        "launch",
        "write the scripts that run all phases on one machine or a cluster, and submit them",
        "They go to <run>/launch/<target>.",
        example="local recipes/incident_triage/run.yaml --dry-run",
    )
    targets = command.add_subparsers(dest="target", required=True, metavar="TARGET")
    _add_local(targets)
    _add_slurm(targets)
    _add_kubernetes(targets)
    _add_compose(targets)
    _add_skypilot(targets)


def _add_local(targets: Commands) -> None:
    command = add_command(
        targets,
        "local",
        "all phases on this machine, on the GPUs that it turns out to have",
        example="RUN.yaml --submit",
    )
    _add_common(command)
    _add_setup(command)
    command.set_defaults(nodes=1, gpus_per_node=0, shards=None)


def _add_slurm(targets: Commands) -> None:
    command = add_command(
        targets,
        "slurm",
        "a job for each phase under SLURM, each waiting for the one before",
        example="RUN.yaml --nodes 2 --gpus-per-node 8 --partition gpu --submit",
    )
    _add_common(command)
    _add_machines(command)
    _add_setup(command)
    add = command.add_argument
    add("--partition", metavar="NAME")
    add("--cpu-partition", metavar="NAME", help="for jobs without GPUs; default: --partition")
    add("--account", metavar="NAME")
    add("--time", metavar="LIMIT", help="of each job; one that is cut short is queued again")
    add("--cpus-per-gpu", type=int, default=8, metavar="N", help="processors for each GPU (8)")
    add("--cpus", type=int, default=4, metavar="N", help="processors of jobs without GPUs (4)")
    add("--save-seconds", type=int, default=300, metavar="S", help="time that saving takes (300)")
    add("--max-requeues", type=int, default=100, metavar="N", help="of a job (100)")
    add("--container", default="", metavar="WORDS", help="before dpo-dist: 'apptainer exec IMAGE'")
    for name in ("sbatch", "srun"):
        add(
            f"--{name}",
            action="append",
            default=[],
            metavar="OPTION",
            help=f"another option of {name}, as in --{name}=--qos=high (repeatable)",
        )


def _slurm(options: argparse.Namespace) -> Target:
    from dpo_dist.launching.slurm import Slurm

    return Slurm(
        partition=options.partition,
        cpu_partition=options.cpu_partition,
        account=options.account,
        time=options.time,
        cpus_per_gpu=options.cpus_per_gpu,
        cpus=options.cpus,
        save_seconds=options.save_seconds,
        max_requeues=options.max_requeues,
        sbatch=tuple(options.sbatch),
        srun=tuple(options.srun),
        setup=tuple(options.setup),
        container=options.container,
    )


def _local(options: argparse.Namespace) -> Target:
    from dpo_dist.launching.local import Local

    return Local(setup=tuple(options.setup))


def _add_kubernetes(targets: Commands) -> None:
    command = add_command(
        targets,
        "kubernetes",
        "jobs in a Kubernetes cluster, on a volume that all of them share",
        "See docs/kubernetes.md.",
        example="RUN.yaml --image registry/dpo-dist:0.1.0 --nodes 2 --gpus-per-node 8",
    )
    _add_common(command)
    _add_machines(command)
    command.set_defaults(workdir=IN_IMAGE)
    add = command.add_argument
    add("--image", required=True, metavar="IMAGE", help="with its version or digest")
    add("--namespace", metavar="NAME", help="default: that of kubectl's context")
    add("--pvc", metavar="NAME", help="a claim that is there (ReadWriteMany); else one is made")
    add("--storage-class", metavar="NAME", help="of the claim that is made; it has to share")
    add("--storage", default="500Gi", metavar="SIZE", help="of the claim that is made (500Gi)")
    add("--secret", default="dpo-dist-keys", metavar="NAME", help="holds keys (dpo-dist-keys)")
    add(
        "--trainer",
        choices=("trainjob", "job"),
        default="trainjob",
        help="of several nodes: Kubeflow's TrainJob, or a plain Job that submit.sh starts again",
    )
    add("--cpus", type=int, default=8, metavar="N", help="for each GPU, or a pod without (8)")
    add("--memory", type=int, default=64, metavar="GIB", help="likewise (64)")


def _kubernetes(options: argparse.Namespace) -> Target:
    from dpo_dist.launching.kubernetes.target import Kubernetes

    return Kubernetes(**_fields(options, Kubernetes))


def _add_compose(targets: Commands) -> None:
    command = add_command(
        targets,
        "compose",
        "all phases on one machine in a container, with its GPUs or without",
        "See docs/kubernetes.md.",
        example="RUN.yaml --image dpo-dist:0.1.0",
    )
    _add_common(command)
    command.set_defaults(nodes=1, gpus_per_node=0, shards=None, workdir=IN_IMAGE)
    add = command.add_argument
    image = f"dpo-dist:{__version__}"
    add("--image", default=image, metavar="IMAGE", help="of CUDA, with its version (%(default)s)")
    add("--cpu-image", default=f"{image}-cpu", metavar="IMAGE", help="without it (%(default)s)")


def _compose(options: argparse.Namespace) -> Target:
    from dpo_dist.launching.compose import Compose

    return Compose(**_fields(options, Compose))


def _add_skypilot(targets: Commands) -> None:
    command = add_command(
        targets,
        "skypilot",
        "a managed job of SkyPilot on rented machines, a task for each phase",
        "Start it where `sky jobs launch` is to find the sources. See docs/kubernetes.md.",
        example="RUN.yaml --gpus-per-node 8 --gpu H100 --bucket my-runs --spot",
    )
    _add_common(command)
    _add_machines(command)
    command.set_defaults(workdir=Path())
    add = command.add_argument
    add("--gpu", required=True, metavar="NAME", help="as SkyPilot calls it, e.g. H100")
    add("--bucket", metavar="NAME", help="holds the runs, where one machine trains")
    add("--volume", metavar="NAME", help="likewise, for any number of machines")
    add("--spot", action="store_true", help="machines with GPUs may be taken away")


def _skypilot(options: argparse.Namespace) -> Target:
    from dpo_dist.launching.skypilot import SkyPilot

    return SkyPilot(**_fields(options, SkyPilot))


_TARGETS = {
    "local": _local,
    "slurm": _slurm,
    "kubernetes": _kubernetes,
    "compose": _compose,
    "skypilot": _skypilot,
}


def _fields(options: argparse.Namespace, target: type[DataclassInstance]) -> dict[str, Any]:
    """The options that are fields of a target."""
    return {field.name: getattr(options, field.name) for field in fields(target)}


def _add_common(command: argparse.ArgumentParser) -> None:
    """The arguments of every target."""
    command.add_argument("run_file", type=Path, metavar="RUN.yaml")
    add_set(command)
    add = command.add_argument
    add("--workdir", type=Path, metavar="DIR", help="where the jobs start; default: here")
    add("--yes", action="store_true", help="agree to what the run's judges cost")
    what = command.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="print the files, write none")
    what.add_argument("--submit", action="store_true", help="submit them, too")


def _add_setup(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--setup",
        action="append",
        default=[],
        metavar="LINE",
        help="a line of shell before the work, e.g. 'source .venv/bin/activate' (repeatable)",
    )


def _add_machines(command: argparse.ArgumentParser) -> None:
    """The arguments of the targets that have several machines."""
    add = command.add_argument
    add("--nodes", type=int, default=1, metavar="N", help="machines that train together (1)")
    add("--gpus-per-node", type=int, default=0, metavar="M", help="0: processors only (0)")
    add("--shards", type=int, metavar="K", help="jobs that sample; default: one for each engine")
