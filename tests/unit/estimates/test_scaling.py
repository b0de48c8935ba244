"""A simulated step: volumes as the ZeRO paper has them, times by hand where they can be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dpo_dist.config import Full, Lora
from dpo_dist.estimates.hardware import find_cluster, preset_shape
from dpo_dist.estimates.memory import trained_parameters
from dpo_dist.estimates.scaling import (
    LATENCY,
    Setting,
    accumulations,
    collective_seconds,
    training_step,
)
from dpo_dist.estimates.throughput import Pair, training_flops

LLAMA = preset_shape("Llama-3.1-8B")
P = 8_030_261_248
PAIR = Pair(120, 290, 290)
BOX = find_cluster("8xH100-80G")
BOXES = find_cluster("8xH100-80G", nodes=4)


def step(strategy, cluster=BOX, *, times=1, method=Full(), micro=16, checkpointing="none"):  # noqa: B008
    return training_step(
        LLAMA, method, PAIR, cluster, Setting(strategy, micro, times, checkpointing)
    )


def test_a_collective_is_bound_by_the_slower_of_links_and_network() -> None:
    inside = 1e9 * 7 / 8 / 450e9 / 0.8 + LATENCY
    assert collective_seconds(1e9, BOX) == pytest.approx(inside)
    between = 1e9 * 3 / 4 / 50e9 / 0.8 + LATENCY
    assert collective_seconds(1e9, BOXES) == pytest.approx(between)
    assert collective_seconds(1e9, find_cluster("H100-80G")) == 0


def test_volumes_are_the_papers() -> None:
    """In elements, DDP, ZeRO-1 and 2 move 2P and ZeRO-3 3P a step of one micro-batch
    (Rajbhandari et al. 2020, section 7). ZeRO-3's are bfloat16: weights forth and back, gradients
    once. Tables and norms apart, which are gathered as well."""
    share = 7 / 8
    assert step("zero2").received == pytest.approx(4 * P * share)
    assert step("zero1").received == pytest.approx((8 + 2) * P * share)
    assert step("ddp").received == pytest.approx(8 * P * share)
    # The embedding is gathered once, since nothing is computed in its backward.
    table = 2 * 128256 * 4096
    assert step("zero3").received == pytest.approx((6 * P - 2 * table) * share, rel=1e-3)


def test_accumulation_costs_zero3_its_weights_again_and_ddp_nothing() -> None:
    once, often = (step("zero3", times=n, micro=16 // n).received for n in (1, 8))
    assert often == pytest.approx(8 * once)
    assert step("ddp", times=8, micro=2).received == step("ddp").received
    zero2 = step("zero2", times=8, micro=2).received
    assert zero2 == pytest.approx((8 * 2 + 2) * P * 7 / 8)


def test_one_gpu_never_waits() -> None:
    alone = find_cluster("H200-141G")
    found = training_step(LLAMA, Lora(), PAIR, alone, Setting("single_gpu", 2, 64, "selective"))
    flops = 128 * training_flops(LLAMA, Lora(), PAIR, "selective")
    assert found.seconds == found.arithmetic == pytest.approx(flops / (0.35 * 989e12))
    assert found.received == 0


def test_arithmetic_is_shared_by_the_gpus_and_checkpointing_adds_to_it() -> None:
    flops = 128 * training_flops(LLAMA, Full(), PAIR)
    assert step("zero3").arithmetic == pytest.approx(flops / 8 / (0.35 * 989e12))
    ratio = step("zero3", checkpointing="full").arithmetic / step("zero3").arithmetic
    assert 1.3 < ratio < 4 / 3


def test_fast_links_hide_and_a_slow_network_does_not() -> None:
    assert step("zero3").efficiency > 0.95
    slow = step("zero3", BOXES, micro=4)
    assert slow.efficiency < 0.7
    fast = step("zero3", replace(BOXES, network=8 * 50e9), micro=4)
    assert fast.seconds < 0.7 * slow.seconds
    # However slow, the step is no faster than its wires: two gatherings and a reduction of P.
    assert slow.seconds > 3 * 2 * 0.9 * P * 3 / 4 / (0.8 * 50e9)


def test_below_stage_3_ddp_hides_all_gradients_and_zero2_all_but_a_bucket() -> None:
    assert step("ddp").seconds == step("ddp").arithmetic
    found, alone = step("zero2"), collective_seconds(2 * P, BOX)
    last = collective_seconds(2 * 128_256 * 4096, BOX)  # the embedding fills a bucket
    assert found.seconds - found.arithmetic == pytest.approx(alone + last, rel=0.05)
    # An adapter is one bucket, so it is reduced after the backward pass.
    lora, adapter = step("zero2", method=Lora()), 2.0 * trained_parameters(LLAMA, Lora())
    waiting = 33 * collective_seconds(adapter / 33, BOX) + collective_seconds(adapter, BOX)
    assert lora.seconds - lora.arithmetic == pytest.approx(waiting)


def test_offload_pays_for_the_way_to_the_cpu_and_its_adam() -> None:
    more = step("zero3_offload").seconds - step("zero3").seconds
    adam = 30 * P / 100e9  # bytes a weight, at a node's memory bandwidth
    assert adam < more < 1.5 * adam


def test_small_layers_take_as_long_as_launching_them() -> None:
    small, alone = preset_shape("SmolLM2-135M"), find_cluster("H100-80G")
    found = training_step(small, Lora(), PAIR, alone, Setting("single_gpu", 1, 1, "none"))
    assert found.seconds > 30 * 3 * 3e-4


def test_every_way_to_share_a_batch() -> None:
    assert list(accumulations(24, 4)) == [(1, 6), (2, 3), (3, 2), (6, 1)]
