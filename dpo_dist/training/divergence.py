"""KL of the policy from the reference, on answers that are sampled from the policy.

For a prompt x and y ~ pi(.|x), drawn token by token, the chain rule gives

    KL(pi(.|x) || ref(.|x)) = E_y sum_t KL_t,
    KL_t = sum_v pi(v | x, y_<t) * (log pi(v | x, y_<t) - log ref(v | x, y_<t)),

so the sum of exact per-position divergences along a sampled answer is unbiased, with less variance
than any estimate from the sampled tokens alone (Amini et al. 2025, arXiv 2504.10637). As a check,
k3 = exp(r) - 1 - r with r = log ref(y_t) - log pi(y_t) is computed, too (Schulman 2020,
"Approximating KL divergence", joschu.net/blog/kl-approx.html): unbiased, never negative, and from
the sampled tokens only. All values are in nats. Both are valid only for answers sampled from the
policy at temperature 1 without top-k or top-p: log-ratios of the pairs' answers are not a KL.

Shapes: S sampled positions of a batch, H hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from dpo_dist.data.chat import end_token_ids, left_padded, until_end
from dpo_dist.system import ranks
from dpo_dist.training import CausalLM
from dpo_dist.training.layout import output_head
from dpo_dist.training.logprobs import TILE_ROWS, Head
from dpo_dist.training.sharded import generating, readable

# Entered for every use of the model, which may be both policy and reference (with adapters).
ModelContext = Callable[[], AbstractContextManager[CausalLM]]


class Models(NamedTuple):
    """Policy and reference for a forward pass, and the policy for a generation."""

    policy: ModelContext
    reference: ModelContext
    sampler: ModelContext


@dataclass(frozen=True)
class SampledAnswer:
    """An answer of the policy, with its end token unless it was cut off."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    cut_off: bool


@dataclass(frozen=True)
class SequenceDivergence:
    """One sampled answer: exact KL and k3, each summed over its `tokens` positions (nats)."""

    kl: float
    k3: float
    tokens: int
    cut_off: bool


def policy_and_reference(
    model: CausalLM, ref_model: CausalLM, accelerator: Accelerator, *, adapter: str | None = "ref"
) -> Models:
    """The models of a TRL `DPOTrainer` (`trainer.model_wrapped`, `trainer.ref_model`,
    `trainer.accelerator`), in its precision. As in TRL, without a `ref_model` the reference is the
    model with `adapter`, or without any adapter if it has none of that name."""
    from trl.trainer.utils import use_adapter

    def named(policy: CausalLM) -> str | None:
        return adapter if adapter in policy.peft_config else None

    @contextmanager
    def as_policy() -> Iterator[CausalLM]:
        with accelerator.autocast(), readable(model, accelerator) as policy:
            yield policy

    @contextmanager
    def as_sampler() -> Iterator[CausalLM]:
        with accelerator.autocast(), generating(model, accelerator) as policy:
            yield policy

    @contextmanager
    def as_reference() -> Iterator[CausalLM]:
        if ref_model is not None:
            with accelerator.autocast(), readable(ref_model, accelerator) as reference:
                yield reference
            return
        with as_policy() as policy, use_adapter(policy, named(policy)):
            yield policy

    return Models(as_policy, as_reference, as_sampler)


def share(prompts: Sequence[Sequence[int]], rank: int, world_size: int) -> list[tuple[int, ...]]:
    """A rank's prompts, the same number on every rank, because under ZeRO-3 all ranks need the same
    number of forwards. The first prompts may be used twice, with different seeds."""
    count = math.ceil(len(prompts) / world_size)
    return [tuple(prompts[(rank + i * world_size) % len(prompts)]) for i in range(count)]


def sample_divergence(
    models: Models,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    device: torch.device | None = None,
) -> list[SequenceDivergence]:
    """Sample one answer to each prompt, and measure the divergence along it.

    Every rank calls this with the same number of prompts (`share`) and the same other arguments,
    and has its own seed. The random state, the models' modes and their generation settings are
    restored. `device` is that of the inputs, by default that of the weights.
    """
    if device is None:
        with models.policy() as model:
            device = model.device
    measured: list[SequenceDivergence] = []
    with _seeded(seed + ranks.rank(), device):
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            answers = sample_answers(
                models.sampler, tokenizer, batch, max_new_tokens=max_new_tokens, device=device
            )
            measured += divergences(models.policy, models.reference, answers, device=device)
    return measured


@torch.no_grad()
def sample_answers(
    policy: ModelContext,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    device: torch.device,
) -> list[SampledAnswer]:
    """One batch of answers from the policy: temperature 1, no top-k, no top-p."""
    ends = end_token_ids(tokenizer)
    settings = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=sorted(ends),
    )
    ids, mask = left_padded(prompts, int(tokenizer.pad_token_id))
    with policy() as model, evaluating(model), _generating(_causal_lm(model), settings) as sampler:
        sampled = sampler.generate(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
            generation_config=settings,
        )
    completions = (until_end(row, ends) for row in sampled[:, len(ids[0]) :].tolist())
    return [
        SampledAnswer(tuple(prompt), completion, cut_off)
        for prompt, (completion, cut_off) in zip(prompts, completions, strict=True)
    ]


