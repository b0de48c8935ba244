"""The way to train that the run file itself asks for, among those that are reckoned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_dist.config import Checkpointing, Config, Train
from dpo_dist.console import counted
from dpo_dist.errors import ConfigError
from dpo_dist.machine import GIB
from dpo_dist.planning.fit import KINDS, Fit, Workload, measure
from dpo_dist.planning.hardware import Cluster
from dpo_dist.planning.scaling import Setting
from dpo_dist.planning.sharding import ZERO_STAGE, Strategy
from dpo_dist.training.job import (
    accumulation_steps,
    launch_shape,
    machines,
    read_accelerate_config,
)

BY_STAGE: dict[int, Strategy] = {0: "ddp", 1: "zero1", 2: "zero2", 3: "zero3"}
OFFLOADED = ("param", "optimizer")
# The share of the memory that the trainer's `auto` fills before it checkpoints more
# (training/activations.py, whose torch is not for here; a test holds the two together).
AUTO_FILLS = 0.8


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
    if cluster.size > 1 and values.get("distributed_type") in ("NO", False):  # YAML's unquoted NO
        return Chosen(
            problem=f"train.accelerate_config: {path} is for one process (distributed_type NO), "
            f"and these are {cluster.size} GPUs"
        )
    strategy = strategy_of(path, cluster)
    try:
        times = accumulation_steps(train, cluster.size)
    except ConfigError as error:
        return Chosen(problem=f"train: {error}")
    if train.gradient_checkpointing == "selective" and ZERO_STAGE[strategy] == 3:
        return Chosen(
            problem="train.gradient_checkpointing: selective is not possible under ZeRO-3; use full"
        )
    fits = [
        measure(work, cluster, Setting(strategy, train.micro_batch_size, times, kind), utilization)
        for kind in _kinds(train, strategy)
    ]
    filled = AUTO_FILLS * cluster.gpu.memory
    fit = next((fit for fit in fits if fit.total <= filled), fits[-1])
    problem = "" if fit.fits else _too_large(train, fit, cluster)
    return Chosen(fit, problem, _note(train, values, cluster))


def strategy_of(path: Path, cluster: Cluster) -> Strategy:
    """Of an accelerate configuration. FSDP shards what ZeRO-3 shards; offloading counts where
    weights and optimizer both leave the GPU."""
    values = read_accelerate_config(path)
    stage = launch_shape(path)[1]
    if values.get("distributed_type") == "FSDP":
        return "zero3"
    if stage == 3 and _offloads(values.get("deepspeed_config") or {}):
        return "zero3_offload"
    return "single_gpu" if cluster.size == 1 and stage == 0 else BY_STAGE[stage]


def _offloads(settings: Mapping[str, Any]) -> bool:
    """Of accelerate's own keys, or of the DeepSpeed configuration that they name."""
    if file := settings.get("deepspeed_config_file"):
        zero = json.loads(Path(file).read_text(encoding="utf-8")).get("zero_optimization", {})
        devices = [(zero.get(f"offload_{part}") or {}).get("device") for part in OFFLOADED]
    else:
        devices = [settings.get(f"offload_{part}_device") for part in OFFLOADED]
    return all(device not in (None, "none") for device in devices)


def _kinds(train: Train, strategy: Strategy) -> tuple[Checkpointing, ...]:
    """As set; for `auto` those among which the trainer chooses, in its order."""
    if train.gradient_checkpointing != "auto":
        return (train.gradient_checkpointing,)
    return tuple(kind for kind in KINDS if kind != "selective" or ZERO_STAGE[strategy] != 3)


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
    if values.get("distributed_type") == "FSDP":
        notes.append("FSDP is reckoned as ZeRO-3.")
    if not train.bf16:
        notes.append("Reckoned in bf16, though the run file's `bf16` is false.")
    return " ".join(notes)


def _spread(processes: int, nodes: int) -> str:
    return f"{nodes} x {counted(processes // nodes, 'process', 'processes')}"
