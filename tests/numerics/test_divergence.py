"""KL on the policy's own answers, against full logits in float64."""

from __future__ import annotations

import math
import random
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from dpo_dist.training.divergence import (
    Models,
    SampledAnswer,
    SequenceDivergence,
    divergences,
    policy_and_reference,
    sample_answers,
    sample_divergence,
    share,
    summarise,
)
from tests.tiny import make_tokenizer

CPU = torch.device("cpu")
PROMPTS = [(1, 40, 41, 42), (1, 77), (1, 9, 8, 7, 6, 5, 4), (1, 100, 200), (1, 33)]


def load(folder: Path, noise: float = 0.0, dtype: torch.dtype = torch.float32):
    """The tiny model, its weights moved by `noise`."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            step = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += noise * step.to(dtype)
    return model


def context(model):
    return lambda: nullcontext(model)


def models(policy, reference) -> Models:
    return Models(context(policy), context(reference), context(policy))


def sample(policy, prompts, tokens: int, seed: int = 0) -> list[SampledAnswer]:
    torch.manual_seed(seed)
    return sample_answers(policy, make_tokenizer(), prompts, max_new_tokens=tokens, device=CPU)


@torch.no_grad()
def oracle(policy, reference, answer: SampledAnswer) -> tuple[float, float]:
    """(sum of exact KL, sum of k3) from the full logits of one unpadded row."""
    ids = torch.tensor([[*answer.prompt_ids, *answer.completion_ids]])
    p = policy(ids).logits[0].double().softmax(-1)
    q = reference(ids).logits[0].double().softmax(-1)
    kl = k3 = 0.0
    for t in range(len(answer.prompt_ids), ids.shape[1]):
        for v in range(p.shape[1]):
            kl += float(p[t - 1, v]) * math.log(float(p[t - 1, v]) / float(q[t - 1, v]))
        ratio = float(q[t - 1, ids[0, t]]) / float(p[t - 1, ids[0, t]])
        k3 += ratio - 1 - math.log(ratio)
    return kl, k3


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
def test_kl_and_k3_are_those_of_the_full_logits(
    tiny_model: Path, dtype: torch.dtype, tolerance: float
) -> None:
    policy, reference = load(tiny_model, dtype=dtype), load(tiny_model, 0.03, dtype)
    # 300 positions and more: several tiles, rows of unequal length.
    answers = sample(context(policy), PROMPTS * 3, tokens=40)
    answers[0] = SampledAnswer(answers[0].prompt_ids, answers[0].completion_ids[:1], True)
    assert sum(len(a.completion_ids) for a in answers) > 256
    found = divergences(context(policy), context(reference), answers, device=CPU)
    for answer, divergence in zip(answers, found, strict=True):
        kl, k3 = oracle(policy, reference, answer)
        assert kl > 1e-3
        assert divergence.kl == pytest.approx(kl, rel=tolerance, abs=tolerance)
        assert divergence.k3 == pytest.approx(k3, rel=tolerance, abs=tolerance)
        assert divergence.tokens == len(answer.completion_ids)
        assert divergence.cut_off == answer.cut_off


def test_softcap_scale_and_bias_of_the_head_count(tiny_model: Path) -> None:
    """An architecture's treatment of its logits, on a head that this test writes out itself."""
    from dpo_dist.training.divergence import _by_position, _States
    from dpo_dist.training.logprobs import Head

    torch.manual_seed(0)
    states, probabilities = [], []
    for _ in range(2):
        weight, bias = torch.randn(11, 4).double(), torch.randn(11).double()
        hidden = torch.randn(5, 4).double()
        logits = 3.0 * torch.tanh((hidden @ weight.T + bias) * 0.5 / 3.0)
        states.append(_States(hidden, Head(weight, bias, softcap=3.0, scale=0.5)))
        probabilities.append(logits.exp() / logits.exp().sum(-1, keepdim=True))
    p, q = probabilities
    kl, _ = _by_position(*states, torch.zeros(5, dtype=torch.long))
    torch.testing.assert_close(kl, (p * (p / q).log()).sum(-1))


