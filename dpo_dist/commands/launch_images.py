"""`dpo-dist launch kubernetes | compose | skypilot`: the targets that bring their own machines."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dpo_dist import __version__
from dpo_dist.commands.arguments import Commands, add_command
from dpo_dist.commands.launch_arguments import add_common, add_machines, fields_of

if TYPE_CHECKING:
    from dpo_dist.launching.render import Target

IN_IMAGE = Path("/workspace")  # where the Dockerfile puts recipes/ and accelerate_configs/


def add(targets: Commands) -> None:
    """The parsers of these targets."""
    _add_kubernetes(targets)
    _add_compose(targets)
    _add_skypilot(targets)


def _add_kubernetes(targets: Commands) -> None:
    command = add_command(
        targets,
        "kubernetes",
        "jobs in a Kubernetes cluster, on a volume that all of them share",
        "See docs/kubernetes.md.",
        example="RUN.yaml --image registry/dpo-dist:0.1.0 --nodes 2 --gpus-per-node 8",
    )
    add_common(command, IN_IMAGE)
    add_machines(command)
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

    return Kubernetes(**fields_of(options, Kubernetes))


def _add_compose(targets: Commands) -> None:
    command = add_command(
        targets,
        "compose",
        "all phases on one machine in a container, with its GPUs or without",
        "See docs/kubernetes.md.",
        example="RUN.yaml --image dpo-dist:0.1.0",
    )
    add_common(command, IN_IMAGE)
    command.set_defaults(nodes=1, gpus_per_node=0, shards=None)
    add = command.add_argument
    image = f"dpo-dist:{__version__}"
    add("--image", default=image, metavar="IMAGE", help="of CUDA, with its version (%(default)s)")
    add("--cpu-image", default=f"{image}-cpu", metavar="IMAGE", help="without it (%(default)s)")


def _compose(options: argparse.Namespace) -> Target:
    from dpo_dist.launching.compose import Compose

    return Compose(**fields_of(options, Compose))


def _add_skypilot(targets: Commands) -> None:
    command = add_command(
        targets,
        "skypilot",
        "a managed job of SkyPilot on rented machines, a task for each phase",
        "Start it where `sky jobs launch` is to find the sources. See docs/kubernetes.md.",
        example="RUN.yaml --gpus-per-node 8 --gpu H100 --bucket my-runs --spot",
    )
    add_common(command, Path())
    add_machines(command)
    add = command.add_argument
    add("--gpu", required=True, metavar="NAME", help="as SkyPilot calls it, e.g. H100")
    add("--bucket", metavar="NAME", help="holds the runs, where one machine trains")
    add("--volume", metavar="NAME", help="likewise, for any number of machines")
    add("--spot", action="store_true", help="machines with GPUs may be taken away")


def _skypilot(options: argparse.Namespace) -> Target:
    from dpo_dist.launching.skypilot import SkyPilot

    return SkyPilot(**fields_of(options, SkyPilot))


TARGETS = {"kubernetes": _kubernetes, "compose": _compose, "skypilot": _skypilot}
