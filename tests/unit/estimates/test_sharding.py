"""What a GPU holds of a sharded model: by hand for Llama-3-8B, and against DeepSpeed's own."""

from __future__ import annotations

from typing import get_args

import pytest

from dpo_dist.buckets import reduction
from dpo_dist.config import Checkpointing, Full, Lora
from dpo_dist.estimates.hardware import preset_shape
from dpo_dist.estimates.memory import trained_parameters
from dpo_dist.estimates.sharding import (
    bucket_elements,
    loading_bytes,
    model_states,
    planned_peak,
)

LLAMA = preset_shape("Llama-3.1-8B")
P = 8_030_261_248
EMBEDDING = 128_256 * 4096
BATCH = {"tokens": 4000, "scored": 3000}
T = 41_943_040  # LoRA, r = 16: 16 (8192 + 5120 + 5120 + 8192 + 3 * 18432) a layer


def test_lora_trains_half_a_percent() -> None:
    assert trained_parameters(LLAMA, Lora()) == T == 32 * 16 * (2 * 8192 + 2 * 5120 + 3 * 18432)
    assert trained_parameters(LLAMA, Full()) == P


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        # Mixed precision without DeepSpeed: 4 and autocast's 2; gradients 4; AdamW 8; buckets 4.
        ("single_gpu", (6 * P, 4 * P, 8 * P, 0)),
        ("ddp", (6 * P, 4 * P, 8 * P, 4 * P)),
        ("zero1", (2 * P, 4 * P, 12 * P // 8, 800_000_000)),
        ("zero2", (2 * P, 4 * P // 8, 12 * P // 8, 2 * 2 * EMBEDDING)),
        ("zero3", (2 * P // 8, 4 * P // 8, 12 * P // 8, 2_400_000_000)),
        ("zero3_offload", (0, 0, 0, 2_400_000_000)),
    ],
)
def test_all_weights_on_eight_gpus(strategy, expected) -> None:
    states = model_states(LLAMA, Full(), strategy, 8)
    parts = ("weights", "gradients", "optimizer", "communication")
    assert tuple(states[part] for part in parts) == expected


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("ddp", (2 * P + 4 * T, 4 * T, 8 * T)),
        ("zero2", (2 * (P + T), 4 * T // 8, 12 * T // 8)),
        ("zero3", (2 * (P + T) // 8, 4 * T // 8, 12 * T // 8)),
    ],
)
def test_lora_shards_its_adapter_and_under_stage_3_the_base(strategy, expected) -> None:
    states = model_states(LLAMA, Lora(), strategy, 8)
    assert tuple(states[part] for part in ("weights", "gradients", "optimizer")) == expected


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [("ddp", 2 * P), ("zero2", 2 * P), ("zero3", 2 * P // 8), ("zero3_offload", 0)],
)
def test_a_second_model_is_whole_on_every_gpu_below_stage_3(strategy, expected) -> None:
    assert model_states(LLAMA, Full(), strategy, 8)["reference"] == 0
    assert model_states(LLAMA, Full(), strategy, 8, reference=P)["reference"] == expected


@pytest.mark.parametrize(
    ("strategy", "size", "half", "expected"),
    [
        ("ddp", 2, 2, 2 * P),  # kept as the SFT model is, to measure the KL
        ("ddp", 4, 2, 4 * P),  # live: in float32 like the policy
        ("single_gpu", 2, 4, 4 * P),
        ("zero2", 4, 2, 2 * P),  # DeepSpeed casts both
        ("zero3", 4, 4, 4 * P // 8),
    ],
)
def test_a_live_reference_is_as_exact_as_the_policy(strategy, size, half, expected) -> None:
    sizes = {"reference": P, "reference_size": size, "half": half}
    assert model_states(LLAMA, Full(), strategy, 8, **sizes)["reference"] == expected


BODY = 32 * (4096 * (4096 + 1024 + 1024 + 4096) + 3 * 4096 * 14336)
LARGEST = 4096 * 14336
NF4 = Lora(quantization="nf4")


def test_fsdp2_shards_float32_weights_and_gathers_two_units() -> None:
    states = model_states(LLAMA, Full(), "fsdp2", 8, reference=P)
    table = 128256 * 4096  # larger than a layer
    assert states == {
        "weights": 4 * P // 8,
        "gradients": 4 * P // 8,
        "optimizer": 8 * P // 8,
        "communication": 2 * 2 * table + 6 * table,
        "reference": 2 * P // 8,
    }
    lora = model_states(LLAMA, Lora(), "fsdp2", 8)
    assert lora["weights"] == 2 * P // 8 + 4 * T // 8
    for method in (Full(), Lora()):
        ours, zero3 = (sum(model_states(LLAMA, method, s, 8).values()) for s in ("fsdp2", "zero3"))
        assert 0.6 < ours / zero3 < 1.1


@pytest.mark.parametrize(
    ("strategy", "shards"),
    [("single_gpu", 1), ("ddp", 1), ("zero2", 1), ("zero3", 8), ("fsdp2", 8)],
)
def test_four_bits_per_weight_of_the_linear_layers(strategy, shards: int) -> None:
    """4.127 bits: a half byte, 8 bits of scale for 64 weights, 32 bits for 256 scales. Embedding,
    head and norms stay in bfloat16; scales are not sharded; one matrix is dequantized."""
    scales = round(BODY * (1 + 4 / 256) / 64)
    assert 8 * (0.5 + scales / BODY) == pytest.approx(4.127, abs=1e-3)
    base = (BODY // 2 + 2 * (P - BODY)) // shards + scales + 2 * LARGEST
    adapter = (2 if strategy.startswith("zero") else 4) * T // shards
    assert model_states(LLAMA, NF4, strategy, 8)["weights"] == base + adapter


@pytest.mark.parametrize("strategy", ["zero3", "fsdp2"])
def test_a_quantized_model_is_whole_on_each_gpu_until_it_is_sharded(strategy) -> None:
    whole = model_states(LLAMA, NF4, "ddp", 8)["weights"]
    assert loading_bytes(LLAMA, NF4, strategy, 8) == whole
    assert model_states(LLAMA, NF4, strategy, 8)["weights"] < whole / 3
    plain = model_states(LLAMA, Lora(), strategy, 8)["weights"]
    assert loading_bytes(LLAMA, Lora(), strategy, 8) == plain


def test_without_bf16_nothing_is_copied() -> None:
    assert model_states(LLAMA, Full(), "single_gpu", 1, half=4)["weights"] == 4 * P
    assert model_states(LLAMA, Lora(), "single_gpu", 1, half=4)["weights"] == 4 * P + 4 * T


@pytest.mark.parametrize("method", [Lora(), Full()])
def test_checkpointing_trades_activations_and_nothing_else(method: Lora | Full) -> None:
    none, selective, full = (
        planned_peak(LLAMA, method, "zero2", 8, checkpointing=kind, **BATCH)
        for kind in get_args(Checkpointing)
    )
    assert full["activations"] < selective["activations"] / 4 < none["activations"] / 7
    for plan in (selective, full):
        assert plan | {"activations": 0} == none | {"activations": 0}


def test_a_cpu_holds_no_more_of_a_bucket_than_is_written() -> None:
    gpu, cpu = (
        planned_peak(LLAMA, Lora(), "zero2", 8, checkpointing="none", on_cpu=on_cpu, **BATCH)
        for on_cpu in (False, True)
    )
    assert (gpu["communication"], cpu["communication"]) == (2 * 2 * T, 2 * T)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("method", [Full(), Lora(), Lora(r=256)])
def test_the_planned_buckets_are_the_trainer_s(stage: int, method: Full | Lora) -> None:
    trained = trained_parameters(LLAMA, method)
    largest = EMBEDDING if isinstance(method, Full) else 2**20
    found = reduction(stage, [*[largest] * (trained // largest), trained % largest])
    buckets = 2 if stage == 2 else 1
    assert buckets * found["reduce_bucket_size"] == bucket_elements(LLAMA, method, stage)


@pytest.mark.parametrize("gpus", [(8, 1), (8, 4)])
def test_zero2_is_deepspeed_s_estimate_less_its_second_gradient(gpus: tuple[int, int]) -> None:
    """DeepSpeed counts 2P + 18P/N: bfloat16 gradients (2) beside the float32 ones (4). Here they
    only pass through the bucket, which is counted as communication: 2P + 16P/N."""
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    per_node, nodes = gpus
    _, theirs = estimate_zero2_model_states_mem_needs(P, per_node, nodes, cpu_offload=False)
    ours = model_states(LLAMA, Full(), "zero2", per_node * nodes)
    held = sum(ours[part] for part in ("weights", "gradients", "optimizer"))
    assert theirs - held == pytest.approx(2 * P / (per_node * nodes), abs=2)
    assert ours["communication"] == 2 * 2 * EMBEDDING


@pytest.mark.parametrize(("accumulate", "a_weight"), [(4, 18), (2, 16)])
def test_zero3_is_deepspeed_s_estimate(accumulate, a_weight: int) -> None:
    """DeepSpeed counts 18P/N and 4 bytes for each weight of the largest layer. Ours are 2 + 4 + 12
    with gradients added up in float32 and 16 in bfloat16, and gathered weights apart."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs

    largest = 128256 * 4096
    _, theirs, gathered = estimate_zero3_model_states_mem_needs(
        P, largest, 8, 1, cpu_offload=False, cpu_offload_params=False
    )
    ours = model_states(LLAMA, Full(), "zero3", 8, accumulate=accumulate)
    held = sum(ours[part] for part in ("weights", "gradients", "optimizer"))
    assert theirs - gathered - held == pytest.approx((18 - a_weight) * P / 8, abs=3)
