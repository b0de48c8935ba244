"""Finds the ways to train that fit into the GPUs' memory, and the fastest of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from dpo_dist.config import Checkpointing, Full, Lora, Method, is_quantized
from dpo_dist.errors import ConfigError
from dpo_dist.estimates.hardware import Cluster
from dpo_dist.estimates.host import HostMemory, host_memory
from dpo_dist.estimates.memory import ModelShape
from dpo_dist.estimates.scaling import Setting, accumulations, training_step
from dpo_dist.estimates.sharding import (
    MemoryPart,
    Strategy,
    loading_bytes,
    planned_peak,
)
from dpo_dist.estimates.throughput import TRAINING_UTILIZATION, Pair
from dpo_dist.system.console import counted
from dpo_dist.system.machine import GIB

LARGEST_MICRO_BATCH = 16  # pairs; a packed row of a few thousand tokens already fills a GPU
MOST_NODES = 64
SAME_TIME = 1.02  # step times within this factor of the shortest one count as equal


@dataclass(frozen=True)
class Workload:
    """A training to plan. Its time follows from the mean `pair`, its memory from the `longest` one.

    `second_model` is the number of weights of a reference that stays on the GPU in addition to the
    policy; each weight takes `second_model_size` bytes. `merges`: see `host_memory`.
    """

    shape: ModelShape
    method: Method
    pair: Pair
    longest: Pair
    global_batch: int
    second_model: int = 0
    second_model_size: Literal[2, 4] = 2
    merges: bool = False


@dataclass(frozen=True)
class Fit:
    """A way to train. `parts`, their sum `total` and `loading`, the need while the weights load,
    are in bytes per GPU, `host` per node; `efficiency` is the share of `step_seconds` in which a
    GPU computes."""

    method: str
    strategy: Strategy
    micro_batch_size: int
    gradient_checkpointing: Checkpointing
    parts: dict[MemoryPart, int]
    total: int
    loading: int
    host: HostMemory
    fits: bool
    recommended: bool
    step_seconds: float
    efficiency: float

    @property
    def need(self) -> int:
        """Bytes per GPU at the highest peak."""
        return max(self.total, self.loading)

    @property
    def largest(self) -> MemoryPart:
        """The part that takes the most memory."""
        return max(self.parts, key=lambda part: self.parts[part])


def check_shares(global_batch: int, processes: int) -> None:
    """Raise `ConfigError` if the GPUs cannot share the global batch evenly. The message names batch
    sizes and a number of GPUs that are possible."""
    if global_batch % processes == 0:
        return
    below, above = global_batch // processes * processes, -(-global_batch // processes) * processes
    batches = " or ".join(str(batch) for batch in (below, above) if batch)
    fewer = max(n for n in range(1, processes + 1) if global_batch % n == 0)
    raise ConfigError(
        f"train.global_batch_size {global_batch} cannot be shared evenly by "
        f"{counted(processes, 'GPU')}: set it to {batches}, or use {fewer} of the GPUs"
    )


def ways_to_train(
    work: Workload, cluster: Cluster, utilization: float = TRAINING_UTILIZATION
) -> list[Fit]:
    """For each strategy, the fastest setting that fits, or else the one with the least memory. The
    fastest strategy that fits is `recommended`; of equally fast ones, the simplest."""
    found: list[Fit] = []
    for name in strategies(cluster, work.method):
        settings = _settings(work, cluster, name)
        fits = [measure(work, cluster, setting, utilization) for setting in settings]
        # Of equally fast settings, the one with the least memory.
        found.append(min(_fastest(fits) or fits, key=lambda fit: fit.total))
    best = next(iter(_fastest(found)), None)
    return [replace(way, recommended=way is best) for way in found]


def strategies(cluster: Cluster, method: Method) -> tuple[Strategy, ...]:
    """The strategies that are useful on this number of GPUs, simplest first. A base in 4 bits stays
    on the GPU."""
    found: tuple[Strategy, ...] = ("single_gpu",)
    if cluster.size > 1:
        found = ("ddp", "zero1", "zero2", "zero3")
    return found if is_quantized(method) else (*found, "zero3_offload")


def recommended(ways: Sequence[Fit]) -> Fit | None:
    """The recommended way; None if no way fits."""
    return next((way for way in ways if way.recommended), None)


def next_cheaper(ways: Sequence[Fit], chosen: Fit) -> Fit | None:
    """The way with the most memory of those that need less than `chosen`; None if there is none."""
    smaller = [way for way in ways if way.total < chosen.total]
    return max(smaller, key=lambda way: way.total, default=None)


def nodes_that_fit(work: Workload, cluster: Cluster) -> int | None:
    """The smallest number of nodes on which the work fits; None if `MOST_NODES` are too few."""
    for nodes in range(1, MOST_NODES + 1):
        more = replace(cluster, nodes=nodes)
        if work.global_batch % more.size == 0 and recommended(ways_to_train(work, more)):
            return nodes
    return None


def other_ways(work: Workload, cluster: Cluster) -> list[str]:
    """What would hold a training that does not fit: other methods on these GPUs, more nodes."""
    found = []
    for method in other_methods(work.method):
        other = replace(work, method=method, second_model=0)
        if (way := recommended(ways_to_train(other, cluster))) is not None:
            found.append(f"{described(method)} ({way.strategy}, {way.total / GIB:.1f} GiB per GPU)")
    nodes = nodes_that_fit(work, cluster)
    if nodes is not None:
        found.append(f"{counted(nodes, 'node')} with {counted(cluster.per_node, 'GPU')} each")
    return found


def cheaper_methods(method: Method) -> list[Lora]:
    """The methods that need less memory, in the order in which to try them."""
    lora = Lora() if isinstance(method, Full) else method
    quantized = [] if is_quantized(method) else [lora.model_copy(update={"quantization": "nf4"})]
    return [lora, *quantized] if isinstance(method, Full) else quantized


def other_methods(method: Method) -> list[Lora]:
    """The methods to try where one does not fit. A quantized model is whole while it loads, so
    without quantization more sharding may help."""
    if isinstance(method, Lora) and is_quantized(method):
        return [method.model_copy(update={"quantization": None})]
    return cheaper_methods(method)


def described(method: Method) -> str:
    """A method's setting in the run file."""
    more = ", quantization: nf4" if is_quantized(method) else ""
    return f"train.method: {{type: {method.type}{more}}}"


