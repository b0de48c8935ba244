"""The kernels of packed rows against attention's definition, row by row."""

from __future__ import annotations

import itertools
import random
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from dpo_dist.training import attention, flex, segment_attention
from dpo_dist.training.attention import Use, dense_attention, packed_attention, self_test
from dpo_dist.training.packing import Group, PackPlan
from dpo_dist.training.segment_attention import Rule, flattened
from tests.numerics.pairs import collate, random_pairs

CPU = torch.device("cpu")
HEADS, KEY_HEADS = 6, 2


def rows_of(group: Group) -> list[list[int]]:
    """The packed positions of each row of a group."""
    rows, begin = [], group.start + group.shared
    for length in group.branches:
        prefix = range(group.start, group.start + group.shared)
        rows.append([*prefix, *range(begin, begin + length)])
        begin += length
    return rows


def sees(count: int, window: int | None) -> Tensor:
    seen = torch.ones(count, count, dtype=torch.bool).tril()
    return seen if window is None else seen.triu(1 - window)


def operands(length: int, width: int, out: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(HEADS, width), (KEY_HEADS, width), (KEY_HEADS, out)]
    made = [torch.randn(1, h, length, d, generator=generator, dtype=dtype) for h, d in shapes]
    return [*made, torch.randn(HEADS, generator=generator, dtype=dtype)]


def packed(pack: PackPlan, tensors: list[Tensor], rule: Rule, sinks: bool) -> Tensor:
    """(T, H, E)"""
    query, key, value, scores = tensors
    mask = torch.full((1, 1, 1, 1), rule.window or 0)
    options = {"scaling": rule.scale, "softcap": rule.softcap, "s_aux": scores if sinks else None}
    return packed_attention(torch.nn.Module(), query, key, value, mask, pack=pack, **options)[0][0]


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("out", [16, 12, 20])
def test_outputs_and_gradients_are_those_of_the_definition(
    sinks: bool, softcap: float | None, window: int | None, out: int
) -> None:
    pack = collate(random_pairs(5))["pack"]
    rule = Rule(0.3, window, softcap)
    tensors = [x.requires_grad_() for x in operands(len(pack.source), 16, out, torch.float64)]
    found = packed(pack, tensors, rule, sinks)
    query, key, value, scores = tensors
    expected, weight = [], torch.randn(found.shape, dtype=torch.float64)
    whole = torch.zeros(())
    for group in pack.groups:
        for number, rows in enumerate(rows_of(group)):
            parts = (x[:, :, rows] for x in (query, key, value))
            mask = sees(len(rows), window)[None, None]
            alone = dense_attention(*parts, mask, rule.scale, softcap, scores if sinks else None)[0]
            own = list(range(len(rows)))[group.shared if number else 0 :]
            expected.append(alone[own])
            whole = whole + (alone[own] * weight[[rows[i] for i in own]]).sum()
    order = [
        i for g in pack.groups for n, r in enumerate(rows_of(g)) for i in r[g.shared if n else 0 :]
    ]
    torch.testing.assert_close(found[order], torch.cat(expected), rtol=0, atol=1e-12)
    inputs = tensors if sinks else tensors[:3]
    ours = torch.autograd.grad((found * weight).sum(), inputs)
    for mine, theirs in zip(ours, torch.autograd.grad(whole, inputs), strict=True):
        assert theirs.abs().max() > 1e-2
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-11)


def test_bfloat16_sinks_have_gradients_within_its_rounding() -> None:
    """The fast backward also gets a gradient by the log-sum-exp."""
    pack = collate(random_pairs(5))["pack"]
    gradients = []
    for dtype in (torch.bfloat16, torch.float64):
        tensors = operands(len(pack.source), 16, 16, torch.float64)
        tensors = [x.bfloat16().to(dtype).requires_grad_() for x in tensors]
        out = packed(pack, tensors, Rule(0.25), True)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        gradients.append(torch.autograd.grad((out * weight.bfloat16().to(dtype)).sum(), tensors))
    for ours, exact in zip(*gradients, strict=True):
        error = (ours.double() - exact).norm() / exact.norm()
        assert 1e-4 < error < 1e-2


