"""The way to train that the run file itself asks for, among those that are reckoned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dpo_dist.config import Checkpointing, Config, Train
from dpo_dist.errors import ConfigError
from dpo_dist.estimates.fit import KINDS, Fit, Workload, measure
from dpo_dist.estimates.hardware import Cluster
from dpo_dist.estimates.scaling import Setting
from dpo_dist.estimates.sharding import ZERO_STAGE, Strategy
from dpo_dist.runs.resources import strategy
from dpo_dist.system.console import counted
from dpo_dist.system.machine import GIB
from dpo_dist.training.job import (
    FITS,
    accumulation_steps,
    for_one_process,
    machines,
    read_accelerate_config,
    uses_fsdp,
)


@dataclass(frozen=True)
class Chosen:
    """`fit` is None where the run file names no way that these GPUs could go; `problem` says why
    it cannot be started as it is, `note` how it was understood. Both may be empty."""

    fit: Fit | None = None
    problem: str = ""
    note: str = ""


def chosen_way(config: Config, work: Workload, cluster: Cluster, utilization: float) -> Chosen:
    """The run file's accelerate configuration, micro-batch and checkpointing on these GPUs.

    Raises `ConfigError` where there is no readable accelerate configuration.
    """
    train = config.train
    assert train is not None
    path = train.accelerate_config
    if "accelerate_config" not in train.model_fields_set and not path.exists():
        return Chosen(note="The run file names no accelerate configuration yet.")
    values = read_accelerate_config(path)
    if values.get("use_cpu"):
        return Chosen(note=f"{path} trains on processors: name one of those for GPUs.")
    if cluster.size > 1 and for_one_process(path):
        return Chosen(
            problem=f"train.accelerate_config: {path} is for one process (distributed_type NO), "
            f"and these are {cluster.size} GPUs"
        )
    way = strategy(path, cluster.size)
    try:
        times = accumulation_steps(train, cluster.size)
    except ConfigError as error:
        return Chosen(problem=f"train: {error}")
    if train.gradient_checkpointing == "selective" and ZERO_STAGE[way] == 3:
        return Chosen(
            problem="train.gradient_checkpointing: selective is not possible under ZeRO-3; use full"
        )
    fits = [
        measure(work, cluster, Setting(way, train.micro_batch_size, times, kind), utilization)
        for kind in _kinds(train, way)
    ]
    filled = FITS * cluster.gpu.memory
    fit = next((fit for fit in fits if fit.total <= filled), fits[-1])
    problem = "" if fit.fits else _too_large(train, fit, cluster)
    return Chosen(fit, problem, _note(train, values, cluster))


def _kinds(train: Train, way: Strategy) -> tuple[Checkpointing, ...]:
    """As set; for `auto` those among which the trainer chooses, in its order."""
    if train.gradient_checkpointing != "auto":
        return (train.gradient_checkpointing,)
    return tuple(kind for kind in KINDS if kind != "selective" or ZERO_STAGE[way] != 3)


def _too_large(train: Train, fit: Fit, cluster: Cluster) -> str:
    return (
        f"train does not fit as the run file has it ({train.accelerate_config}, micro_batch_size "
        f"{train.micro_batch_size}, gradient_checkpointing {fit.setting.checkpointing}): it needs "
        f"{fit.total / GIB:.1f} GiB of a GPU, most of it {fit.largest}, and "
        f"{cluster.gpu.usable / GIB:.1f} GiB may be filled"
    )


def _note(train: Train, values: Mapping[str, Any], cluster: Cluster) -> str:
    """What was taken otherwise than the files say it."""
    path = train.accelerate_config
    processes, nodes = int(values["num_processes"]), machines(path)
    notes = []
    if (processes, nodes) != (cluster.size, cluster.nodes):
        notes.append(
            f"{path} is for {_spread(processes, nodes)}; reckoned for "
            f"{_spread(cluster.size, cluster.nodes)}, for which `dpo-dist launch` makes a copy."
        )
    if uses_fsdp(path):
        notes.append("FSDP is reckoned as ZeRO-3.")
    if not train.bf16:
        notes.append("Reckoned in bf16, though the run file's `bf16` is false.")
    return " ".join(notes)


def _spread(processes: int, nodes: int) -> str:
    return f"{nodes} x {counted(processes // nodes, 'process', 'processes')}"