def kinds(strategy: Strategy) -> tuple[Checkpointing, ...]:
    """The kinds of checkpointing, fastest first. The trainer refuses `selective` under ZeRO-3."""
    return ("none", "full") if strategy.startswith("zero3") else ("none", "selective", "full")


def _settings(work: Workload, cluster: Cluster, strategy: Strategy) -> Iterator[Setting]:
    for micro, times in accumulations(work.global_batch, cluster.size):
        if micro <= LARGEST_MICRO_BATCH:
            yield from (Setting(strategy, micro, times, kind) for kind in kinds(strategy))


def measure(
    work: Workload,
    cluster: Cluster,
    setting: Setting,
    utilization: float = TRAINING_UTILIZATION,
) -> Fit:
    """The memory of a setting for a micro-batch of the longest pairs, and the time per step."""
    shape, method = work.shape, work.method
    parts = planned_peak(
        shape,
        method,
        setting.strategy,
        cluster.size,
        tokens=round(setting.micro_batch * work.longest.computed),
        scored=round(setting.micro_batch * work.longest.scored),
        checkpointing=setting.checkpointing,
        reference=work.second_model,
        reference_size=work.second_model_size,
    )
    step = training_step(shape, method, work.pair, cluster, setting, utilization=utilization)
    total = sum(parts.values())
    loading = loading_bytes(shape, method, setting.strategy, cluster.size)
    return Fit(
        method=f"{method.type} nf4" if is_quantized(method) else method.type,
        strategy=setting.strategy,
        micro_batch_size=setting.micro_batch,
        gradient_checkpointing=setting.checkpointing,
        parts=parts,
        total=total,
        loading=loading,
        host=host_memory(
            shape,
            method,
            setting.strategy,
            cluster.size,
            cluster.per_node,
            reference=work.second_model,
            reference_size=work.second_model_size,
            merges=work.merges,
        ),
        fits=max(total, loading) <= cluster.gpu.usable,
        recommended=False,
        step_seconds=step.seconds,
        efficiency=step.efficiency,
    )


def _fastest(ways: Sequence[Fit]) -> list[Fit]:
    """The ways that fit and are as fast as the fastest one that fits."""
    fitting = [way for way in ways if way.fits]
    fastest = min((way.step_seconds for way in fitting), default=0.0)
    return [way for way in fitting if way.step_seconds <= SAME_TIME * fastest]
