"""KL of the policy from the reference, on answers that the policy itself gives.

For a prompt x and y ~ pi(.|x), drawn token by token, the chain rule gives

    KL(pi(.|x) || ref(.|x)) = E_y sum_t KL_t,
    KL_t = sum_v pi(v | x, y_<t) * (log pi(v | x, y_<t) - log ref(v | x, y_<t)),

so the sum of exact per-position divergences along a sampled answer is unbiased, with less variance
than any estimate from the sampled tokens alone (Amini et al. 2025, arXiv 2504.10637). Beside it
stands k3 = exp(r) - 1 - r with r = log ref(y_t) - log pi(y_t) (Schulman 2020, "Approximating KL
divergence", joschu.net/blog/kl-approx.html): unbiased and never negative, it needs the sampled
tokens only, and should agree with the exact value. All values are in nats.

Both hold for answers drawn from the policy at temperature 1 with nothing cut away, and for no
others: log-ratios on the pairs' chosen and rejected answers are no KL.

Shapes: S sampled positions of a batch, H hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from dpo_dist.data.chat import end_token_ids, left_padded, until_end
from dpo_dist.system import ranks
from dpo_dist.training.layout import output_head
from dpo_dist.training.logprobs import TILE_ROWS, Head

# Entered around every use of the model, so that one model can be the policy under one adapter and
# the reference under another.
ModelContext = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class SampledAnswer:
    """An answer that the policy gave; its end token is part of it, unless it was cut off."""

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
    model: Any, ref_model: Any, accelerator: Any, *, adapter: str | None = "ref"
) -> tuple[ModelContext, ModelContext]:
    """The two models of a TRL `DPOTrainer` (`trainer.model, trainer.ref_model,
    trainer.accelerator`), in the precision that it trains in.

    Without a `ref_model` the reference is the adapter "ref", or another `adapter`, where there is
    one, and the model with its adapters off where there is none, as in TRL.
    """
    from trl.trainer.utils import use_adapter

    policy = accelerator.unwrap_model(model)

    @contextmanager
    def as_policy() -> Iterator[Any]:
        with accelerator.autocast():
            yield policy

    @contextmanager
    def as_reference() -> Iterator[Any]:
        with accelerator.autocast():
            if ref_model is not None:
                yield accelerator.unwrap_model(ref_model)
            else:
                with use_adapter(policy, adapter if adapter in policy.peft_config else None):
                    yield policy

    return as_policy, as_reference


def share(prompts: Sequence[Sequence[int]], rank: int, world_size: int) -> list[tuple[int, ...]]:
    """A rank's prompts; equally many on every rank, so the first ones come twice if need be.

    Under ZeRO-3 a forward gathers weights from all ranks: as many forwards on each, or they wait
    for each other forever. A prompt that comes twice is answered twice, from another seed.
    """
    count = math.ceil(len(prompts) / world_size)
    return [tuple(prompts[(rank + i * world_size) % len(prompts)]) for i in range(count)]


def sample_divergence(
    policy: ModelContext,
    reference: ModelContext,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    device: torch.device | None = None,
) -> list[SequenceDivergence]:
    """One answer to each prompt, and how far the policy is from the reference along it.

    Every rank calls this with equally many prompts (`share`) and the same other arguments; each
    draws from a seed of its own. The random state of the training, the models' modes and their
    generation settings are afterwards what they were. `device` is where inputs go, by default
    where the weights are (not so with weights offloaded under ZeRO-3).
    """
    with policy() as model:
        device = device or model.device
    measured: list[SequenceDivergence] = []
    with _seeded(seed + ranks.rank(), device):
        for start in range(0, len(prompts), batch_size):
            answers = sample_answers(
                *(policy, tokenizer, prompts[start : start + batch_size]),
                max_new_tokens=max_new_tokens,
                device=device,
            )
            measured += divergences(policy, reference, answers, device=device)
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
    """One batch of answers from the policy itself: temperature 1, no top-k, no top-p."""
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
    with policy() as model, _evaluating(model), _generating(_causal_lm(model), settings) as sampler:
        sampled = sampler.generate(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
            generation_config=settings,
        )
    answers = []
    for prompt, tokens in zip(prompts, sampled[:, len(ids[0]) :].tolist(), strict=True):
        completion, cut_off = until_end(tokens, ends)
        answers.append(SampledAnswer(tuple(prompt), completion, cut_off))
    return answers


@torch.no_grad()
def divergences(
    policy: ModelContext,
    reference: ModelContext,
    answers: Sequence[SampledAnswer],
    *,
    device: torch.device,
) -> list[SequenceDivergence]:
    """Exact KL and k3 of one batch of answers: one forward of each model."""
    with policy() as model, _evaluating(model):
        policy_states = _states(_causal_lm(model), answers, device)
    with reference() as model, _evaluating(model):
        reference_states = _states(_causal_lm(model), answers, device)
    targets = torch.tensor([t for a in answers for t in a.completion_ids], device=device)
    kl, k3 = _by_position(policy_states, reference_states, targets)
    lengths = [len(answer.completion_ids) for answer in answers]
    return [
        SequenceDivergence(
            kl=float(kl_of.double().sum()),
            k3=float(k3_of.double().sum()),
            tokens=len(kl_of),
            cut_off=answer.cut_off,
        )
        for answer, kl_of, k3_of in zip(answers, kl.split(lengths), k3.split(lengths), strict=True)
    ]


def summarise(sequences: Sequence[SequenceDivergence]) -> dict[str, float]:
    """The figures to log, from the sequences of all ranks.

    `kl/per_token` is a ratio of sums, sum_i KL_i / sum_i T_i; with n sequences its standard error
    is that of a ratio estimator, with the sequence as the unit that was drawn (Cochran 1977,
    eq. 6.13): sqrt(n / (n - 1) * sum_i (KL_i - R T_i)^2) / sum_i T_i. Positions of one answer
    depend on each other and are not n T draws. One sequence has no standard error: its keys are
    left out. Where answers are `kl/cut_off`, `kl/per_sequence` counts what was generated.
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
    """What a model's predictions at the sampled positions are made of."""

    hidden: Tensor  # (S, H)
    head: Head


