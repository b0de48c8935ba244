"""The CPU memory of a node, by hand for Llama-3-8B on nodes of eight GPUs."""

from __future__ import annotations

from typing import get_args

import pytest

from dpo_dist.config import Full, Lora
from dpo_dist.estimates.hardware import preset_shape
from dpo_dist.estimates.host import PROCESS_BYTES, READ_BYTES, host_memory, offloaded_bytes
from dpo_dist.estimates.sharding import Strategy

LLAMA = preset_shape("Llama-3.1-8B")
P = 8_030_261_248
T = 41_943_040  # LoRA, r = 16
IDLE = 8 * PROCESS_BYTES
NF4 = Lora(quantization="nf4")


def host(method, strategy: Strategy, processes: int = 8, **more):
    return host_memory(LLAMA, method, strategy, processes, min(processes, 8), **more)


@pytest.mark.parametrize(
    ("method", "strategy", "weights"),
    [
        *((Full(), s, READ_BYTES) for s in ("ddp", "zero1", "zero2", "zero3")),
        *((Lora(), s, READ_BYTES) for s in ("ddp", "zero2", "zero3")),
        *((NF4, s, READ_BYTES) for s in ("ddp", "zero3", "fsdp2")),
        (Lora(), "fsdp2", 2 * P),  # mapped, on the first process of a node
        (Full(), "fsdp2", 2 * P + 4 * P),
        (Full(), "zero3_offload", 2 * P + READ_BYTES),
    ],
)
def test_what_a_node_holds_while_it_loads(method, strategy, weights) -> None:
    assert host(method, strategy).loading == IDLE + weights


@pytest.mark.parametrize(
    ("strategy", "size", "more"),
    [("zero2", 2, 0), ("fsdp2", 2, 2 * P), ("fsdp2", 4, 4 * P), ("zero3_offload", 2, 2 * P)],
)
def test_the_second_model_is_loaded_beside_the_policy(strategy, size, more) -> None:
    beside = host(Full(), strategy, reference=P, reference_size=size)
    assert beside.loading - host(Full(), strategy).loading == more


def test_offload_moves_eighteen_bytes_a_weight_to_the_nodes() -> None:
    assert offloaded_bytes(LLAMA, Full(), processes=16, per_node=8) == 18 * P // 2
    assert offloaded_bytes(LLAMA, Full(), 8, 8, reference=P) == 20 * P
    assert offloaded_bytes(LLAMA, Lora(), 8, 8) == 2 * (P + T) + 16 * T
    assert host(Full(), "zero3_offload").training == IDLE + 18 * P


def test_training_keeps_no_weights_on_the_host_unless_they_are_offloaded() -> None:
    for strategy in get_args(Strategy):
        if strategy != "zero3_offload":
            assert host(Full(), strategy, reference=P).training == IDLE


def test_a_sharded_model_is_gathered_on_rank_0_to_be_saved() -> None:
    assert host(Full(), "zero3").saving == IDLE + 2 * P
    assert host(Full(), "fsdp2").saving == IDLE + 4 * P
    assert host(Full(), "zero2").saving == host(Lora(), "zero3").saving == IDLE
    merged = host(Lora(), "zero3", merges=True)
    assert merged.saving == IDLE + 4 * P
    assert merged.peak == max(merged.loading, merged.training, merged.saving)
    assert host(Full(), "zero3", merges=True) == host(Full(), "zero3")  # nothing to merge


def test_zero3_needs_no_more_of_a_node_for_a_larger_model() -> None:
    huge = preset_shape("Llama-3.1-70B")
    assert host_memory(huge, Lora(), "zero3", 8, 8).loading == host(Lora(), "zero3").loading