def adapted(folder: Path, *adapters: str):
    """The tiny model with adapters of different weights; the first one is active."""
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(load(folder), lora, adapter_name=adapters[0])
    for name in adapters[1:]:
        model.add_adapter(name, lora)
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" in name:
            generator = torch.Generator().manual_seed(len(name))  # by layer and adapter
            torch.nn.init.normal_(parameter, std=0.15, generator=generator)
    return model


@pytest.mark.parametrize("adapters", [("default", "ref"), ("default",)])
def test_adapters_of_one_model_are_policy_and_reference(
    tiny_model: Path, adapters: tuple[str, ...]
) -> None:
    """TRL's two references of a LoRA: a frozen adapter "ref", or the model without adapters."""
    model = adapted(tiny_model, *adapters)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    policy, reference, _ = policy_and_reference(model, None, Accelerator(cpu=True))
    answers = sample(policy, PROMPTS, tokens=12)
    found = divergences(policy, reference, answers, device=CPU)
    merged = adapted(tiny_model, *adapters).merge_and_unload(adapter_names=["default"])
    other = load(tiny_model)
    if "ref" in adapters:
        other = adapted(tiny_model, *adapters).merge_and_unload(adapter_names=["ref"])
    for answer, divergence in zip(answers, found, strict=True):
        kl, k3 = oracle(merged.eval(), other.eval(), answer)
        assert kl > 1e-2
        assert (divergence.kl, divergence.k3) == pytest.approx((kl, k3), rel=1e-3)
    assert model.active_adapter == "default"
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained


def test_a_second_model_is_the_reference_where_there_is_one(tiny_model: Path) -> None:
    model, second = load(tiny_model), load(tiny_model, 0.03)
    policy, reference, _ = policy_and_reference(model, second, Accelerator(cpu=True))
    with policy() as p, reference() as q:
        assert p is model and q is second


def test_a_model_does_not_differ_from_itself(tiny_model: Path) -> None:
    model, same = load(tiny_model), load(tiny_model)
    found = sample_divergence(
        models(model, same),
        make_tokenizer(),
        PROMPTS,
        max_new_tokens=16,
        batch_size=2,
        seed=0,
    )
    assert len(found) == len(PROMPTS)
    assert all(abs(s.kl) < 1e-6 and abs(s.k3) < 1e-6 for s in found)


def test_k3_agrees_with_the_exact_kl_on_many_samples(tiny_model: Path) -> None:
    """Only if answers are drawn from the policy itself is k3 an estimate of the same quantity."""
    policy, reference = load(tiny_model), load(tiny_model, 0.02)
    # Settings of the model's own, as instruction-tuned models ship them, must not act here.
    policy.generation_config.update(do_sample=True, top_k=2, temperature=0.3, top_p=0.5)
    policy.generation_config.repetition_penalty = 1.5
    found = sample_divergence(
        models(policy, reference),
        make_tokenizer(),
        PROMPTS * 80,
        max_new_tokens=12,
        batch_size=100,
        seed=1,
    )
    figures = summarise(found)
    differences = torch.tensor([s.k3 - s.kl for s in found])
    standard_error = float(differences.std() / len(found) ** 0.5)
    assert figures["kl/per_sequence"] > 0.01 and standard_error < figures["kl/per_sequence"] / 8
    assert abs(float(differences.mean())) < 4 * standard_error
    assert policy.generation_config.top_k == 2


def test_answers_are_drawn_from_the_policy_itself(tiny_model: Path) -> None:
    """The mean log-probability of sampled tokens is minus the entropy, within its error, of a
    padded row as of a whole one, and whatever the model's own settings would do to them."""
    policy = load(tiny_model)
    long, short = PROMPTS[2], PROMPTS[1]
    with torch.no_grad():
        log_p = {
            prompt: policy(torch.tensor([prompt])).logits[0, -1].double().log_softmax(-1)
            for prompt in (long, short)
        }
    likely = log_p[short].topk(20).indices.tolist()
    policy.generation_config.update(top_k=3, temperature=0.5, suppress_tokens=likely)
    answers = sample(context(policy), [long, short] * 4000, tokens=1)
    for prompt, expected in log_p.items():
        tokens = [a.completion_ids[0] for a in answers if a.prompt_ids == prompt]
        drawn = expected[torch.tensor(tokens)]
        entropy = -float((expected.exp() * expected).sum())
        assert len(drawn) == 4000
        assert abs(float(drawn.mean()) + entropy) < 4 * float(drawn.std()) / len(drawn) ** 0.5


