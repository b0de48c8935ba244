"""The plan of a run: memory, hours, cost and disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from dpo_dist.estimates.fit import Fit
from dpo_dist.estimates.memory import training_disk
from dpo_dist.estimates.scaling import LINK_EFFICIENCY
from dpo_dist.estimates.throughput import DECODING_UTILIZATION, PREFILL_UTILIZATION
from dpo_dist.tools.plan.chosen import RunFileWay
from dpo_dist.tools.plan.data import Quantity
from dpo_dist.tools.plan.hours import (
    START_SECONDS,
    GenerationMemory,
    PhaseTime,
    generation_memory,
    generation_time,
    sft_time,
    train_time,
)
from dpo_dist.tools.plan.judging import SECONDS_PER_REQUEST, Bill, askings, bill
from dpo_dist.tools.plan.memory import Recommendation, training_memory
from dpo_dist.tools.plan.subject import Subject

ANSWER_TOKEN = 11  # bytes per token in JSON: 4 for the text, 7 for the id and the other fields
ROW_TOKEN = 8  # bytes per token id in parquet, before compression


@dataclass(frozen=True)
class PlannedModel:
    """The model's sizes, as in `ModelShape`, and their source."""

    base: str
    shape_from: str
    parameters: int
    layers: int
    hidden: int
    heads: int
    key_heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    tied: bool


@dataclass(frozen=True)
class PlannedCluster:
    """The GPUs; a plan may fill `usable_bytes` per GPU."""

    label: str
    nodes: int
    gpus: int
    memory_bytes: float
    usable_bytes: float
    network_gbits: float
    source: str


@dataclass(frozen=True)
class Plan:
    """The memory, time, cost and disk space of a run, in bytes, seconds, hours, tokens and USD, and
    the `figures` from which they follow. `problems` are reasons not to start; `unknown` names what
    the plan does not include."""

    run: str
    model: PlannedModel
    cluster: PlannedCluster
    figures: Mapping[str, Quantity]
    memory: Sequence[Fit]
    run_file: RunFileWay | None
    recommendation: Recommendation | None
    generation: GenerationMemory | None
    phases: Sequence[PhaseTime]
    gpu_hours: float
    judges: Sequence[Bill]
    disk: Mapping[str, int | float]
    problems: Sequence[str]
    unknown: Sequence[str]


def make_plan(subject: Subject) -> Plan:
    """Make the plan. Raises `ConfigError` if an accelerate configuration, a rubric or a price table
    cannot be read."""
    model, cluster, shape = subject.config.model, subject.cluster, subject.shape
    training = training_memory(subject)
    answering = subject.sampling or subject.evaluation
    generation = generation_memory(answering, subject) if answering else None
    problems = list(training.problems)
    if generation is not None and not generation.fits:
        problems.append(
            "sampling: the model weights leave no room for a KV cache on "
            f"{generation.tensor_parallel_size} x {cluster.name}; raise the engine's "
            "tensor_parallel_size"
        )
    phases = list(_phases(subject, training.started))
    return Plan(
        run=subject.config.run.name,
        model=PlannedModel(model.base, subject.shape_from, shape.parameters, **asdict(shape)),
        cluster=PlannedCluster(
            label=cluster.label,
            nodes=cluster.nodes,
            gpus=cluster.size,
            memory_bytes=cluster.gpu.memory,
            usable_bytes=cluster.gpu.usable,
            network_gbits=cluster.network * 8 / 1e9,
            source=cluster.gpu.source,
        ),
        figures=dict(_figures(subject)),
        memory=training.rows,
        run_file=training.run_file,
        recommendation=training.recommendation,
        generation=generation,
        phases=phases,
        gpu_hours=cluster.size * sum(phase.hours for phase in phases),
        judges=[bill(asking, subject.rates) for asking in askings(subject)],
        disk=_disk(subject),
        problems=problems,
        unknown=subject.unknown,
    )


def _phases(subject: Subject, fit: Fit | None) -> Iterator[PhaseTime]:
    """The phases that run on the GPUs, in order."""
    if (sft := sft_time(subject)) is not None:
        yield sft
    if subject.sampling is not None:
        yield generation_time(subject.sampling, subject)
    if fit is not None:
        yield train_time(subject, fit.step_seconds)
    if subject.evaluation is not None:
        yield generation_time(subject.evaluation, subject)


def _disk(subject: Subject) -> dict[str, int | float]:
    """Maximum bytes on disk, by kind."""
    sampled, evaluated, pairs = subject.sampling, subject.evaluation, subject.pairs
    found: dict[str, int | float] = {
        "candidates": sampled.tokens * ANSWER_TOKEN if sampled else 0.0,
        "generations": evaluated.tokens * ANSWER_TOKEN if evaluated else 0.0,
    }
    train = subject.config.train
    if train is None:
        return found
    tokens = 0.0
    if pairs is not None:
        tokens = (pairs.count.value + pairs.validation) * (pairs.mean.prompt + pairs.mean.scored)
    training = training_disk(subject.shape, train, subject.config.model)
    return {**found, "tokens of the pairs": tokens * ROW_TOKEN, **training}


def _figures(subject: Subject) -> Iterator[tuple[str, Quantity]]:
    """The figures from which the plan follows, by name, in the order of the table."""
    rates, sampled, evaluated = subject.rates, subject.sampling, subject.evaluation
    texts = {
        "demonstrations": subject.demonstrations,
        "prompts": sampled.prompts if sampled else None,
        "held-out prompts": evaluated.prompts if evaluated else None,
    }
    for name, found in texts.items():
        if found is not None:
            yield name, found.count
            yield f"tokens of a row of {name}", Quantity(found.tokens, found.source, found.how)
    if (pairs := subject.pairs) is not None:
        yield "pairs to train on", pairs.count
        note = f"{pairs.how}; the longest {pairs.longest.computed:,.0f}"
        yield "tokens of a pair, its prompt once", Quantity(pairs.mean.computed, pairs.source, note)
    if sampled is not None:
        yield "tokens of a candidate", sampled.length
    if evaluated is not None:
        yield "tokens of an answer", evaluated.length
    reached = None if rates.training is None else subject.utilization
    yield "share of the GPU's peak in training", rates.measured(reached, subject.utilization)
    if rates.sampling is None:
        yield "share of the memory bandwidth in decoding", Quantity(DECODING_UTILIZATION, "assumed")
        yield "share of the peak in reading prompts", Quantity(PREFILL_UTILIZATION, "assumed")
    yield "share of the links' bandwidth", Quantity(LINK_EFFICIENCY, "assumed")
    yield "seconds to start a phase", Quantity(START_SECONDS, "assumed")
    seconds = rates.measured(rates.seconds_per_request, SECONDS_PER_REQUEST)
    yield "seconds a judge's request takes online", seconds