def _states(causal_lm: Any, answers: Sequence[SampledAnswer], device: torch.device) -> _States:
    # Padding goes right, where causal attention never sees it and positions count from zero
    # whatever the architecture does to them.
    width = max(len(a.prompt_ids) + len(a.completion_ids) for a in answers)
    ids = torch.zeros(len(answers), width, dtype=torch.long)
    mask = torch.zeros(len(answers), width, dtype=torch.long)
    predicts = torch.zeros(len(answers), width, dtype=torch.bool)
    for row, answer in enumerate(answers):
        start, end = len(answer.prompt_ids), len(answer.prompt_ids) + len(answer.completion_ids)
        ids[row, :end] = torch.tensor(answer.prompt_ids + answer.completion_ids)
        mask[row, :end] = 1
        predicts[row, start - 1 : end - 1] = True
    hidden = causal_lm.base_model(
        input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False
    ).last_hidden_state
    return _States(hidden[predicts.to(device)], output_head(causal_lm))


def _by_position(policy: _States, reference: _States, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(exact KL, k3), each (S,), in tiles: the full logits never exist."""
    from trl.trainer.utils import maybe_gather_lm_head_ctx

    dtype = torch.promote_types(policy.hidden.dtype, torch.float32)
    kl, k3 = (torch.empty(len(targets), dtype=dtype, device=targets.device) for _ in range(2))
    stored = (policy.head.weight, policy.head.bias, reference.head.weight, reference.head.bias)
    parameters = {id(parameter): parameter for parameter in stored}.values()
    # Autocast would round the logits to bfloat16, and the difference of two roundings is no KL.
    with (
        maybe_gather_lm_head_ctx(*parameters),
        torch.autocast(targets.device.type, enabled=False),
    ):
        policy_head = _in(dtype, policy.head)
        shared = reference.head.weight is policy.head.weight
        reference_head = policy_head if shared else _in(dtype, reference.head)
        for start in range(0, len(targets), TILE_ROWS):
            rows = slice(start, start + TILE_ROWS)
            log_p = _log_probs(policy.hidden[rows].to(dtype), policy_head)
            difference = _log_probs(reference.hidden[rows].to(dtype), reference_head).sub_(log_p)
            ratio = difference.gather(1, targets[rows, None])[:, 0]
            k3[rows] = ratio.expm1() - ratio
            kl[rows] = -difference.mul_(log_p.exp_()).sum(-1)
    return kl, k3


def _in(dtype: torch.dtype, head: Head) -> Head:
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


def _causal_lm(model: Any) -> Any:
    """The model under its adapters, which stay in effect: they live in its layers."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """No dropout and no gradient checkpointing, and every module's own mode restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _generating(causal_lm: Any, settings: GenerationConfig) -> Iterator[Any]:
    """`generate` fills what its settings leave open from the model's own, such as a repetition
    penalty: for this while the model has no others."""
    kept, causal_lm.generation_config = causal_lm.generation_config, settings
    try:
        yield causal_lm
    finally:
        causal_lm.generation_config = kept
