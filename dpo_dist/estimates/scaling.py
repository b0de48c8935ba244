"""Simulates one optimizer step on many GPUs: its computation, its communication, and the part of
the communication that does not overlap with computation.

In a collective of M bytes, each of n GPUs receives M(n-1)/n (Patarasuk and Yuan 2009,
https://doi.org/10.1016/j.jpdc.2008.09.002), and each of b nodes M(b-1)/b. Its time is the longer
of the two times. With T trained and W working weights and k micro-batches per step, the bytes are:

    DDP      all-reduce of float32 gradients, 8T, during the last backward pass
    ZeRO-1   the same, 8T, and 2T to gather the new weights, after the last backward pass
    ZeRO-2   2T of bfloat16 gradients in each of k backward passes, and 2T for the new weights
    ZeRO-3   2W before each of k forward passes and again before each backward pass, and k times
             2T of gradients; layers are gathered early, up to `buckets.gathered` weights

An all-reduce counts twice. DDP, ZeRO-2 and ZeRO-3 compute while they communicate. ZeRO-2 reduces a
bucket while the next one is filled, so the last bucket of a backward pass is not hidden.
With QLoRA, a frozen weight takes half a byte instead of two in these, and is read and written in
bfloat16 for each pass through its layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dpo_dist.buckets import gathered
from dpo_dist.config import Checkpointing, Lora, Method, is_quantized
from dpo_dist.estimates.hardware import Cluster
from dpo_dist.estimates.memory import (
    NF4_WEIGHT,
    ModelShape,
    trained_parameters,
    trains_head,
)
from dpo_dist.estimates.sharding import (
    ZERO_STAGE,
    Strategy,
    bucket_elements,
)
from dpo_dist.estimates.throughput import (
    LAYER_LAUNCH,
    TRAINING_UTILIZATION,
    Pair,
    forward,
    training_flops,
)

LINK_EFFICIENCY = 0.8  # share of the stated bandwidths
LATENCY = 30e-6  # seconds per collective
# Bandwidth of a node's CPU memory in bytes per second, and the bytes that CPU Adam reads and writes
# per weight: master weight and moments (read and written), gradient and working weight.
CPU_MEMORY = 100e9
CPU_ADAM_BYTES = 12 * 2 + 4 + 2


@dataclass(frozen=True)
class Setting:
    """How a training is distributed: `micro_batch` pairs per GPU at a time, `accumulation` times
    per step."""

    strategy: Strategy
    micro_batch: int
    accumulation: int
    checkpointing: Checkpointing


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step and of its computation alone, and the bytes that each GPU receives."""

    seconds: float
    arithmetic: float
    received: float

    @property
    def efficiency(self) -> float:
        """The share of the time in which a GPU computes."""
        return self.arithmetic / self.seconds


@dataclass(frozen=True)
class _Work:
    """A layer's work: bytes to gather before it, seconds to compute, bytes to reduce after it."""

    gather: float
    seconds: float
    reduce: float = 0.0


