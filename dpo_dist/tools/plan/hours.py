"""Tokens and hours of every phase that runs on the GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from dpo_dist.config import Config, Lora, Sft, VllmEngine
from dpo_dist.estimates.hardware import Cluster
from dpo_dist.estimates.memory import ModelShape
from dpo_dist.estimates.scaling import StepTime
from dpo_dist.estimates.throughput import (
    TRAINING_UTILIZATION,
    Pair,
    concurrent_answers,
    decoding_rate,
    forward,
    prefill_seconds,
    training_flops,
)
from dpo_dist.system.console import counted
from dpo_dist.tools.plan.data import Pairs, Texts
from dpo_dist.tools.plan.rates import Rates

START_SECONDS = 120.0  # imports, loading the weights, the engine's warming up


@dataclass(frozen=True)
class PhaseTime:
    """A phase's tokens (computed in training, written in generation) and hours. `measured` says
    that a finished run's rate stands behind them."""

    phase: str
    tokens: float
    hours: float
    measured: bool
    note: str = ""


def sft_time(
    settings: Sft, rows: Texts, shape: ModelShape, cluster: Cluster, utilization: float
) -> PhaseTime:
    """The sft phase; its steps' communication is left out."""
    row = Pair(rows.prompt, rows.completions[0], 0)
    count = rows.count.value * settings.num_epochs
    flops = count * training_flops(shape, settings.method, row)
    seconds = flops / (cluster.size * cluster.gpu.flops * utilization)
    return PhaseTime("sft", count * row.computed, _hours(seconds), measured=False)


def train_time(
    config: Config,
    pairs: Pairs,
    step: StepTime,
    shape: ModelShape,
    cluster: Cluster,
    utilization: float,
    rates: Rates,
) -> PhaseTime:
    """The train phase: steps as long as `step`, the reference's pass and the evaluations."""
    settings = config.train
    assert settings is not None
    steps = ceil(pairs.count.value / settings.global_batch_size) * settings.num_epochs
    trained = pairs.count.value * settings.num_epochs
    cached = settings.reference == "cached"
    # A live reference is a forward more in every step; evaluations take the reference's share, too.
    evaluated = pairs.validation * (settings.eval_per_epoch * settings.num_epochs + 1)
    only_read = (pairs.count.value + pairs.validation if cached else trained) + evaluated
    reading = forward(shape, pairs.mean).times(only_read).total
    seconds = steps * step.seconds
    seconds += reading / (cluster.size * cluster.gpu.flops * utilization)
    tokens = (trained + only_read) * pairs.mean.computed
    reference = "the reference once" if cached else "a live reference"
    note = (
        f"{counted(round(steps), 'step')} of {step.seconds:.2f} s, {reference}, "
        f"{counted(round(evaluated), 'pair')} evaluated"
    )
    return PhaseTime("train", tokens, _hours(seconds), rates.training is not None, note)


def generation_time(
    phase: str,
    prompts: Texts,
    answers_a_prompt: int,
    answer: float,
    engine: VllmEngine,
    shape: ModelShape,
    cluster: Cluster,
    measured: float | None,
    *,
    starts: int = 1,
) -> PhaseTime:
    """The sample or the evaluate phase: `answer` tokens each, the prompt read once a prompt."""
    count = prompts.count.value * answers_a_prompt
    split = engine.tensor_parallel_size
    workers = max(1, cluster.size // split)
    rate = measured
    if rate is None:
        rate = engine_rate(engine, shape, cluster, prompts.prompt + answer / 2)
    seconds = count * answer / (workers * rate)
    if measured is None:
        reading = prefill_seconds(shape, cluster.gpu, prompts.count.value * prompts.prompt)
        seconds += reading / (workers * split)
    note = f"{counted(workers, 'engine')} of {rate:,.0f} tokens/s"
    tokens = count * answer
    return PhaseTime(phase, tokens, _hours(seconds, starts), measured is not None, note)


def engine_rate(engine: VllmEngine, shape: ModelShape, cluster: Cluster, context: float) -> float:
    """Tokens per second of one engine, with as many answers at a time as its cache lets in."""
    split = engine.tensor_parallel_size
    room = concurrent_answers(
        shape, cluster.gpu, context, memory_share=engine.gpu_memory_utilization, split=split
    )
    at_once = max(1.0, min(engine.max_num_seqs, room))
    return decoding_rate(shape, cluster.gpu, context, at_once, split=split)


def utilization(cluster: Cluster, rates: Rates) -> float:
    """The share of the GPU's peak that training's arithmetic reaches."""
    if rates.training is None:
        return TRAINING_UTILIZATION
    return rates.training / cluster.gpu.flops


def engine_starts(config: Config) -> int:
    """How many engines the evaluation starts one after the other: one for a base with adapters."""
    assert config.evaluate is not None
    lora = config.train is None or isinstance(config.train.method, Lora)
    return 1 if lora else len(config.evaluate.arms)


def _hours(seconds: float, starts: int = 1) -> float:
    return (seconds + starts * START_SECONDS) / 3600
