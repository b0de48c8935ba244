"""Arithmetic and rates, by hand for Llama-3-8B."""

from __future__ import annotations

import pytest

from dpo_dist.config import Full, Lora
from dpo_dist.estimates.hardware import find_cluster, preset_shape
from dpo_dist.estimates.throughput import (
    Pair,
    concurrent_answers,
    decoding_rate,
    forward,
    kv_bytes,
    prefill_seconds,
    training_flops,
)

LLAMA = preset_shape("Llama-3.1-8B")
H100 = find_cluster("H100-80G").gpu
BODY = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
PAIR = Pair(prompt=100, chosen=200, rejected=300)


def test_a_pair_is_computed_with_its_prompt_once() -> None:
    assert (PAIR.computed, PAIR.scored) == (599, 500)
    assert PAIR.attended == 100**2 / 2 + 200 * (100 + 100) + 300 * (100 + 150)


def test_a_forward_is_two_operations_a_weight_and_token() -> None:
    once = forward(LLAMA, PAIR)
    assert BODY == 6_979_321_856
    assert once.layers == 2 * BODY * 599
    assert once.attention == 4 * 32 * 128 * 32 * PAIR.attended
    assert once.head == 2 * 128256 * 4096 * 500


def test_all_weights_take_three_forwards_and_full_checkpointing_one_more() -> None:
    once = forward(LLAMA, PAIR)
    assert training_flops(LLAMA, Full(), PAIR) == 3 * once.total
    again = training_flops(LLAMA, Full(), PAIR, "full") - 3 * once.total
    assert again == once.layers + once.attention
    assert training_flops(LLAMA, Full(), PAIR, "selective") == 3 * once.total


def test_lora_leaves_out_the_gradients_by_frozen_weights() -> None:
    once = forward(LLAMA, PAIR)
    expected = 2 * once.layers + 3 * once.attention + 2 * once.head + 6 * 41_943_040 * 599
    assert training_flops(LLAMA, Lora(), PAIR) == expected


def test_the_cache_holds_what_the_weights_leave() -> None:
    assert kv_bytes(LLAMA) == 2 * 2 * 32 * 8 * 128 == 131_072
    room = 0.9 * 81_559 * 2**20 - 2 * 2**30 - 2 * 8_030_261_248
    assert concurrent_answers(LLAMA, H100, 1000) == pytest.approx(room / 131_072_000)
    two = concurrent_answers(LLAMA, H100, 1000, split=2)
    assert two == pytest.approx((room + 0.9 * 81_559 * 2**20 - 2 * 2**30) / 131_072_000)
    small = find_cluster("L4-24G").gpu
    assert concurrent_answers(preset_shape("Qwen3-8B"), small, 1e6) < 1


def test_one_sequence_is_as_fast_as_the_weights_can_be_read() -> None:
    read = 2 * 8_030_261_248 + 131_072 * 500
    assert decoding_rate(LLAMA, H100, 500, 1) == pytest.approx(0.5 * 3.35e12 / read)


def test_many_sequences_are_bound_by_arithmetic_or_by_the_engine_s_step() -> None:
    per_token = 2 * (BODY + 128256 * 4096)
    assert decoding_rate(LLAMA, H100, 1, 1e6) == pytest.approx(0.5 * 989e12 / per_token)
    small = preset_shape("SmolLM2-135M")
    assert decoding_rate(small, H100, 500, 64) == 64 / 5e-3


def test_prompts_are_read_at_half_the_peak() -> None:
    assert prefill_seconds(LLAMA, H100, 1e6) == pytest.approx(2e6 * BODY / (0.5 * 989e12))
