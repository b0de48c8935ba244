"""`dpo-dist launch kubernetes | compose | skypilot`: the targets that bring their own machines."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dpo_dist import __version__
from dpo_dist.tools.arguments import Commands, add_command
from dpo_dist.tools.launch.launch_arguments import add_common, add_machines, fields_of

if TYPE_CHECKING:
    from dpo_dist.tools.launch.render import Target

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
        "jobs in a Kubernetes cluster, on a shared volume",
        "See docs/kubernetes.md.",
        example="RUN.yaml --image registry/dpo-dist:0.1.0 --nodes 2 --gpus-per-node 8",
    )
    add_common(command, IN_IMAGE)
    add_machines(command)
    add = command.add_argument
    add("--image", required=True, metavar="IMAGE", help="image with its version or digest")
    add("--namespace", metavar="NAME", help="namespace (default: that of kubectl's context)")
    add("--pvc", metavar="NAME", help="an existing ReadWriteMany claim (default: create one)")
    add(
        "--storage-class",
        metavar="NAME",
        help="storage class of the created claim; must support ReadWriteMany",
    )
    add(
        "--storage",
        default="500Gi",
        metavar="SIZE",
        help="size of the created claim (default: 500Gi)",
    )
    add(
        "--secret",
        default="dpo-dist-keys",
        metavar="NAME",
        help="secret that holds the API keys (default: dpo-dist-keys)",
    )
    add(
        "--trainer",
        choices=("trainjob", "job"),
        default="trainjob",
        help="for several nodes: Kubeflow's TrainJob, or a plain Job that submit.sh restarts",
    )
    add(
        "--cpus",
        type=int,
        default=8,
        metavar="N",
        help="CPUs per GPU, or of a pod without GPUs (default: 8)",
    )
    add(
        "--memory",
        type=int,
        default=64,
        metavar="GIB",
        help="GiB of memory, likewise (default: 64)",
    )


def _kubernetes(options: argparse.Namespace) -> Target:
    from dpo_dist.tools.launch.kubernetes.target import Kubernetes

    return Kubernetes(**fields_of(options, Kubernetes))


def _add_compose(targets: Commands) -> None:
    command = add_command(
        targets,
        "compose",
        "all phases in a container on one machine, with or without GPUs",
        "See docs/kubernetes.md.",
        example="RUN.yaml --image dpo-dist:0.1.0",
    )
    add_common(command, IN_IMAGE)
    command.set_defaults(nodes=1, gpus_per_node=0, shards=None)
    add = command.add_argument
    image = f"dpo-dist:{__version__}"
    add(
        "--image",
        default=image,
        metavar="IMAGE",
        help="CUDA image, with its version (default: %(default)s)",
    )
    add(
        "--cpu-image",
        default=f"{image}-cpu",
        metavar="IMAGE",
        help="CPU image (default: %(default)s)",
    )


def _compose(options: argparse.Namespace) -> Target:
    from dpo_dist.tools.launch.compose import Compose

    return Compose(**fields_of(options, Compose))


def _add_skypilot(targets: Commands) -> None:
    command = add_command(
        targets,
        "skypilot",
        "a managed SkyPilot job on rented machines, one task per phase",
        "Run it in the directory from which `sky jobs launch` will upload the sources. See "
        "docs/kubernetes.md.",
        example="RUN.yaml --gpus-per-node 8 --gpu H100 --bucket my-runs --spot",
    )
    add_common(command, Path())
    add_machines(command)
    add = command.add_argument
    add("--gpu", required=True, metavar="NAME", help="GPU type, by SkyPilot's name, e.g. H100")
    add("--bucket", metavar="NAME", help="bucket for the runs, if one machine trains")
    add("--volume", metavar="NAME", help="volume for the runs, for any number of machines")
    add("--spot", action="store_true", help="use spot (preemptible) GPU machines")


def _skypilot(options: argparse.Namespace) -> Target:
    from dpo_dist.tools.launch.skypilot import SkyPilot

    return SkyPilot(**fields_of(options, SkyPilot))


TARGETS = {"kubernetes": _kubernetes, "compose": _compose, "skypilot": _skypilot}