@torch.no_grad()
def divergences(
    policy: ModelContext,
    reference: ModelContext,
    answers: Sequence[SampledAnswer],
    *,
    device: torch.device,
) -> list[SequenceDivergence]:
    """Exact KL and k3 of one batch of answers, with one forward of each model."""
    with policy() as model, evaluating(model):
        policy_states = _states(_causal_lm(model), answers, device)
    with reference() as model, evaluating(model):
        reference_states = _states(_causal_lm(model), answers, device)
    targets = torch.tensor([t for a in answers for t in a.completion_ids], device=device)
    kl, k3 = _by_position(policy_states, reference_states, targets)
    lengths = [len(answer.completion_ids) for answer in answers]
    sums = [[float(part.double().sum()) for part in x.split(lengths)] for x in (kl, k3)]
    return [
        SequenceDivergence(kl_of, k3_of, length, answer.cut_off)
        for kl_of, k3_of, length, answer in zip(*sums, lengths, answers, strict=True)
    ]


def summarise(sequences: Sequence[SequenceDivergence]) -> dict[str, float]:
    """The metrics to log, from the sequences of all ranks.

    `kl/per_token` is a ratio of sums, R = sum_i KL_i / sum_i T_i. Its standard error is that of a
    ratio estimator over n sequences (Cochran 1977, eq. 6.13), because positions of one answer are
    not independent: sqrt(n / (n - 1) * sum_i (KL_i - R T_i)^2) / sum_i T_i. One sequence has no
    standard error, so the keys are left out. For answers that are `kl/cut_off`, `kl/per_sequence`
    covers the generated part.
    """
    count, tokens = len(sequences), sum(s.tokens for s in sequences)
    assert count and tokens
    per_token, per_sequence = (sum(s.kl for s in sequences) / n for n in (tokens, count))
    figures = {
        "kl/per_token": per_token,
        "kl/per_sequence": per_sequence,
        "kl/k3_per_token": sum(s.k3 for s in sequences) / tokens,
        "kl/sequences": float(count),
        "kl/tokens": float(tokens),
        "kl/cut_off": sum(s.cut_off for s in sequences) / count,
    }
    if count > 1:
        by_ratio = sum((s.kl - per_token * s.tokens) ** 2 for s in sequences)
        by_mean = sum((s.kl - per_sequence) ** 2 for s in sequences)
        figures["kl/per_token_se"] = math.sqrt(count / (count - 1) * by_ratio) / tokens
        figures["kl/per_sequence_se"] = math.sqrt(by_mean / (count - 1) / count)
    return figures


@dataclass(frozen=True)
class _States:
    """A model's hidden states at the sampled positions, and its head."""

    hidden: Tensor  # (S, H)
    head: Head


def _states(causal_lm: CausalLM, answers: Sequence[SampledAnswer], device: torch.device) -> _States:
    # Right padding: causal attention never sees it, and positions start at 0 in any architecture.
    rows = [torch.tensor(answer.prompt_ids + answer.completion_ids) for answer in answers]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    starts = torch.tensor([len(answer.prompt_ids) for answer in answers])[:, None]
    ends = torch.tensor([len(row) for row in rows])[:, None]
    position = torch.arange(ids.shape[1])
    mask, predicts = position < ends, (position >= starts - 1) & (position < ends - 1)
    hidden = causal_lm.base_model(
        input_ids=ids.to(device), attention_mask=mask.long().to(device), use_cache=False
    ).last_hidden_state
    return _States(hidden[predicts.to(device)], output_head(causal_lm))


def _by_position(policy: _States, reference: _States, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(exact KL, k3), each (S,), computed in tiles without the full logits."""
    from trl.trainer.utils import maybe_gather_lm_head_ctx

    dtype = torch.promote_types(policy.hidden.dtype, torch.float32)
    kl, k3 = (torch.empty(len(targets), dtype=dtype, device=targets.device) for _ in range(2))
    heads = (policy.head, reference.head)
    parameters = {id(p): p for head in heads for p in (head.weight, head.bias)}.values()
    # No autocast: the rounding of the logits to bfloat16 would exceed small divergences.
    with maybe_gather_lm_head_ctx(*parameters), torch.autocast(targets.device.type, enabled=False):
        policy_head = _cast(policy.head, dtype)
        shared = reference.head.weight is policy.head.weight
        reference_head = policy_head if shared else _cast(reference.head, dtype)
        for start in range(0, len(targets), TILE_ROWS):
            rows = slice(start, start + TILE_ROWS)
            log_p = _log_probs(policy.hidden[rows].to(dtype), policy_head)
            difference = _log_probs(reference.hidden[rows].to(dtype), reference_head).sub_(log_p)
            ratio = difference.gather(1, targets[rows, None])[:, 0]
            k3[rows] = ratio.expm1() - ratio
            kl[rows] = -difference.mul_(log_p.exp_()).sum(-1)
    return kl, k3


def _cast(head: Head, dtype: torch.dtype) -> Head:
    bias = None if head.bias is None else head.bias.to(dtype)
    return Head(head.weight.to(dtype), bias, head.softcap, head.scale)


def _log_probs(hidden: Tensor, head: Head) -> Tensor:
    """(n, V) log-probabilities at `hidden` (n, H)."""
    logits = torch.nn.functional.linear(hidden, head.weight, head.bias)
    if head.scale != 1.0:
        logits = logits * head.scale
    if head.softcap is not None:
        logits = (logits / head.softcap).tanh() * head.softcap
    return logits.log_softmax(-1)


def _causal_lm(model: CausalLM) -> CausalLM:
    """The model without peft's wrapper; the adapters in its layers stay active."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Disable dropout and gradient checkpointing; restores every module's own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _generating(causal_lm: CausalLM, settings: GenerationConfig) -> Iterator[CausalLM]:
    """Replace the model's own settings, which `generate` uses for missing values."""
    before, causal_lm.generation_config = causal_lm.generation_config, settings
    try:
        yield causal_lm
    finally:
        causal_lm.generation_config = before
