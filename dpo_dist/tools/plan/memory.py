"""The memory of training, for both methods and every sharding strategy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dpo_dist.config import Checkpointing, Full, Lora, Method, Train, required
from dpo_dist.estimates.fit import (
    Fit,
    Workload,
    cheaper_methods,
    described,
    next_cheaper,
    other_ways,
    recommended,
    ways_to_train,
)
from dpo_dist.estimates.hardware import Cluster
from dpo_dist.estimates.host import HostMemory
from dpo_dist.estimates.memory import ModelShape
from dpo_dist.estimates.sharding import MemoryPart
from dpo_dist.system.machine import GIB
from dpo_dist.tools.plan.chosen import RunFileWay, chosen_way
from dpo_dist.tools.plan.data import Pairs
from dpo_dist.tools.plan.hours import train_time
from dpo_dist.tools.plan.subject import Subject

REMEDY: dict[MemoryPart, str] = {
    "weights": "ZeRO-3 shards them among more GPUs",
    "gradients": "ZeRO-2 and 3 shard them among more GPUs",
    "optimizer": "every ZeRO stage shards it among more GPUs",
    "communication": "smaller buckets in the DeepSpeed configuration",
    "reference": "train.kl.prompts: 0 avoids the second model",
    "activations": "a smaller micro-batch, more checkpointing or a smaller train.max_length",
    "head": "a smaller micro-batch",
}


@dataclass(frozen=True)
class Recommendation:
    """The fastest way to train that fits. `overrides` are for the command line, `remedy` reduces
    the `largest` part of the memory, `cheaper` names a way with less memory, and `host` is CPU
    memory per node."""

    overrides: list[str]
    accelerate_config: str
    machines: int
    processes: int
    micro_batch_size: int
    accumulation: int
    gradient_checkpointing: Checkpointing
    largest: MemoryPart
    largest_bytes: int
    remedy: str
    cheaper: str
    host: HostMemory
    step_seconds: float
    train_hours: float


@dataclass(frozen=True)
class TrainingMemory:
    """The ways to train; empty if no training is planned. `started` is the way whose hours are
    planned: the run file's own if it fits, otherwise the recommended one; None if no way fits."""

    rows: Sequence[Fit] = ()
    run_file: RunFileWay | None = None
    recommendation: Recommendation | None = None
    started: Fit | None = None
    problems: Sequence[str] = ()


def workload(train: Train, shape: ModelShape, pairs: Pairs) -> Workload:
    """The training of a section on these pairs."""
    beside = train.has_second_model(validates=pairs.validation > 0)
    return Workload(
        shape=shape,
        method=train.method,
        pair=pairs.mean,
        longest=pairs.longest,
        global_batch=train.global_batch_size,
        second_model=shape.parameters if beside else 0,
        second_model_size=4 if train.reference == "live" else 2,
        merges=train.merge,
    )


def training_memory(subject: Subject) -> TrainingMemory:
    """Plan both methods with every sharding strategy, and the run file's own settings."""
    if subject.pairs is None:
        return TrainingMemory()
    cluster, train = subject.cluster, required(subject.config.train)
    other: Method = Full() if isinstance(train.method, Lora) else Lora()
    works = [
        workload(section, subject.shape, subject.pairs)
        for section in (train, train.model_copy(update={"method": other}))
    ]
    found = [ways_to_train(work, cluster, subject.utilization) for work in works]
    work, ways = works[0], found[0]
    own, best = chosen_way(train, work, cluster, subject.utilization), recommended(ways)
    started = own.way if own.way is not None and own.way.fits else None
    if started is not None:
        own = replace(own, train_hours=train_time(subject, started.step_seconds).hours)
    advice = _recommendation(subject, work, ways, best) if best else None
    problems = []
    if best is None:
        problems.append(_too_small(work, cluster, min(ways, key=lambda way: way.need)))
    if own.problem and advice is not None:
        ram = f"{advice.host.peak / GIB:,.0f} GiB of CPU memory per node"
        problems.append(f"{own.problem}; this fits: {' '.join(advice.overrides)} ({ram})")
    elif own.problem and own.way is None:
        problems.append(own.problem)
    return TrainingMemory(
        rows=[way for ways in found for way in ways],
        run_file=own,
        recommendation=advice,
        started=started or best,
        problems=problems,
    )


def _recommendation(
    subject: Subject, work: Workload, ways: Sequence[Fit], fit: Fit
) -> Recommendation:
    """The settings of `fit`, one of `ways`."""
    cluster = subject.cluster
    # `dpo-dist launch` writes the cluster's numbers into its copy of the file.
    several = fit.strategy == "zero3" and cluster.nodes > 1
    name = "multi_node_zero3" if several else fit.strategy
    return Recommendation(
        overrides=[
            f"--set train.accelerate_config={name}",
            f"--set train.micro_batch_size={fit.micro_batch_size}",
            f"--set train.gradient_checkpointing={fit.gradient_checkpointing}",
        ],
        accelerate_config=name,
        machines=cluster.nodes,
        processes=cluster.size,
        micro_batch_size=fit.micro_batch_size,
        accumulation=work.global_batch // (fit.micro_batch_size * cluster.size),
        gradient_checkpointing=fit.gradient_checkpointing,
        largest=fit.largest,
        largest_bytes=fit.parts[fit.largest],
        remedy=REMEDY[fit.largest],
        cheaper=_cheaper(next_cheaper(ways, fit), work.method),
        host=fit.host,
        step_seconds=fit.step_seconds,
        train_hours=train_time(subject, fit.step_seconds).hours,
    )


def _cheaper(way: Fit | None, method: Method) -> str:
    if way is not None:
        return f"{way.strategy}, {way.total / GIB:.1f} GiB per GPU"
    methods = cheaper_methods(method)
    return described(methods[0]) if methods else "nothing needs less memory"


def _too_small(work: Workload, cluster: Cluster, smallest: Fit) -> str:
    fitting = "; or ".join(other_ways(work, cluster))
    enough = f"This would fit: {fitting}" if fitting else "Neither another method nor 64 nodes fit"
    part = f"most of it for {smallest.largest}"
    remedy = REMEDY[smallest.largest]
    if smallest.loading > smallest.total:
        part, remedy = (
            "while it loads",
            "a quantized model is whole on each GPU until sharded",
        )
    return (
        f"train does not fit on {cluster.label}: even with the most sharding "
        f"({smallest.strategy}, one pair at a time), it needs {smallest.need / GIB:.1f} GiB per "
        f"GPU, {part}, but only {cluster.gpu.usable / GIB:.1f} GiB are usable: {remedy}. {enough}."
    )
