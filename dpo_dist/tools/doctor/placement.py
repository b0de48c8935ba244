"""Checks of a training's environment: processes and GPUs, network variables, a SLURM job."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from dpo_dist.config import Optimization
from dpo_dist.errors import UserError
from dpo_dist.system.console import counted
from dpo_dist.system.machine import Gpu
from dpo_dist.system.ranks import Nodes
from dpo_dist.tools.doctor.findings import Finding
from dpo_dist.training.accelerate_command import check_launch
from dpo_dist.training.job import accumulation_steps
from dpo_dist.training.launch_shape import LaunchShape, read_accelerate_config

# For debugging only: each disables a fast transport.
_SLOW = ("NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE", "NCCL_IB_DISABLE")
_SLURM = ("JOB_ID", "NNODES", "NTASKS", "CPUS_PER_TASK", "GPUS_ON_NODE")


def training(section: Optimization, gpus: Sequence[Gpu]) -> Finding:
    """Whether a training's accelerate configuration fits a machine with these GPUs."""
    try:
        path = section.accelerate_file
        shape = LaunchShape.read(path)
        count = shape.machines
        # One of several machines: the others are unknown here.
        check_launch(section, Nodes(count, 0, "this", 1, "doctor") if count > 1 else None)
        steps = accumulation_steps(section, shape.processes)
    except UserError as error:
        return Finding("failed", str(error))
    here = shape.per_machine
    processes = counted(here, "process", "processes")
    batches = counted(steps, "micro-batch", "micro-batches")
    if problem := _mismatch(section, here, len(gpus)):
        advice = "Name another configuration, or let `dpo-dist launch local` choose"
        return Finding("failed", f"{path}: {problem}", advice)
    return Finding("ok", f"{path}: {processes} here, {batches} per step")


def _mismatch(section: Optimization, here: int, gpus: int) -> str | None:
    """Why `here` processes cannot train on this machine; None: they can."""
    path = section.accelerate_file
    values = read_accelerate_config(path)
    stage = LaunchShape.read(path).zero_stage
    if values.get("use_cpu"):
        return "use_cpu: true silently turns DeepSpeed off" if stage else None
    processes = counted(here, "process", "processes")
    if gpus:
        return f"{processes} for {counted(gpus, 'GPU')}" if here > gpus else None
    if values.get("mixed_precision") == "bf16" and (stage or here > 1):
        return f"{processes} in bfloat16{f' under ZeRO-{stage}' if stage else ''}, and no GPU"
    return None


def network_variables() -> Finding:
    """The network settings of NCCL and gloo. None of these variables holds a secret."""
    found = {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith("NCCL_") or name == "GLOO_SOCKET_IFNAME"
    }
    text = ", ".join(f"{name}={value}" for name, value in found.items()) or "none"
    interfaces = [name for _, name in socket.if_nameindex()]
    gloo, nccl = found.get("GLOO_SOCKET_IFNAME", ""), found.get("NCCL_SOCKET_IFNAME", "")
    for wanted, known in (
        (gloo, gloo in interfaces),
        (nccl, any(_matches(nccl, name) for name in interfaces)),
    ):
        if wanted and not known:
            advice = f"Set it to one of {', '.join(interfaces)}, or unset it"
            return Finding("failed", f"{text}: this machine has no interface {wanted}", advice)
    if slow := [name for name in _SLOW if found.get(name) not in (None, "", "0")]:
        return Finding("warning", f"{text}: slow", f"Unset {', '.join(slow)}")
    return Finding("ok", text)


def _matches(wanted: str, interface: str) -> bool:
    """Whether NCCL uses an interface: `wanted` lists prefixes of names; after `=`, exact names;
    after `^`, prefixes to exclude."""
    names = tuple(wanted.lstrip("^=").split(","))
    if wanted.startswith("="):
        return interface in names
    return interface.startswith(names) != wanted.startswith("^")


def slurm() -> Finding:
    """The resources that a surrounding SLURM job gives to this process."""
    names = [f"SLURM_{name}" for name in _SLURM]
    found = {name: os.environ[name] for name in names if name in os.environ}
    if not found:
        return Finding("ok", "no job")
    text = ", ".join(f"{name}={value}" for name, value in found.items())
    if int(found.get("SLURM_NTASKS", 1)) > int(found.get("SLURM_NNODES", 1)):
        advice = "dpo-dist starts a node's processes itself: --ntasks-per-node=1"
        return Finding("warning", f"{text}: several tasks on a node", advice)
    bound, total = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    if bound < min(total, 2):
        advice = "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK before srun"
        return Finding("warning", f"{text}: bound to {bound} of {total} cores", advice)
    return Finding("ok", text)
