"""Tokens and hours of the phases on the GPUs, and the memory of the engines."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from dpo_dist.config import required
from dpo_dist.estimates import throughput
from dpo_dist.estimates.throughput import Pair
from dpo_dist.system.console import counted
from dpo_dist.tools.plan.data import Answering
from dpo_dist.tools.plan.subject import Subject, passes

START_SECONDS = 120.0  # imports, loading the weights, warming up the engine


@dataclass(frozen=True)
class PhaseTime:
    """A phase's tokens (computed in a training, generated otherwise) and hours, in all rounds.
    `measured`: they follow from the rate of a finished run."""

    phase: str
    tokens: float
    hours: float
    measured: bool
    note: str = ""

    def times(self, rounds: int) -> PhaseTime:
        """The total of `rounds` equal rounds."""
        note = self.note if rounds == 1 else f"{counted(rounds, 'round')}; {self.note}"
        return PhaseTime(self.phase, rounds * self.tokens, rounds * self.hours, self.measured, note)


@dataclass(frozen=True)
class GenerationMemory:
    """Bytes per GPU of an engine, for the weights and the KV cache."""

    tensor_parallel_size: int
    weights: float
    kv_bytes_a_token: int
    kv_cache: float
    sequences_that_fit: int
    max_num_seqs: int
    fits: bool


def sft_time(subject: Subject) -> PhaseTime | None:
    """The time of the sft phase, without communication; None if the phase does not run or its data
    is unknown."""
    settings, rows = subject.config.sft, subject.demonstrations
    if settings is None or rows is None:
        return None
    row = Pair(rows.prompt, rows.completions[0], 0)
    count = rows.count.value * settings.num_epochs
    flops = count * throughput.training_flops(subject.shape, settings.method, row)
    hours = _hours(flops / _training_rate(subject))
    return PhaseTime("sft", count * row.computed, hours, measured=False)


def train_time(subject: Subject, step_seconds: float) -> PhaseTime:
    """The time of the train phase: its steps, the reference's log-probs and the validations."""
    settings, pairs = required(subject.config.train), subject.pairs
    assert pairs is not None
    count = pairs.count.value
    steps = ceil(count / settings.global_batch_size) * settings.num_epochs
    trained = count * settings.num_epochs
    cached = settings.reference == "cached"
    # A live reference adds a forward pass to each step. Validations need the reference, too.
    evaluated = pairs.validation * (settings.eval_per_epoch * settings.num_epochs + 1)
    only_read = (count + pairs.validation if cached else trained) + evaluated
    reading = throughput.forward(subject.shape, pairs.mean).times(only_read).total
    hours = _hours(steps * step_seconds + reading / _training_rate(subject))
    reference = "the reference once" if cached else "a live reference"
    note = (
        f"{counted(round(steps), 'step')} of {step_seconds:.2f} s, {reference}, "
        f"{counted(round(evaluated), 'pair')} evaluated"
    )
    tokens = (trained + only_read) * pairs.mean.computed
    measured = subject.rates.training is not None
    return PhaseTime("train", tokens, hours, measured, note).times(passes(subject.run))


def _training_rate(subject: Subject) -> float:
    """FLOP/s of all GPUs in training."""
    return subject.cluster.size * subject.cluster.gpu.flops * subject.utilization


def generation_time(work: Answering, subject: Subject) -> PhaseTime:
    """The time of the sample or evaluate phase on all GPUs; each prompt is prefilled once."""
    cluster, split = subject.cluster, work.engine.tensor_parallel_size
    workers = max(1, cluster.size // split)
    rate, reading = work.rate, 0.0
    if rate is None:
        context = work.prompts.prompt + work.length.value / 2
        at_once = max(1.0, min(work.engine.max_num_seqs, _sequences(work, subject, context)))
        rate = throughput.decoding_rate(subject.shape, cluster.gpu, context, at_once, split=split)
        tokens = work.prompts.count.value * work.prompts.prompt
        reading = throughput.prefill_seconds(subject.shape, cluster.gpu, tokens) / (workers * split)
    hours = _hours(work.tokens / (workers * rate) + reading, work.starts)
    note = f"{counted(workers, 'engine')} with {rate:,.0f} tokens/s each"
    time = PhaseTime(work.phase, work.tokens, hours, work.rate is not None, note)
    return time.times(work.rounds)


def generation_memory(work: Answering, subject: Subject) -> GenerationMemory:
    """The memory of an engine, for complete sequences of mean length."""
    split, token = work.engine.tensor_parallel_size, throughput.kv_bytes(subject.shape)
    context = work.prompts.prompt + work.length.value
    at_once = _sequences(work, subject, context)
    return GenerationMemory(
        tensor_parallel_size=split,
        weights=throughput.weights(subject.shape) / split,
        kv_bytes_a_token=token,
        kv_cache=max(0.0, at_once * context * token / split),
        sequences_that_fit=max(0, int(at_once)),
        max_num_seqs=work.engine.max_num_seqs,
        fits=at_once >= 1,
    )


def _sequences(work: Answering, subject: Subject, context: float) -> float:
    """The number of sequences of `context` tokens that an engine's KV cache can hold."""
    share, split = work.engine.gpu_memory_utilization, work.engine.tensor_parallel_size
    gpu = subject.cluster.gpu
    return throughput.concurrent_answers(
        subject.shape, gpu, context, memory_share=share, split=split
    )


def _hours(seconds: float, starts: int = 1) -> float:
    return (seconds + starts * START_SECONDS) / 3600
