"""The packed path against the definition, and the mistakes that the comparison has to catch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dpo_dist.training.packing import plan_packing
from dpo_dist.training.preference_trainer import PairCollator
from tests.numerics.pairs import (
    ARCHITECTURES,
    Pair,
    collate,
    dpo_loss,
    make_model,
    oracle_logps,
    packed_logps,
    random_pairs,
)

# float64 rounding, except where the oracle itself takes a softmax in float32.
LOGP, GRADIENT = 1e-10, 1e-12
EAGER = ("gemma2", "granite_swa")
SOFTCAP_LOGP, SOFTCAP_GRADIENT = 5e-5, 2e-6


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_log_probs_loss_and_every_gradient_are_those_of_the_definition(kind: str) -> None:
    model, pairs = make_model(kind), random_pairs(6)
    results = []
    for logps_of in (oracle_logps, packed_logps):
        model.zero_grad()
        logps = logps_of(model, pairs)
        loss = dpo_loss(logps)
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        results.append((logps.detach(), loss.item(), gradients))
    (logps, loss, gradients), (packed, packed_loss, packed_gradients) = results
    assert logps.abs().min() > 1, "log-probs far from 0"
    soft = kind in EAGER
    torch.testing.assert_close(packed, logps, rtol=0, atol=SOFTCAP_LOGP if soft else LOGP)
    assert packed_loss == pytest.approx(loss, abs=1e-5 if soft else 1e-10)
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    assert largest > 1e-2
    for name, gradient in gradients.items():
        tolerance = SOFTCAP_GRADIENT if soft else GRADIENT
        torch.testing.assert_close(
            packed_gradients[name], gradient, rtol=0, atol=tolerance, msg=name
        )


def test_any_number_of_completions_shares_a_prompt() -> None:
    """Four completions of one prompt in one group, one of them the beginning of another."""
    model = make_model("llama")
    prompt = [7, 8, 9, 10]
    completions = [[11, 12, 13], [11, 12, 14, 15, 16], [11], [20, 21]]
    rows = [prompt + completion for completion in completions]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    seen = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    completion_mask = seen.clone()
    completion_mask[:, : len(prompt)] = 0
    pack = plan_packing(ids, seen, completion_mask, [(0, 1, 2, 3)])
    assert len(pack.source) < sum(map(len, rows)) - 2 * len(prompt)
    batch = {
        "input_ids": ids,
        "attention_mask": seen,
        "completion_mask": completion_mask,
        "pack": pack,
        "rows": [],
    }
    packed = packed_logps(model, [], batch)
    pairs = [Pair(prompt, completions[0], completions[1]), Pair(prompt, *completions[2:])]
    alone = oracle_logps(model, pairs)[[0, 2, 1, 3]]
    torch.testing.assert_close(packed, alone, rtol=0, atol=LOGP)


def test_bfloat16_gradients_stay_within_its_rounding() -> None:
    """The backward in bfloat16 takes short cuts: its error against float64 is a few roundings."""
    from dpo_dist.training.segment_attention import flattened, segment_attention

    plan = collate(random_pairs(6))["pack"]
    length = len(plan.source)
    generator = torch.Generator().manual_seed(0)
    shapes = [(9, length, 64), (3, length, 64), (3, length, 64), (9, length, 64)]
    inputs = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    for window in (None, 20):
        gradients = []
        for dtype in (torch.bfloat16, torch.float64):
            *operands, grad = (x.to(dtype).requires_grad_() for x in inputs)
            out = segment_attention(*operands, flattened(plan.groups), 0.125, window, None)[0]
            gradients.append(torch.autograd.grad(out, operands, grad))
        for ours, exact in zip(*gradients, strict=True):
            error = (ours.double() - exact).norm() / exact.norm()
            assert 1e-4 < error < 1e-2


def test_float32_weights_run_under_autocast() -> None:
    """Full fine-tuning: the log-probs are bfloat16's, and every weight gets a gradient."""
    model, pairs = make_model("llama", torch.float32), random_pairs(6)
    exact = packed_logps(model, pairs).detach()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = packed_logps(model, pairs)
    difference = ((rounded.detach() - exact) / exact).abs()
    assert 1e-6 < difference.max() < 0.02
    dpo_loss(rounded).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize("window", [None, 1, 100])
def test_one_band_masks_blocks_of_every_size(window: int | None) -> None:
    from dpo_dist.training import segment_attention

    segment_attention._band.cache_clear()
    for queries, keys in (
        (1, 1),
        (1, 900),
        (77, 77),
        (128, 128),
        (128, 129),
        (50, 400),
        (128, 896),
    ):
        query = torch.arange(keys - queries, keys)[:, None]
        key = torch.arange(keys)
        seen = (key <= query) & (key > query - (window or keys + 1))
        bias = segment_attention._bias(queries, keys, window, torch.float32, torch.device("cpu"))
        assert torch.equal(bias, torch.where(seen, 0.0, -torch.inf))
    assert segment_attention._band.cache_info().currsize <= 4, "of 256, 512, 1024 and 2048 keys"


def agrees(mutate) -> bool:
    """Whether a batch, mutated, still gives the log-probs of the definition."""
    model, pairs = make_model("llama"), random_pairs(4)
    pairs = [replace(pair, prompt=[1, *pair.prompt], chosen=[*pair.chosen, 2]) for pair in pairs]
    mutated = mutate(pairs)
    batch = mutated if isinstance(mutated, dict) else collate(mutated)
    with torch.no_grad():
        difference = packed_logps(model, pairs, batch) - oracle_logps(model, pairs)
    return bool(difference.abs().max() < LOGP)


def _prompt_in_the_loss(pairs: list[Pair]) -> list[Pair]:
    return [Pair(p.prompt[:1], p.prompt[1:] + p.chosen, p.prompt[1:] + p.rejected) for p in pairs]


def _end_token_masked(pairs: list[Pair]) -> dict:
    batch = collate(pairs)
    mask = batch["completion_mask"] * (batch["input_ids"] != 2)
    rows = [(n, n + len(pairs)) for n in range(len(pairs))]
    pack = plan_packing(batch["input_ids"], batch["attention_mask"], mask, rows)
    return {**batch, "completion_mask": mask, "pack": pack}


def _swapped(pairs: list[Pair]) -> list[Pair]:
    return [Pair(p.prompt, p.rejected, p.chosen) for p in pairs]


def _double_bos(pairs: list[Pair]) -> list[Pair]:
    return [replace(p, prompt=[1, *p.prompt]) for p in pairs]


def _another_prompt(pairs: list[Pair]) -> list[Pair]:
    return [replace(p, prompt=[*p.prompt[:-1], 3 + p.prompt[-1] % 90]) for p in pairs]


def test_padding_with_the_end_token_changes_nothing() -> None:
    model, pairs = make_model("llama"), [replace(p, chosen=[*p.chosen, 2]) for p in random_pairs(4)]
    collator = PairCollator(pad_token_id=2, packed=True)
    batch = collator([pair.example(n) for n, pair in enumerate(pairs)])
    assert (batch["input_ids"] == 2).sum() > len(pairs)
    with torch.no_grad():
        logps = packed_logps(model, pairs, batch)
    torch.testing.assert_close(logps, packed_logps(model, pairs).detach(), rtol=0, atol=0)


MUTATIONS = (_prompt_in_the_loss, _end_token_masked, _swapped, _double_bos, _another_prompt)


def test_the_comparison_passes_unmutated() -> None:
    assert agrees(lambda pairs: pairs)


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda m: m.__name__.strip("_"))
def test_a_mistake_in_the_batch_is_seen(mutate) -> None:
    assert not agrees(mutate)
