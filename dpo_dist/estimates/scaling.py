"""One optimizer step on many GPUs: its arithmetic, what goes over the wires, and how much of that
the arithmetic does not hide.

A collective of M bytes brings M(n-1)/n to each of n GPUs (Patarasuk and Yuan 2009,
https://doi.org/10.1016/j.jpdc.2008.09.002); across boxes, M(b-1)/b goes into each of b boxes. It
takes the longer of the two. With T trained and W working weights, k micro-batches a step:

    DDP      all-reduce of float32 gradients, 8T, beside the last backward
    ZeRO-1   the same, 8T, and 2T to gather the new weights, after the last backward
    ZeRO-2   2T of bfloat16 gradients in each of k backwards, and 2T
    ZeRO-3   2W before each of k forwards and again before each backward, and k times 2T;
             gathering runs ahead of the layers as far as `MAX_LIVE_PARAMETERS` allow

An all-reduce counts twice. Only DDP and ZeRO-3 work while they communicate: DeepSpeed's
`overlap_comm` is off by default below stage 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dpo_dist.config import Checkpointing, Lora, Method
from dpo_dist.estimates.hardware import Cluster
from dpo_dist.estimates.memory import ModelShape, trained_parameters
from dpo_dist.estimates.sharding import (
    MAX_LIVE_PARAMETERS,
    ZERO_STAGE,
    Strategy,
)
from dpo_dist.estimates.throughput import (
    LAYER_LAUNCH,
    TRAINING_UTILIZATION,
    Pair,
    forward,
    training_flops,
)

LINK_EFFICIENCY = 0.8  # of the bandwidths that are stated
LATENCY = 30e-6  # seconds a collective
# Bytes per second from a node's CPU memory, and what CPU Adam reads and writes of it for a weight:
# master weight and moments both ways, the gradient, and the working weight.
CPU_MEMORY = 100e9
CPU_ADAM_BYTES = 12 * 2 + 4 + 2


@dataclass(frozen=True)
class Setting:
    """How a training is spread out: pairs a GPU takes at a time, and how often a step does so."""

    strategy: Strategy
    micro_batch: int
    accumulation: int
    checkpointing: Checkpointing


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step and of its arithmetic alone; bytes that come to each GPU."""

    seconds: float
    arithmetic: float
    received: float

    @property
    def efficiency(self) -> float:
        """The share of the time in which something is computed."""
        return self.arithmetic / self.seconds


@dataclass(frozen=True)
class _Work:
    """A layer's turn: bytes to gather before it, seconds of arithmetic, bytes to reduce after."""

    gather: float
    seconds: float
    reduce: float = 0.0


def collective_seconds(size: float, cluster: Cluster) -> float:
    """A gathering or a reduce-scatter of `size` bytes among all GPUs."""
    if cluster.size == 1 or size == 0:
        return 0.0
    inside = size * (cluster.size - 1) / cluster.size / cluster.gpu.link
    if cluster.per_node == 1:
        inside = 0.0
    between = size * (cluster.nodes - 1) / cluster.nodes / cluster.network
    return max(inside, between) / LINK_EFFICIENCY + LATENCY