def random_groups(seed: int) -> tuple[Group, ...]:
    """Up to four branches, some without a position of their own, some groups without a prefix."""
    draw, groups, start = random.Random(seed), [], 0
    for _ in range(draw.randint(1, 3)):
        branches = tuple(draw.choice([0, 1, 5, 30]) for _ in range(draw.randint(1, 4)))
        group = Group(start, draw.choice([0, 1, 40]), branches)
        start += group.shared + sum(branches)
        groups.append(group)
    return tuple(groups)


@pytest.mark.parametrize("window", [None, 1, 9])
@pytest.mark.parametrize("seed", range(8))
def test_the_mask_of_flex_attention_is_that_of_the_rows(seed: int, window: int | None) -> None:
    groups = random_groups(seed)
    length = sum(group.shared + sum(group.branches) for group in groups)
    expected = torch.zeros(length, length, dtype=torch.bool)
    for rows in itertools.chain.from_iterable(map(rows_of, groups)):
        index = torch.tensor(rows, dtype=torch.long)
        expected[index[:, None], index] |= sees(len(rows), window)
    position = torch.arange(length)
    zero = torch.tensor(0)
    mask = flex.mask_function(groups, window, CPU)(zero, zero, position[:, None], position)
    assert torch.equal(mask, expected)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 20])
