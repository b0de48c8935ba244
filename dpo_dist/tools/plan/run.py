"""The forecast of a run file, put together: memory, hours, money and disk as JSON values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from dpo_dist.config import EngineConfig, VllmEngine
from dpo_dist.estimates.fit import Fit
from dpo_dist.estimates.throughput import (
    concurrent_answers,
    kv_bytes,
    weights,
)
from dpo_dist.runs.directories import phases_of
from dpo_dist.system.console import counted
from dpo_dist.tools.plan.basis import basis
from dpo_dist.tools.plan.disk import disk_bytes
from dpo_dist.tools.plan.hours import (
    PhaseTime,
    engine_starts,
    generation_time,
    sft_time,
    train_time,
)
from dpo_dist.tools.plan.judging import Bill, askings, bill, name_of
from dpo_dist.tools.plan.memory import (
    TrainingMemory,
    recommendation,
    run_file_way,
    training_memory,
)
from dpo_dist.tools.plan.subject import Subject


def forecast(subject: Subject) -> dict[str, Any]:
    """Everything, in bytes, seconds, hours, tokens and USD. `problems` are reasons not to start;
    `unknown` is what could not be told, and how to tell it."""
    cluster = subject.cluster
    memory = _memory(subject)
    problems = list(memory.problems)
    generation = _generation_memory(subject)
    if generation is not None and not generation["fits"]:
        problems.append(
            "sampling: the model weights leave no room for a KV cache on "
            f"{generation['tensor_parallel_size']} x {cluster.name}; raise the engine's "
            "tensor_parallel_size"
        )
    times = list(_times(subject, memory.started))
    return {
        "run": subject.config.run.name,
        "model": {
            "base": subject.config.model.base,
            "shape_from": subject.shape_from,
            "parameters": subject.shape.parameters,
            **asdict(subject.shape),
        },
        "cluster": {
            "label": cluster.label,
            "nodes": cluster.nodes,
            "gpus": cluster.size,
            "memory_bytes": cluster.gpu.memory,
            "usable_bytes": cluster.gpu.usable,
            "network_gbits": cluster.network * 8 / 1e9,
            "source": cluster.gpu.source,
        },
        "figures": {name: asdict(figure) for name, figure in basis(subject)},
        "memory": memory.rows,
        "run_file": _asked_for(subject, memory),
        "recommendation": _advice(subject, memory),
        "generation": generation,
        "phases": [asdict(time) for time in times],
        "gpu_hours": cluster.size * sum(time.hours for time in times),
        "judges": [_bill(found) for found in _bills(subject)],
        "disk": _disk(subject),
        "problems": problems,
        "unknown": subject.unknown,
    }


def _memory(subject: Subject) -> TrainingMemory:
    if subject.pairs is None:
        return TrainingMemory()
    return training_memory(
        subject.config, subject.shape, subject.pairs, subject.cluster, subject.utilization
    )


def _asked_for(subject: Subject, memory: TrainingMemory) -> dict[str, Any] | None:
    """The run file's own way, and its hours where it fits."""
    if subject.pairs is None:
        return None
    own = memory.chosen.fit
    hours = _train_time(subject, own).hours if own is not None and own.fits else None
    return run_file_way(subject.config, memory.chosen) | {"train_hours": hours}


def _advice(subject: Subject, memory: TrainingMemory) -> dict[str, Any] | None:
    fit = memory.best
    if fit is None or memory.work is None:
        return None
    return recommendation(memory.work, memory.ways, fit, subject.cluster) | {
        "step_seconds": fit.step.seconds,
        "train_hours": _train_time(subject, fit).hours,
    }


def _train_time(subject: Subject, fit: Fit) -> PhaseTime:
    """All rounds of training as `fit` does it."""
    assert subject.pairs is not None
    again, _ = _rounds(subject)
    time = train_time(
        *(subject.config, subject.pairs, fit.step, subject.shape, subject.cluster),
        *(subject.utilization, subject.rates),
    )
    return _times_over(time, again)


