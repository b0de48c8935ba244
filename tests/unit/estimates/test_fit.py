"""Which ways to train fit, which is recommended, and the advice where none fits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dpo_dist.config import Full, Lora
from dpo_dist.errors import ConfigError
from dpo_dist.estimates.fit import (
    Workload,
    check_shares,
    measure,
    next_cheaper,
    nodes_that_fit,
    other_ways,
    recommended,
    strategies,
    ways_to_train,
)
from dpo_dist.estimates.hardware import find_cluster, preset_shape
from dpo_dist.estimates.memory import activation_bytes
from dpo_dist.estimates.scaling import Setting
from dpo_dist.estimates.throughput import Pair

LLAMA = preset_shape("Llama-3.1-8B")
BOX = find_cluster("8xH100-80G")
NF4 = Lora(quantization="nf4")


def work(method, batch: int = 128, second_model: int = 0) -> Workload:
    longest = Pair(120, 1928, 1928)
    return Workload(LLAMA, method, Pair(120, 288, 288), longest, batch, second_model)


def test_the_longest_pair_decides_the_memory() -> None:
    fit = measure(work(Full()), BOX, Setting("zero3", 2, 8, "full"))
    tokens = 2 * (119 + 2 * 1928)
    # The layers' inputs, 2h a token, and one whole layer: 20h + 4h/4 + 8f + 4a + 8, and 6h once.
    layer = 20 * 4096 + 4096 + 8 * 14336 + 4 * 32 + 8
    assert fit.parts["activations"] == tokens * (31 * 2 * 4096 + layer + 6 * 4096)
    assert fit.parts["activations"] == activation_bytes(
        LLAMA, Full(), tokens=tokens, bf16=True, checkpointing="full"
    )
    assert fit.total == sum(fit.parts.values())
    assert fit.fits == (fit.total <= BOX.gpu.usable)


def test_all_weights_of_8_b_fit_eight_h100_from_stage_2_on() -> None:
    fits = {way.strategy: way.fits for way in ways_to_train(work(Full()), BOX)}
    assert fits == {
        "ddp": False,
        "zero1": True,
        "zero2": True,
        "zero3": True,
        "zero3_offload": True,
    }
    with_kl = ways_to_train(work(Full(), second_model=LLAMA.parameters), BOX)
    assert not next(way for way in with_kl if way.strategy == "zero1").fits


def test_the_fastest_is_recommended_and_of_the_equally_fast_the_simplest() -> None:
    assert recommended(ways_to_train(work(Lora()), BOX)).strategy == "ddp"
    ways = ways_to_train(work(Full()), BOX)
    chosen = recommended(ways)
    fitting = [way for way in ways if way.fits]
    assert chosen.step_seconds <= 1.02 * min(way.step_seconds for way in fitting)
    for way in fitting[: fitting.index(chosen)]:
        assert way.step_seconds > 1.02 * min(w.step_seconds for w in fitting)
    cheaper = next_cheaper(ways, chosen)
    assert cheaper.total < chosen.total


def test_zero3_never_checkpoints_selectively_since_the_trainer_refuses_it() -> None:
    for gpus in ("8xH100-80G", "8xA100-40G", "8xL40S-48G"):
        for way in ways_to_train(work(Lora()), find_cluster(gpus)):
            if way.strategy.startswith("zero3"):
                assert way.gradient_checkpointing != "selective"


def test_one_gpu_has_its_own_ways() -> None:
    one = find_cluster("L4-24G")
    assert strategies(one, Full()) == strategies(one, Lora()) == ("single_gpu", "zero3_offload")
    assert strategies(one, NF4) == ("single_gpu",)  # 4 bits stay on the GPU


def test_70_b_is_trained_with_lora_on_a_box_and_with_qlora_on_one_gpu() -> None:
    """With a pair of 2,048 tokens at a time, as in docs/scaling.md."""
    pair = Pair(148, 1900, 1900)
    lora, qlora = (
        Workload(preset_shape("Llama-3.1-70B"), method, pair, pair, 128) for method in (Lora(), NF4)
    )
    found = {way.strategy: way.fits for way in ways_to_train(lora, BOX)}
    assert found == {
        "ddp": False,
        "zero1": False,
        "zero2": False,
        "zero3": True,
        "zero3_offload": True,
    }
    one = find_cluster("H100-80G")
    assert not any(way.fits for way in ways_to_train(lora, one) if way.strategy == "single_gpu")
    (way,) = ways_to_train(qlora, one)
    assert way.fits and way.method == "lora nf4"
    assert all(way.fits for way in ways_to_train(qlora, BOX))


def test_a_quantized_base_is_dequantized_for_each_pass() -> None:
    pair = Pair(148, 348, 348)
    one, setting = find_cluster("H100-80G"), Setting("single_gpu", 1, 128, "none")
    times = [
        measure(Workload(LLAMA, m, pair, pair, 128), one, setting).step_seconds
        for m in (Lora(), NF4)
    ]
    passes = 128 * 2 * 2.5 * LLAMA.body_parameters / one.gpu.bandwidth
    assert times[1] - times[0] == pytest.approx(passes)


def test_loading_a_quantized_model_whole_must_fit_too() -> None:
    way = next(w for w in ways_to_train(work(NF4), BOX) if w.strategy == "zero3")
    assert way.loading > way.parts["weights"] * 2
    tight = replace(BOX, gpu=BOX.gpu.model_copy(update={"memory_mib": 8_000}))
    short = Workload(LLAMA, NF4, Pair(9, 9, 9), Pair(9, 9, 9), 128)
    found = measure(short, tight, Setting("zero3", 1, 16, "full"))
    assert found.total <= tight.gpu.usable < found.loading and not found.fits


def test_what_does_not_fit_comes_with_what_would() -> None:
    pair = Pair(148, 1900, 1900)
    shape = preset_shape("Llama-3.1-70B")
    full = Workload(shape, Full(), pair, pair, 128, shape.parameters)
    lora, qlora, nodes = other_ways(full, BOX)
    assert lora.startswith("train.method: {type: lora} (zero3, ")
    assert qlora.startswith("train.method: {type: lora, quantization: nf4} (ddp, ")
    assert nodes == "1 node with 8 GPUs each"  # with offload
    # On 40 GB the quantized model does not fit while it loads.
    assert not any("nf4" in way for way in other_ways(full, find_cluster("8xA100-40G")))
    # More sharding holds the same model without quantization there.
    (plain, *_) = other_ways(replace(full, method=NF4, second_model=0), find_cluster("8xA100-40G"))
    assert plain.startswith("train.method: {type: lora} (zero3, ")
    pair = Pair(148, 190_000, 190_000)
    assert other_ways(replace(full, longest=pair), find_cluster("L4-24G")) == []


def test_where_nothing_fits_the_nodes_that_would_do_are_counted() -> None:
    small = find_cluster("2xL4-24G")
    big = Workload(
        preset_shape("Llama-3.1-8B"), Full(), Pair(120, 288, 288), Pair(120, 60000, 60000), 128
    )
    assert recommended(ways_to_train(big, small)) is None
    assert nodes_that_fit(big, small) is None  # one pair's activations are too large by themselves
    assert nodes_that_fit(work(Full()), find_cluster("8xA100-40G")) == 1


def test_a_batch_that_cannot_be_shared_comes_with_ones_that_can() -> None:
    check_shares(128, 16)
    with pytest.raises(ConfigError, match="set it to 126 or 132, or use 4 of the GPUs"):
        check_shares(128, 6)
    with pytest.raises(ConfigError, match="set it to 16, or use 8 of the GPUs"):
        check_shares(8, 16)
