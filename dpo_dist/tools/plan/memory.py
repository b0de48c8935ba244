"""What training takes of every GPU, for both methods and every way to shard it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dpo_dist.config import Config, Full, Lora, Method
from dpo_dist.estimates.fit import (
    Fit,
    Workload,
    next_cheaper,
    nodes_that_fit,
    recommended,
    ways_to_train,
)
from dpo_dist.estimates.hardware import Cluster
from dpo_dist.estimates.memory import ModelShape
from dpo_dist.estimates.sharding import host_bytes
from dpo_dist.system.machine import GIB
from dpo_dist.tools.plan.chosen import Chosen, chosen_way
from dpo_dist.tools.plan.data import Pairs

REMEDY = {
    "weights": "ZeRO-3 shards them among more GPUs",
    "gradients": "ZeRO-2 and 3 shard them among more GPUs",
    "optimizer": "every ZeRO stage shards it among more GPUs",
    "communication": "smaller buckets in the DeepSpeed configuration",
    "reference": "train.kl.prompts: 0 avoids the second model",
    "activations": "a smaller micro-batch, more checkpointing or a smaller train.max_length",
    "head": "a smaller micro-batch",
}


@dataclass(frozen=True)
class TrainingMemory:
    """`rows` are the table's; `work` is what the run file trains, `ways` are the ways to do it,
    `best` the one that is recommended, `chosen` the run file's own."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    work: Workload | None = None
    ways: Sequence[Fit] = ()
    best: Fit | None = None
    chosen: Chosen = field(default_factory=Chosen)
    problems: list[str] = field(default_factory=list)

    @property
    def started(self) -> Fit | None:
        """What the hours are told for: the run file's own way where it fits."""
        own = self.chosen.fit
        return own if own is not None and own.fits else self.best


def workload(config: Config, method: Method, shape: ModelShape, pairs: Pairs) -> Workload:
    """What is trained, if `method` were the run file's."""
    train = config.train
    assert train is not None
    asked = train.model_copy(update={"method": method})
    beside = asked.has_second_model(validates=pairs.validation > 0)
    return Workload(
        shape=shape,
        method=method,
        pair=pairs.mean,
        longest=pairs.longest,
        global_batch=train.global_batch_size,
        second_model=shape.parameters if beside else 0,
        second_model_size=4 if train.reference == "live" else 2,
    )


def methods(config: Config) -> tuple[Method, Method]:
    """The run file's method, then the other one."""
    assert config.train is not None
    asked = config.train.method
    return asked, (Full() if isinstance(asked, Lora) else Lora())


def training_memory(
    config: Config, shape: ModelShape, pairs: Pairs, cluster: Cluster, utilization: float
) -> TrainingMemory:
    """Both methods, every way to shard them, and the way that the run file asks for."""
    works = [workload(config, method, shape, pairs) for method in methods(config)]
    found = [ways_to_train(work, cluster, utilization) for work in works]
    bests = [recommended(ways) for ways in found]
    rows = [
        _row(work.method, way, way is best)
        for work, ways, best in zip(works, found, bests, strict=True)
        for way in ways
    ]
    work, ways, best = works[0], found[0], bests[0]
    chosen = chosen_way(config, work, cluster, utilization)
    problems = []
    if best is None:
        problems.append(_too_small(work, cluster, min(ways, key=lambda way: way.total)))
    if chosen.problem and best is not None:
        problems.append(f"{chosen.problem}; this would do: {' '.join(overrides(best, cluster))}")
    elif chosen.problem and chosen.fit is None:
        problems.append(chosen.problem)
    return TrainingMemory(rows, work, ways, best, chosen, problems)


def overrides(fit: Fit, cluster: Cluster) -> list[str]:
    """The command line's words for a way to train."""
    setting = fit.setting
    return [
        f"--set train.accelerate_config=accelerate_configs/{config_name(fit, cluster)}.yaml",
        f"--set train.micro_batch_size={setting.micro_batch}",
        f"--set train.gradient_checkpointing={setting.checkpointing}",
    ]


def run_file_way(config: Config, chosen: Chosen) -> dict[str, Any]:
    """What the run file itself asks for; `way` is None where these GPUs have no such way."""
    train = config.train
    assert train is not None
    return {
        "accelerate_config": str(train.accelerate_config),
        "micro_batch_size": train.micro_batch_size,
        "gradient_checkpointing": train.gradient_checkpointing,
        "way": _row(train.method, chosen.fit, False) if chosen.fit else None,
        "problem": chosen.problem,
        "note": chosen.note,
    }


def recommendation(
    work: Workload, ways: Sequence[Fit], fit: Fit, cluster: Cluster
) -> dict[str, Any]:
    """The settings of `fit`, one of `ways`, what takes most, and what would take less."""
    setting = fit.setting
    cpu = 0
    if setting.strategy == "zero3_offload":
        cpu = host_bytes(work.shape, work.method, cluster.size, cluster.per_node)
        cpu += 2 * work.second_model * cluster.per_node // cluster.size
    return {
        "overrides": overrides(fit, cluster),
        "accelerate_config": f"accelerate_configs/{config_name(fit, cluster)}.yaml",
        "machines": cluster.nodes,
        "processes": cluster.size,
        "micro_batch_size": setting.micro_batch,
        "accumulation": setting.accumulation,
        "gradient_checkpointing": setting.checkpointing,
        "largest": fit.largest,
        "largest_bytes": fit.parts[fit.largest],
        "remedy": REMEDY[fit.largest],
        "cheaper": _cheaper(next_cheaper(ways, fit), work.method),
        "node_memory_bytes": cpu,
    }


def _cheaper(way: Fit | None, method: Method) -> str:
    if way is not None:
        return f"{way.setting.strategy}, {way.total / GIB:.1f} GiB per GPU"
    return "train.method.type: lora" if isinstance(method, Full) else "nothing needs less"


def config_name(fit: Fit, cluster: Cluster) -> str:
    """The file in accelerate_configs/ without its ending. Its numbers of machines and processes may
    be others than the cluster's: `dpo-dist launch` makes a copy with the right ones."""
    if fit.setting.strategy == "zero3" and cluster.nodes > 1:
        return "multi_node_zero3"
    return fit.setting.strategy


def _row(method: Method, way: Fit, best: bool) -> dict[str, Any]:
    return {
        "method": method.type,
        "strategy": way.setting.strategy,
        "micro_batch_size": way.setting.micro_batch,
        "gradient_checkpointing": way.setting.checkpointing,
        "parts": way.parts,
        "total": way.total,
        "fits": way.fits,
        "recommended": best,
        "step_seconds": way.step.seconds,
        "efficiency": way.step.efficiency,
    }


def _too_small(work: Workload, cluster: Cluster, smallest: Fit) -> str:
    usable = cluster.gpu.usable / GIB
    nodes = nodes_that_fit(work, cluster)
    enough = (
        f"{nodes} nodes of {cluster.per_node} would be enough"
        if nodes
        else "no number of nodes would be enough"
    )
    return (
        f"train does not fit on {cluster.label}: with all weights and states sharded as far as "
        f"they can be ({smallest.setting.strategy}, one pair at a time) a GPU needs "
        f"{smallest.total / GIB:.1f} GiB, most of it for {smallest.largest}, but only "
        f"{usable:.1f} GiB are usable; {enough}. {REMEDY[smallest.largest].capitalize()}."
    )