def training_step(
    shape: ModelShape,
    method: Method,
    pair: Pair,
    cluster: Cluster,
    setting: Setting,
    *,
    utilization: float = TRAINING_UTILIZATION,
) -> StepTime:
    """A step on pairs of this mean size; `utilization` is the share of the peak that arithmetic
    reaches while nothing holds it up."""
    trained = trained_parameters(shape, method)
    micro = _micro_batch(shape, method, pair, cluster, setting, utilization)
    arithmetic = setting.accumulation * sum(work.seconds for work in micro)
    share = (cluster.size - 1) / cluster.size
    stage, times = ZERO_STAGE[setting.strategy], setting.accumulation
    if stage == 3:
        once = sum(work.gather + work.reduce for work in micro)
        offload = setting.strategy == "zero3_offload"
        seconds = _two_streams(micro * times, cluster, _ahead(shape), offload=offload)
        if offload:
            seconds += _offload_seconds(trained, cluster)
        return StepTime(seconds, arithmetic, once * times * share)
    if stage == 2:
        volume = times * 2.0 * trained + 2 * trained
        layers = shape.layers + 1
        reducing = layers * collective_seconds(2.0 * trained / layers, cluster)
        waiting = times * reducing + collective_seconds(2.0 * trained, cluster)
        return StepTime(arithmetic + waiting, arithmetic, volume * share)
    reducing = 2 * collective_seconds(4.0 * trained, cluster)
    if stage == 1:
        gathering = collective_seconds(2.0 * trained, cluster)
        return StepTime(arithmetic + reducing + gathering, arithmetic, 10.0 * trained * share)
    backward = sum(work.seconds for work in micro[len(micro) // 2 :])
    exposed = max(0.0, reducing - backward) if setting.strategy == "ddp" else 0.0
    return StepTime(arithmetic + exposed, arithmetic, 8.0 * trained * share)


def _micro_batch(
    shape: ModelShape,
    method: Method,
    pair: Pair,
    cluster: Cluster,
    setting: Setting,
    utilization: float,
) -> list[_Work]:
    """The turns of embedding, layers and head, forward and back."""
    rate = cluster.gpu.flops * utilization / setting.micro_batch  # pairs' FLOP/s
    once = forward(shape, pair)
    head = (2 if isinstance(method, Lora) else 3) * once.head
    there = once.layers + once.attention
    back = training_flops(shape, method, pair, setting.checkpointing) - head - there
    table = 2.0 * shape.vocabulary * shape.hidden
    layer = 2.0 * shape.body_parameters / shape.layers
    trained = trained_parameters(shape, method)
    if isinstance(method, Lora):
        reduced, reduced_table = 2.0 * trained / shape.layers, 0.0
    else:
        reduced, reduced_table = layer, table
    layers = shape.layers
    forth = max(there / layers / rate, LAYER_LAUNCH)
    return [
        _Work(table, 0.0),
        *[_Work(layer, forth)] * layers,
        _Work(0.0 if shape.tied else table, head / rate, 0.0 if shape.tied else reduced_table),
        *[_Work(layer, max(back / layers / rate, 2 * LAYER_LAUNCH), reduced)] * layers,
        _Work(0.0, 0.0, reduced_table),
    ]


def _two_streams(
    works: list[_Work], cluster: Cluster, ahead: int, *, offload: bool = False
) -> float:
    """Seconds until all is done, where one stream computes and one communicates.

    The wire takes turns: a layer's weights, then the gradients of the layer before. Weights are
    fetched `ahead` layers early at most; with `offload` each GPU's share comes from the CPU first.
    """
    from_host = 1 / (cluster.size * cluster.gpu.host) if offload else 0.0
    wire = clock = 0.0
    done: list[float] = []
    waiting = 0.0
    for number, work in enumerate(works):
        room = done[number - ahead] if number >= ahead else 0.0
        wire = max(wire, room) + collective_seconds(work.gather, cluster)
        wire += work.gather * from_host
        if waiting:
            wire = max(wire, done[-1]) + collective_seconds(waiting, cluster)
        start = max(clock, wire) if work.gather else clock
        clock = start + work.seconds
        done.append(clock)
        waiting = work.reduce
    return max(clock, max(wire, clock) + collective_seconds(waiting, cluster))


def _ahead(shape: ModelShape) -> int:
    """How many layers' weights are alive at a time."""
    return max(1, MAX_LIVE_PARAMETERS * shape.layers // shape.body_parameters)


def _offload_seconds(trained: int, cluster: Cluster) -> float:
    """Gradients to the CPU, its AdamW, and the weights back; a node's share of each."""
    share = trained * cluster.per_node / cluster.size
    moved = 6.0 * share / (cluster.per_node * cluster.gpu.host)
    return moved + CPU_ADAM_BYTES * share / CPU_MEMORY


def accumulations(global_batch: int, processes: int) -> Iterator[tuple[int, int]]:
    """(pairs a GPU takes at a time, times a step), for every way to share the global batch."""
    own = global_batch // processes
    for micro in range(1, own + 1):
        if own % micro == 0:
            yield micro, own // micro
