"""What training takes of every GPU, for both methods and every way to shard it."""

from __future__ import annotations

from typing import Any

from dpo_dist.config import Config, Full, Lora, Method
from dpo_dist.forecasting.data import Pairs
from dpo_dist.planning.fit import (
    Fit,
    Workload,
    next_cheaper,
    nodes_that_fit,
    recommended,
    ways_to_train,
)
from dpo_dist.planning.hardware import GIB, Cluster
from dpo_dist.planning.memory import ModelShape
from dpo_dist.planning.sharding import host_bytes

REMEDY = {
    "weights": "ZeRO-3 shards them among more GPUs",
    "gradients": "ZeRO-2 and 3 shard them among more GPUs",
    "optimizer": "every ZeRO stage shards it among more GPUs",
    "communication": "smaller buckets in the DeepSpeed configuration",
    "reference": "train.kl.prompts: 0 avoids the second model",
    "activations": "a smaller micro-batch, more checkpointing or a smaller train.max_length",
    "head": "a smaller micro-batch",
}


def workload(config: Config, method: Method, shape: ModelShape, pairs: Pairs) -> Workload:
    """What is trained, if `method` were the run file's."""
    train = config.train
    assert train is not None
    measures_kl = pairs.validation > 0 and train.kl.prompts > 0
    beside = isinstance(method, Full) and (train.reference == "live" or measures_kl)
    return Workload(
        shape=shape,
        method=method,
        pair=pairs.mean,
        longest=pairs.longest,
        global_batch=train.global_batch_size,
        second_model=shape.parameters if beside else 0,
    )


def methods(config: Config) -> tuple[Method, Method]:
    """The run file's method, then the other one."""
    assert config.train is not None
    asked = config.train.method
    return asked, (Full() if isinstance(asked, Lora) else Lora())


def training_memory(
    config: Config, shape: ModelShape, pairs: Pairs, cluster: Cluster, utilization: float
) -> tuple[list[dict[str, Any]], Fit | None, list[str]]:
    """(rows of the table, the way that is recommended, what is wrong)."""
    asked, other = methods(config)
    rows, chosen, problems = [], None, []
    for method in (asked, other):
        work = workload(config, method, shape, pairs)
        ways = ways_to_train(work, cluster, utilization)
        best = recommended(ways)
        rows += [_row(method, way, way is best) for way in ways]
        if method is asked:
            chosen = best
            if best is None:
                problems.append(_too_small(work, cluster, min(ways, key=lambda way: way.total)))
    return rows, chosen, problems


def recommendation(
    config: Config, shape: ModelShape, pairs: Pairs, cluster: Cluster, utilization: float, fit: Fit
) -> dict[str, Any]:
    """The settings to train with, what takes most, and what would take less."""
    setting = fit.setting
    asked, _ = methods(config)
    ways = ways_to_train(workload(config, asked, shape, pairs), cluster, utilization)
    offload = setting.strategy == "zero3_offload"
    cpu = host_bytes(shape, asked, cluster.size, cluster.per_node) if offload else 0
    return {
        "accelerate_config": f"accelerate_configs/{config_name(fit, cluster)}.yaml",
        "machines": cluster.nodes,
        "processes": cluster.size,
        "micro_batch_size": setting.micro_batch,
        "accumulation": setting.accumulation,
        "gradient_checkpointing": setting.checkpointing,
        "largest": fit.largest,
        "largest_bytes": fit.parts[fit.largest],
        "remedy": REMEDY[fit.largest],
        "cheaper": _cheaper(next_cheaper(ways, fit), asked),
        "node_memory_bytes": cpu,
    }


def _cheaper(way: Fit | None, method: Method) -> str:
    if way is not None:
        return f"{way.setting.strategy}, {way.total / GIB:.1f} GiB per GPU"
    return "train.method.type: lora" if isinstance(method, Full) else "nothing needs less"


def config_name(fit: Fit, cluster: Cluster) -> str:
    """The file in accelerate_configs/ without its ending. The numbers of machines and processes in
    it have to be the cluster's."""
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
