"""Step 3: how much log-probs differ between batch sizes, and what the first-loss gate makes of it.

The gate stops a training whose reference is another model. It must not stop one whose policy and
reference only round differently, because their batches have different shapes.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gpu_check.kernels import milliseconds
from benchmarks.gpu_check.report import Recorder
from benchmarks.gpu_check.scale import (
    PackedBatch,
    Pair,
    Scale,
    adapt_older_torch,
    by_answer,
    installed,
    make_model,
    pack,
    packed_hidden,
    packed_log_probs,
    random_pairs,
)
from dpo_dist.training import CausalLM
from dpo_dist.training.logprobs import Head, score_tokens

HEAD_LIMIT = 0.05  # nats per answer


def gate(record: Recorder, scale: Scale, _: Path) -> None:
    """Step 3."""
    if scale.on_gpu and (note := adapt_older_torch()):
        record.note(note)
    model = make_model(scale.model, torch.bfloat16, scale.device).requires_grad_(False)
    pairs = random_pairs(scale, scale.pairs)
    _heads(record, scale, model, pack(pairs[: min(8, scale.pairs)], scale.device))
    found = {size: _log_probs(model, pairs, size, scale) for size in scale.compared_batches}
    smallest, *others = scale.compared_batches
    for size in others:
        difference = (found[size] - found[smallest]).abs()
        rms = difference.square().mean().sqrt().item()
        record.figure(f"{size} pairs against {smallest}: nats per answer, rms", rms)
        record.figure(
            f"{size} pairs against {smallest}: nats per answer, largest", difference.max().item()
        )
    again = _log_probs(model, pairs, others[0], scale)
    record.check(
        "repeated at the same shape: largest difference, nats per answer",
        (again - found[others[0]]).abs().max().item(),
        most=1e-3,
        why="a gate at the training's own shape needs a tolerance for rounding alone",
    )
    if not installed("trl"):
        record.note("TRL is not installed: the gate is not asked")
        return
    for micro, reference in itertools.pairwise(others):
        stopped = _stopped(found[micro] - found[reference], pairs, micro)
        name = f"policy at {micro} pairs, reference at {reference}"
        record.figure(f"{name}: share of first micro-batches stopped", stopped)
    record.check(
        "the same shape: share of first micro-batches stopped",
        _stopped(again - found[others[0]], pairs, others[0]),
        most=0,
        why="the gate never stops a correct run",
    )


def _log_probs(model: CausalLM, pairs: Sequence[Pair], size: int, scale: Scale) -> Tensor:
    """(2, pairs) on the CPU, computed `size` pairs at a time."""
    with torch.no_grad():
        found = [
            packed_log_probs(model, pack(pairs[start : start + size], scale.device)).double()
            for start in range(0, len(pairs), size)
        ]
    return torch.cat(found, 1).cpu()


def _stopped(ratios: Tensor, pairs: Sequence[Pair], micro: int) -> float:
    """The share of first micro-batches that the trainer's check would stop, for log-ratios
    (2, pairs) of policy and reference in nats. The check does not depend on beta."""
    from dpo_dist.training.start_check import NOISE, AnswerDifference, disagreement

    stopped = []
    for start in range(0, len(pairs), micro):
        answers = [
            AnswerDifference(str(number), len(ids), ratios[which, number].item())
            for number in range(start, min(start + micro, len(pairs)))
            for which, ids in enumerate((pairs[number].chosen, pairs[number].rejected))
        ]
        stopped.append(disagreement(answers, NOISE["bfloat16"]) is not None)
    return sum(stopped) / len(stopped)


def _heads(record: Recorder, scale: Scale, model: CausalLM, batch: PackedBatch) -> None:
    """Our LM head and TRL's against float64, at the same final states."""
    with torch.no_grad():
        hidden = packed_hidden(model, batch)
    weight, targets = model.get_output_embeddings().weight, batch.plan.targets
    exact = by_answer(_exact(hidden, weight, targets), batch)
    for name, head in {"our head": _ours, "TRL's head": _trl}.items():
        if head is _trl and not installed("trl"):
            record.note("TRL is not installed: its head is not compared")
            continue
        states = hidden.clone().requires_grad_()

        run = functools.partial(_scored_and_differentiated, head, states, weight, targets)
        error = (by_answer(run().double(), batch) - exact).square().mean().sqrt().item()
        if head is _ours:
            record.check(
                f"{name}: error of an answer, nats rms",
                error,
                most=HEAD_LIMIT,
                why="logits are in float32: 0.05 nats moves a reward by 0.025 at beta 0.5",
            )
        else:
            record.figure(f"{name}: error of an answer, nats rms", error)
        record.figure(f"{name}: ms, forward and backward", milliseconds(run, scale))


def _scored_and_differentiated(
    head: Callable[[Tensor, Tensor, Tensor], Tensor], hidden: Tensor, *others: Tensor
) -> Tensor:
    scores = head(hidden, *others)
    scores.sum().backward()
    return scores.detach()


def _ours(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return score_tokens(hidden, Head(weight, None), targets)["log_probs"]


def _trl(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from trl.kernels import ChunkedLogProbFunction

    columns, outputs = 32_768, ("log_probs",)
    found = ChunkedLogProbFunction.apply(
        hidden, weight, None, targets, 1.0, columns, None, 1.0, outputs
    )
    log_probs: Tensor = found[0]
    return log_probs


def _exact(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """(S,) in float64, a few hundred rows at a time."""
    rows = max(1, math.floor(2**27 / len(weight)))
    weight = weight.double()
    parts: list[Tensor] = [
        (states.double() @ weight.T).log_softmax(-1).gather(1, ids[:, None])[:, 0]
        for states, ids in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    return torch.cat(parts)