def collective_seconds(size: float, cluster: Cluster) -> float:
    """Seconds of an all-gather or a reduce-scatter of `size` bytes among all GPUs."""
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
    """The time of a step on pairs of this mean size. `utilization` is the share of the GPU's peak
    that computation reaches while it is not waiting."""
    trained = trained_parameters(shape, method)
    rate = cluster.gpu.flops * utilization / setting.micro_batch
    unpack = 0.0  # seconds to dequantize a layer
    if is_quantized(method):
        unpack = (NF4_WEIGHT + 2) * shape.body_parameters / shape.layers / cluster.gpu.bandwidth
    micro = _micro_batch(shape, method, pair, setting.checkpointing, rate, unpack)
    arithmetic = setting.accumulation * sum(work.seconds for work in micro)
    share = (cluster.size - 1) / cluster.size
    backward = sum(work.seconds for work in micro[len(micro) // 2 :])
    stage, times = ZERO_STAGE[setting.strategy], setting.accumulation
    if stage == 3:
        once = sum(work.gather + work.reduce for work in micro)
        offload = setting.strategy == "zero3_offload"
        # The number of layers whose weights are gathered at a time.
        kept = gathered(shape.parameters)
        ahead = max(1, kept * shape.layers // shape.body_parameters)
        seconds = _two_streams(micro * times, cluster, ahead, offload=offload)
        if offload:
            seconds += _offload_seconds(trained, cluster)
        return StepTime(seconds, arithmetic, once * times * share)
    if stage == 2:
        volume = times * 2.0 * trained + 2 * trained
        layers = shape.layers + 1
        reducing = layers * collective_seconds(2.0 * trained / layers, cluster)
        bucket = bucket_elements(shape, method, stage) // 2
        last = reducing * min(1.0, bucket / trained)
        exposed = max(reducing - backward, last)
        waiting = times * exposed + collective_seconds(2.0 * trained, cluster)
        return StepTime(arithmetic + waiting, arithmetic, volume * share)
    reducing = 2 * collective_seconds(4.0 * trained, cluster)
    if stage == 1:
        gathering = collective_seconds(2.0 * trained, cluster)
        return StepTime(arithmetic + reducing + gathering, arithmetic, 10.0 * trained * share)
    exposed = max(0.0, reducing - backward) if setting.strategy == "ddp" else 0.0
    return StepTime(arithmetic + exposed, arithmetic, 8.0 * trained * share)


def _micro_batch(
    shape: ModelShape,
    method: Method,
    pair: Pair,
    kind: Checkpointing,
    rate: float,
    unpack: float = 0.0,
) -> list[_Work]:
    """The work of embedding, layers and head, in the forward and backward pass. `rate` is in FLOP/s
    per pair of the micro-batch."""
    once = forward(shape, pair)
    head = (3 if trains_head(method) else 2) * once.head
    layers_forward = once.layers + once.attention
    layers_backward = training_flops(shape, method, pair, kind) - head - layers_forward
    table = 2.0 * shape.vocabulary * shape.hidden
    layer = (NF4_WEIGHT if is_quantized(method) else 2.0) * shape.body_parameters / shape.layers
    layers, reduced, reduced_table = shape.layers, layer, table
    if isinstance(method, Lora):
        reduced, reduced_table = 2.0 * trained_parameters(shape, method) / layers, 0.0
    forward_seconds = max(layers_forward / layers / rate, LAYER_LAUNCH)
    backward_seconds = max(layers_backward / layers / rate, 2 * LAYER_LAUNCH)
    forward_seconds += unpack
    backward_seconds += unpack * (2 if kind == "full" else 1)
    return [
        _Work(table, 0.0),
        *[_Work(layer, forward_seconds)] * layers,
        _Work(0.0 if shape.tied else table, head / rate, 0.0 if shape.tied else reduced_table),
        *[_Work(layer, backward_seconds, reduced)] * layers,
        _Work(0.0, 0.0, reduced_table),
    ]


def _two_streams(
    works: list[_Work], cluster: Cluster, ahead: int, *, offload: bool = False
) -> float:
    """Seconds of all `works`, if one stream computes while another one communicates.

    The communication stream transfers a layer's weights, then the previous layer's gradients.
    Weights are gathered at most `ahead` layers early; with `offload`, each GPU's share first comes
    from the CPU.
    """
    from_host = 1 / (cluster.size * cluster.gpu.host) if offload else 0.0
    wire = clock = 0.0
    done: list[float] = []
    waiting = 0.0
    for number, work in enumerate(works):
        earliest = done[number - ahead] if number >= ahead else 0.0
        wire = max(wire, earliest) + collective_seconds(work.gather, cluster)
        wire += work.gather * from_host
        if waiting:
            wire = max(wire, done[-1]) + collective_seconds(waiting, cluster)
        start = max(clock, wire) if work.gather else clock
        clock = start + work.seconds
        done.append(clock)
        waiting = work.reduce
    return max(clock, max(wire, clock) + collective_seconds(waiting, cluster))


def _offload_seconds(trained: int, cluster: Cluster) -> float:
    """Seconds for a node's share: gradients to the CPU, AdamW on the CPU, weights to the GPUs."""
    share = trained * cluster.per_node / cluster.size
    moved = 6.0 * share / (cluster.per_node * cluster.gpu.host)
    return moved + CPU_ADAM_BYTES * share / CPU_MEMORY


def accumulations(global_batch: int, processes: int) -> Iterator[tuple[int, int]]:
    """Every way to share the global batch: (pairs per GPU at a time, times per step)."""
    own = global_batch // processes
    for micro in range(1, own + 1):
        if own % micro == 0:
            yield micro, own // micro