def _times(subject: Subject, fit: Fit | None) -> Iterator[PhaseTime]:
    """The phases that run on the GPUs, all rounds of them."""
    config, cluster, shape, rates = subject.config, subject.cluster, subject.shape, subject.rates
    again, rounds = _rounds(subject)
    wanted = phases_of(config)
    if config.sft and subject.demonstrations:
        yield sft_time(config.sft, subject.demonstrations, shape, cluster, subject.utilization)
    if "sample" in wanted and config.sample and subject.prompts:
        slots = len(config.sample.slots)
        engine = _vllm(config.sample.engine)
        length, rate = subject.candidate.value, rates.sampling
        time = generation_time(
            "sample", subject.prompts, slots, length, engine, shape, cluster, rate
        )
        yield _times_over(time, again)
    if config.train and subject.pairs and fit:
        yield _train_time(subject, fit)
    if config.evaluate and subject.held_out:
        answers = len(config.evaluate.arms) * len(config.evaluate.decodings)
        time = generation_time(
            *("evaluate", subject.held_out, answers, subject.answer.value),
            *(_vllm(config.evaluation_engine), shape, cluster, rates.evaluation),
            starts=engine_starts(config),
        )
        yield _times_over(time, rounds)


def _rounds(subject: Subject) -> tuple[int, int]:
    """How often every prompt is sampled, judged and trained on, and how often is evaluated."""
    rounds = subject.config.rounds
    if rounds is None:
        return 1, 1
    return (1 if rounds.prompts == "split" else rounds.count), rounds.count


def _times_over(time: PhaseTime, count: int) -> PhaseTime:
    note = time.note if count == 1 else f"{counted(count, 'round')}; {time.note}"
    return replace(time, tokens=count * time.tokens, hours=count * time.hours, note=note)


def _bills(subject: Subject) -> Iterator[Bill]:
    lengths = subject.candidate.value, subject.answer.value
    again, rounds = _rounds(subject)
    for asking in askings(subject.config, subject.prompts, subject.held_out, lengths):
        times = rounds if asking.phase == "evaluate" else again
        yield bill(replace(asking, requests=asking.requests * times), subject.rates)


def _bill(found: Bill) -> dict[str, Any]:
    judge = found.asking.judge
    return {
        "phase": found.asking.phase,
        "judge": name_of(judge),
        "type": judge.type,
        "transport": getattr(judge, "transport", None),
        "requests": round(found.asking.requests),
        "million_tokens_read": found.read,
        "million_tokens_written": found.written,
        "usd": {"online": found.online_usd, "batch": found.batch_usd},
        "max_usd": getattr(judge, "max_usd", None),
        "hours": found.hours,
        "prices_as_of": found.prices_as_of,
    }


def _generation_memory(subject: Subject) -> dict[str, Any] | None:
    """Of one engine: weights and the KV cache beside them."""
    texts = subject.prompts or subject.held_out
    if texts is None:
        return None
    config, shape, gpu = subject.config, subject.shape, subject.cluster.gpu
    engine = _vllm(config.sample.engine if config.sample else config.evaluation_engine)
    length = subject.candidate if subject.prompts else subject.answer
    split = engine.tensor_parallel_size
    context = texts.prompt + length.value
    at_once = concurrent_answers(
        shape, gpu, context, memory_share=engine.gpu_memory_utilization, split=split
    )
    return {
        "tensor_parallel_size": split,
        "weights": weights(shape) / split,
        "kv_bytes_a_token": kv_bytes(shape),
        "kv_cache": max(0.0, at_once * context * kv_bytes(shape) / split),
        "sequences_that_fit": max(0, int(at_once)),
        "max_num_seqs": engine.max_num_seqs,
        "fits": at_once >= 1,
    }


def _disk(subject: Subject) -> dict[str, float]:
    config, prompts, held_out = subject.config, subject.prompts, subject.held_out
    candidates = answers = rows = 0.0
    if config.sample and prompts:
        count = prompts.count.value * len(config.sample.slots)
        candidates = count * subject.candidate.value
    if config.evaluate and held_out:
        count = len(config.evaluate.arms) * len(config.evaluate.decodings) * held_out.count.value
        answers = count * subject.answer.value
    if subject.pairs:
        mean = subject.pairs.mean
        whole = subject.pairs.count.value + subject.pairs.validation
        rows = whole * (mean.prompt + mean.scored)
    return disk_bytes(config, subject.shape, candidates=candidates, answers=answers, rows=rows)


def _vllm(engine: EngineConfig) -> VllmEngine:
    """An engine's settings as vLLM's; other engines are reckoned as vLLM on these GPUs."""
    if isinstance(engine, VllmEngine):
        return engine
    return VllmEngine(type="vllm", max_model_len=engine.max_model_len)
