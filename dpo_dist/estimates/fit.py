"""Which ways to train fit into the GPUs' memory, and which of them is the fastest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from dpo_dist.config import Checkpointing, Method
from dpo_dist.errors import ConfigError
from dpo_dist.estimates.hardware import Cluster
from dpo_dist.estimates.memory import ModelShape
from dpo_dist.estimates.scaling import Setting, StepTime, accumulations, training_step
from dpo_dist.estimates.sharding import ZERO_STAGE, Strategy, planned_peak
from dpo_dist.estimates.throughput import TRAINING_UTILIZATION, Pair
from dpo_dist.system.console import counted

LARGEST_MICRO_BATCH = 16  # pairs: a packed row of a few thousand tokens fills a GPU as it is
MOST_NODES = 64
KINDS: tuple[Checkpointing, ...] = ("none", "selective", "full")
SAME_TIME = 1.02  # what is slower by less is as fast: then the simpler way is taken


@dataclass(frozen=True)
class Workload:
    """What is trained: the mean pair tells the time, the longest one the memory.

    `second_model` counts the weights of a reference that stays on the GPU beside the policy, of
    `second_model_size` bytes each.
    """

    shape: ModelShape
    method: Method
    pair: Pair
    longest: Pair
    global_batch: int
    second_model: int = 0
    second_model_size: Literal[2, 4] = 2


@dataclass(frozen=True)
class Fit:
    """A way to train, the bytes that it takes of a GPU, part by part, and how fast it is."""

    setting: Setting
    parts: dict[str, int]
    fits: bool
    step: StepTime

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def largest(self) -> str:
        """The part that takes most."""
        return max(self.parts, key=lambda part: self.parts[part])


def check_shares(global_batch: int, processes: int) -> None:
    """Refuse a global batch that the GPUs cannot share evenly, and say what they could."""
    if global_batch % processes == 0:
        return
    below, above = global_batch // processes * processes, -(-global_batch // processes) * processes
    batches = " or ".join(str(batch) for batch in (below, above) if batch)
    fewer = max(n for n in range(1, processes + 1) if global_batch % n == 0)
    raise ConfigError(
        f"train.global_batch_size {global_batch} cannot be shared evenly by "
        f"{counted(processes, 'GPU')}: take {batches}, or {fewer} of the GPUs"
    )


def ways_to_train(
    work: Workload, cluster: Cluster, utilization: float = TRAINING_UTILIZATION
) -> list[Fit]:
    """For every strategy the fastest setting that fits; where none does, the smallest."""
    return [
        _best(
            [
                measure(work, cluster, setting, utilization)
                for setting in _settings(work, cluster, name)
            ]
        )
        for name in strategies(cluster)
    ]


def strategies(cluster: Cluster) -> tuple[Strategy, ...]:
    """Those that make sense on so many GPUs, the simplest first."""
    if cluster.size == 1:
        return "single_gpu", "zero3_offload"
    return "ddp", "zero1", "zero2", "zero3", "zero3_offload"


def recommended(ways: Sequence[Fit]) -> Fit | None:
    """The fastest that fits, the simplest of those that are as fast; None where none fits."""
    fitting = [way for way in ways if way.fits]
    if not fitting:
        return None
    fastest = min(way.step.seconds for way in fitting)
    return next(way for way in fitting if way.step.seconds <= SAME_TIME * fastest)


def next_cheaper(ways: Sequence[Fit], chosen: Fit) -> Fit | None:
    """The way that needs the next less memory."""
    smaller = [way for way in ways if way.total < chosen.total]
    return max(smaller, key=lambda way: way.total, default=None)


def nodes_that_fit(work: Workload, cluster: Cluster) -> int | None:
    """The smallest number of such nodes on which the work fits; None: not on `MOST_NODES`."""
    for nodes in range(1, MOST_NODES + 1):
        more = replace(cluster, nodes=nodes)
        if work.global_batch % more.size == 0 and recommended(ways_to_train(work, more)):
            return nodes
    return None


def _settings(work: Workload, cluster: Cluster, strategy: Strategy) -> Iterator[Setting]:
    for micro, times in accumulations(work.global_batch, cluster.size):
        if micro > LARGEST_MICRO_BATCH:
            continue
        for kind in KINDS:
            if kind == "selective" and ZERO_STAGE[strategy] == 3:
                continue  # the trainer refuses it
            yield Setting(strategy, micro, times, kind)


def measure(
    work: Workload,
    cluster: Cluster,
    setting: Setting,
    utilization: float = TRAINING_UTILIZATION,
) -> Fit:
    """What a setting takes, for a micro-batch of the longest pairs, and how long its steps are."""
    shape, method = work.shape, work.method
    parts = planned_peak(
        *(shape, method, setting.strategy, cluster.size),
        tokens=round(setting.micro_batch * work.longest.computed),
        scored=round(setting.micro_batch * work.longest.scored),
        checkpointing=setting.checkpointing,
        reference=work.second_model,
        reference_size=work.second_model_size,
    )
    step = training_step(shape, method, work.pair, cluster, setting, utilization=utilization)
    return Fit(setting, parts, sum(parts.values()) <= cluster.gpu.usable, step)


def _best(settings: list[Fit]) -> Fit:
    """The fastest that fits, of those as fast the one that needs least; else the smallest."""
    fitting = [fit for fit in settings if fit.fits]
    if not fitting:
        return min(settings, key=lambda fit: fit.total)
    fastest = min(fit.step.seconds for fit in fitting)
    as_fast = [fit for fit in fitting if fit.step.seconds <= SAME_TIME * fastest]
    return min(as_fast, key=lambda fit: fit.total)
