"""The run file's own training settings, on the planned GPUs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dpo_dist.config import Train
from dpo_dist.config.training import ACCELERATE_CONFIGS, accelerate_file
from dpo_dist.errors import ConfigError
from dpo_dist.estimates.fit import Fit, Workload, kinds, measure
from dpo_dist.estimates.hardware import Cluster
from dpo_dist.estimates.scaling import Setting
from dpo_dist.runs.resources import strategy
from dpo_dist.system.console import counted
from dpo_dist.system.machine import GIB
from dpo_dist.training.job import MEMORY_SHARE, accumulation_steps
from dpo_dist.training.launch_shape import LaunchShape, read_accelerate_config


@dataclass(frozen=True)
class RunFileWay:
    """The run file's own settings. `way` is None if they are not possible on these GPUs, and
    `train_hours` is None if they do not fit. `problem` says why the training cannot be started with
    them, `note` what the plan changes; both may be empty."""

    accelerate_config: str
    micro_batch_size: int
    gradient_checkpointing: str
    way: Fit | None = None
    problem: str = ""
    note: str = ""
    train_hours: float | None = None


def chosen_way(train: Train, work: Workload, cluster: Cluster, utilization: float) -> RunFileWay:
    """The run file's accelerate configuration, micro-batch and checkpointing on these GPUs, without
    hours. Raises `ConfigError` for an accelerate configuration that cannot be read."""
    named, asked = train.accelerate_config, train.gradient_checkpointing
    path = accelerate_file(named, cluster.size)
    own = RunFileWay(str(named or path.stem), train.micro_batch_size, asked)
    if named is None:
        return replace(own, note="The run file names no accelerate configuration yet.")
    if read_accelerate_config(path).get("use_cpu"):
        return replace(own, note=f"{named} is for CPUs: name a configuration for GPUs.")
    if cluster.size > 1 and LaunchShape.read(path).one_process:
        problem = (
            f"{named} is for one process (distributed_type NO), but there are {cluster.size} GPUs"
        )
        return replace(own, problem=f"train.accelerate_config: {problem}")
    way = strategy(LaunchShape.read(path), cluster.size)
    try:
        times = accumulation_steps(train, cluster.size)
    except ConfigError as error:
        return replace(own, problem=f"train: {error}")
    if asked != "auto" and asked not in kinds(way):
        problem = f"{asked} is not possible under ZeRO-3; use full"
        return replace(own, problem=f"train.gradient_checkpointing: {problem}")
    # For `auto` the trainer tries them in this order.
    fits = [
        measure(work, cluster, Setting(way, train.micro_batch_size, times, kind), utilization)
        for kind in (kinds(way) if asked == "auto" else (asked,))
    ]
    filled = MEMORY_SHARE * cluster.gpu.memory
    fit = next((fit for fit in fits if fit.need <= filled), fits[-1])
    problem = "" if fit.fits else _too_large(train, fit, cluster)
    return replace(own, way=fit, problem=problem, note=_note(train, cluster))


def _too_large(train: Train, fit: Fit, cluster: Cluster) -> str:
    part = f"largest part: {fit.largest}"
    if fit.loading > fit.total:
        part = "while it loads: the quantized model is whole on each GPU"
    return (
        f"train does not fit with the run file's settings ({train.accelerate_config}, "
        f"micro_batch_size {train.micro_batch_size}, gradient_checkpointing "
        f"{fit.gradient_checkpointing}): it needs {fit.need / GIB:.1f} GiB per "
        f"GPU ({part}), and {cluster.gpu.usable / GIB:.1f} GiB are usable"
    )


def _note(train: Train, cluster: Cluster) -> str:
    """How the plan deviates from the files."""
    path = accelerate_file(train.accelerate_config, cluster.size)
    launch = LaunchShape.read(path)
    processes, nodes = launch.processes, launch.machines
    notes = []
    fixed = path.parent != ACCELERATE_CONFIGS  # else its processes are as many as the GPUs
    if nodes != cluster.nodes or (fixed and processes != cluster.size):
        notes.append(
            f"{path} is for {_spread(processes, nodes)}, this plan for "
            f"{_spread(cluster.size, cluster.nodes)}: `dpo-dist launch` adapts a copy of it."
        )
    if not train.bf16:
        notes.append("The plan is for bf16, although the run file's `bf16` is false.")
    return " ".join(notes)


def _spread(processes: int, nodes: int) -> str:
    return f"{nodes} x {counted(processes // nodes, 'process', 'processes')}"