def test_an_answer_ends_with_its_end_token_or_is_cut_off(tiny_model: Path) -> None:
    policy = load(tiny_model)
    end = make_tokenizer().eos_token_id
    answers = sample(context(policy), PROMPTS * 40, tokens=20)
    assert {a.cut_off for a in answers} == {True, False}
    for answer in answers:
        ids = answer.completion_ids
        assert (
            (len(ids) == 20 and end not in ids)
            if answer.cut_off
            else ids.index(end) == len(ids) - 1
        )


def test_training_goes_on_as_if_nothing_had_happened(tiny_model: Path) -> None:
    model = load(tiny_model).train()
    model.gradient_checkpointing_enable()
    model.config.use_cache = False
    model.model.layers[0].eval()  # a mode of its own
    settings, modes = model.generation_config, [m.training for m in model.modules()]
    torch.manual_seed(11)
    random_state = torch.get_rng_state()

    def measure(seed: int) -> list[SequenceDivergence]:
        return sample_divergence(
            models(model, load(tiny_model, 0.02)),
            make_tokenizer(),
            PROMPTS,
            max_new_tokens=8,
            batch_size=3,
            seed=seed,
        )

    first = measure(seed=4)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [m.training for m in model.modules()] == modes
    assert model.generation_config is settings and model.is_gradient_checkpointing
    torch.rand(7)
    assert measure(seed=4) == first, "the seed alone decides"
    assert measure(seed=5) != first


def test_standard_errors_are_a_bootstrap_s() -> None:
    """Whole sequences are resampled; long ones diverge more, so that the ratio matters."""
    draw = random.Random(0)
    sequences = []
    for _ in range(120):
        tokens = draw.randint(5, 64)
        kl = tokens * (0.05 + 0.001 * tokens) * draw.uniform(0.5, 1.5)
        sequences.append(SequenceDivergence(kl, kl, tokens, cut_off=tokens == 64))
    found = summarise(sequences)

    def bootstrap(key: str) -> float:
        values = torch.tensor(
            [summarise(draw.choices(sequences, k=len(sequences)))[key] for _ in range(3000)]
        )
        return float(values.std())

    assert found["kl/per_token_se"] == pytest.approx(bootstrap("kl/per_token"), rel=0.08)
    assert found["kl/per_sequence_se"] == pytest.approx(bootstrap("kl/per_sequence"), rel=0.08)


def test_the_figures_of_three_sequences_by_hand() -> None:
    figures = summarise(
        [
            SequenceDivergence(kl=1.0, k3=2.0, tokens=10, cut_off=False),
            SequenceDivergence(kl=3.0, k3=2.5, tokens=10, cut_off=True),
            SequenceDivergence(kl=2.0, k3=1.5, tokens=20, cut_off=False),
        ]
    )
    assert figures == pytest.approx(
        {
            "kl/per_token": 0.15,
            "kl/per_token_se": math.sqrt(1.5 * (0.5**2 + 1.5**2 + 1.0**2)) / 40,
            "kl/per_sequence": 2.0,
            "kl/per_sequence_se": 1 / math.sqrt(3),
            "kl/k3_per_token": 0.15,
            "kl/sequences": 3,
            "kl/tokens": 40,
            "kl/cut_off": 1 / 3,
        }
    )
    lonely = summarise([SequenceDivergence(1.0, 1.0, 5, False)])
    assert lonely["kl/per_token"] == 0.2 and "kl/per_token_se" not in lonely


def test_every_rank_gets_as_many_prompts() -> None:
    shares = [share(PROMPTS, rank, 3) for rank in range(3)]
    assert [len(part) for part in shares] == [2, 2, 2]
    assert set().union(*shares) == set(PROMPTS)
    assert share(PROMPTS, 0, 1) == PROMPTS
    assert share(PROMPTS[:1], 2, 4) == PROMPTS[:1]