def test_flex_attention_agrees_with_the_cpu_kernel(
    softcap: float | None, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run without its compiler, on a CPU: mask, scale, softcap and grouped heads."""
    module = sys.modules["torch.nn.attention.flex_attention"]
    monkeypatch.setattr(module, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    groups = collate(random_pairs(5))["pack"].groups
    length = sum(group.shared + sum(group.branches) for group in groups)
    query, key, value = (x[0] for x in operands(length, 16, 16, torch.float32)[:3])
    rule = Rule(0.3, window, softcap)
    exact, _ = segment_attention.segment_attention(
        query, key, value, flattened(groups), rule.scale, window, softcap
    )
    with torch.no_grad():
        found, lse = flex.attend(query, key, value, groups, rule)
    assert lse is None
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-5)


def reference_flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    score_mod: Any,
    block_mask: Any,
    scale: float,
    enable_gqa: bool,
    return_aux: Any,
) -> Any:
    """FlexAttention by its definition, with gradients."""
    assert enable_gqa == (query.shape[1] != key.shape[1])
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    position, zero = torch.arange(query.shape[2]), torch.tensor(0)
    scores = query @ key.transpose(2, 3) * scale
    if score_mod is not None:
        scores = score_mod(scores, zero, zero, position[:, None], position)
    seen = block_mask.mask_mod(zero, zero, position[:, None], position)
    scores = scores.masked_fill(~seen, -torch.inf)
    out = scores.softmax(-1) @ value
    return (out, SimpleNamespace(lse=scores.logsumexp(-1))) if return_aux else out


def reference_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    longest_query: int,
    longest_key: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """The flash kernel by its definition: (T, H, D), causal from the bottom right."""
    assert enable_gqa and window_size[1] == 0
    bounds = (itertools.pairwise(x.tolist()) for x in (query_offsets, key_offsets))
    outs = []
    for (start, stop), (begin, end) in zip(*bounds, strict=True):
        count, keys = stop - start, end - begin
        assert count <= longest_query and keys <= longest_key
        back = torch.arange(keys - count, keys)[:, None] - torch.arange(keys)
        seen = (back >= 0) & ((back <= window_size[0]) | (window_size[0] < 0))
        parts = (query[start:stop], key[begin:end], value[begin:end])
        q, k, v = (x.transpose(0, 1)[None] for x in parts)
        outs.append(dense_attention(q, k, v, seen[None, None], scale)[0])
    return torch.cat(outs)


@pytest.mark.parametrize(
    ("kernel", "window", "softcap", "sinks"),
    [
        ("flash", None, None, False),
        ("flash", 7, None, False),
        ("flex", None, None, False),
        ("flex", 7, 2.0, False),
        ("flex", 7, None, True),
        ("flex", None, 2.0, True),
    ],
)
def test_the_kernels_of_a_gpu_get_what_they_need(
    kernel: str,
    window: int | None,
    softcap: float | None,
    sinks: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each kernel replaced by its definition: outputs and gradients are those of the CPU's."""
    from torch.nn.attention import varlen

    pack = collate(random_pairs(5))["pack"]
    tensors = operands(len(pack.source), 16, 12, torch.float64)
    tensors = [x.requires_grad_() for x in tensors][: 4 if sinks else 3]
    results = []
    for name in ("segment", kernel):
        monkeypatch.setattr(attention, "kernel_for", lambda *_, name=name: name)
        monkeypatch.setattr(flex, "_kernel", lambda _: reference_flex)
        monkeypatch.setattr(varlen, "varlen_attn", reference_varlen)
        out = packed(pack, [*tensors, torch.zeros(0)][:4], Rule(0.3, window, softcap), sinks)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).double()
        results.append([out, *torch.autograd.grad((out * weight).sum(), tensors)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


USES = [
    Use(CPU, torch.float32, 6, 2, 16, 16, Rule(0.25), False),
    Use(CPU, torch.bfloat16, 6, 2, 16, 16, Rule(0.25), False),
    Use(CPU, torch.float32, 6, 6, 16, 12, Rule(0.25, 7, 5.0), True),
    Use(CPU, torch.bfloat16, 4, 4, 24, 32, Rule(1.0, 5), True),
]


@pytest.mark.parametrize("use", USES)
def test_the_start_up_check_accepts_the_kernel(use: Use) -> None:
    self_test(use)


@pytest.mark.parametrize("use", USES)
def test_the_start_up_check_refuses_a_wrong_alignment(
    use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    def top_left(queries: int, keys: int, *_: object) -> Tensor:
        hidden = ~torch.ones(queries, keys, dtype=torch.bool).tril()
        return torch.zeros(queries, keys).masked_fill_(hidden, -torch.inf).to(use.dtype)

    monkeypatch.setattr(segment_attention, "_bias", top_left)
    with pytest.raises(RuntimeError, match="differs from its definition"):
        self_test(use)


def test_the_first_row_checks_every_layer_s_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of two sizes, of which the configuration tells only one."""
    from tests.numerics.pairs import make_model, packed_logps

    checked: list[Use] = []
    monkeypatch.setattr(attention, "_used", {})
    monkeypatch.setattr(attention, "self_test", checked.append)
    model, pairs = make_model("gemma4_unified_text", torch.float32), random_pairs(3)
    packed_logps(model, pairs)
    assert [(use.heads, use.key_heads, use.width) for use in checked] == [(4, 2, 16), (4, 2, 24)]
    assert [use.rule.window for use in checked] == [8, None]
    packed_logps(model, pairs)
    assert len(checked) == 2, "only once"


@pytest.mark.parametrize("kind", ["gemma2", "granite_swa"])
def test_without_a_plan_attention_is_the_model_s_own(kind: str) -> None:
    """As in the KL's forward and in generation: SDPA would leave softcap and sinks out."""
    from tests.numerics.pairs import make_model

    attention.register()
    model = make_model(kind, torch.float32).eval()
    ids = torch.randint(3, 90, (2, 20))
    mask = torch.ones_like(ids)
    mask[0, 15:] = 0
    outputs = {}
    for name in ("eager", attention.NAME, "sdpa"):
        if name == "sdpa" and not model._supports_sdpa:
            continue
        model.set_attn_implementation(name)
        with torch.no_grad():
            outputs[name] = model(ids, attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(outputs[attention.NAME], outputs["eager"], rtol=0, atol=1e-5)
    if "sdpa" in outputs:
        assert (outputs["sdpa"] - outputs["eager"]).abs().max() > 1e-3
    model.set_attn_implementation(attention.NAME)
    sampled = model.generate(ids[1:], max_new_tokens=6, do_sample=False)
    model.set_attn_implementation("eager")
    assert torch.equal(sampled, model.generate(ids[1:], max_new_tokens=6, do_sample=False))


def test_a_window_that_only_the_mask_knows_of_is_obeyed() -> None:
    """phimoe makes a mask with a window, and does not pass the window to its attention."""
    from tests.numerics.pairs import oracle_logps, packed_logps

    sizes = {"hidden_size": 32, "intermediate_size": 32, "vocab_size": 97, "num_hidden_layers": 2}
    config = AutoConfig.for_model(
        "phimoe",
        **sizes,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=2,
        sliding_window=8,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(model)
    pairs = random_pairs(4)
    with torch.no_grad():
        found, exact = packed_logps(model, pairs), oracle_logps(model, pairs)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-4)
