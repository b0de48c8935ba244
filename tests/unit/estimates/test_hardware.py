"""GPUs and shapes by name, and what a plan may fill of a GPU."""

from __future__ import annotations

import pytest

from dpo_dist.errors import ConfigError
from dpo_dist.estimates.hardware import (
    find_cluster,
    find_device,
    preset_for,
    preset_shape,
    read_gpus,
)


def test_a_cluster_is_read_from_its_name() -> None:
    cluster = find_cluster("8xH100-80G", nodes=2, network_gbits=3200)
    assert (cluster.per_node, cluster.nodes, cluster.size) == (8, 2, 16)
    assert cluster.network == 400e9
    assert cluster.gpu.flops == 989e12
    assert cluster.label == "2 nodes of 8 x H100-80G"
    assert find_cluster("l4-24g").label == "1 x L4-24G"


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("8xH100", "8 x H100-80G"),
        ("8x H100", "8 x H100-80G"),
        ("8*a100", "8 x A100-80G"),
        ("A100-40G", "1 x A100-40G"),
        ("4xH100-80GB", "4 x H100-80G"),
        ("4xNVIDIA H100 80GB", "4 x H100-80G"),
        ("2xH100-PCIe", "2 x H100-PCIe-80G"),
        ("RTX4090", "1 x RTX4090-24G"),
        ("L4", "1 x L4-24G"),
    ],
)
def test_a_gpu_without_its_memory_is_the_common_one(text: str, label: str) -> None:
    assert find_cluster(text).label == label


def test_a_plan_may_fill_the_memory_less_a_tenth_and_two_gib() -> None:
    assert read_gpus()["H100-80G"].usable == 81_559 * 2**20 * 0.9 - 2 * 2**30


def test_every_gpu_names_its_source_and_is_plausible() -> None:
    for name, gpu in read_gpus().items():
        assert gpu.source
        # What the driver reports is near the data sheet's figure in GiB, less what ECC takes.
        stated = float(name.rsplit("-", 1)[1].removesuffix("G"))
        assert 0.93 * stated < gpu.memory_mib / 1024 < 1.01 * stated
        assert 50 < gpu.bf16_tflops < 5000
        # Every accelerator computes tens to hundreds of operations for a byte that it reads.
        assert 50 < gpu.flops / gpu.bandwidth < 500


def test_a_gpu_is_found_by_the_driver_s_name() -> None:
    found = read_gpus()
    devices = [device for gpu in found.values() for device in gpu.devices]
    assert len(devices) == len(set(devices)) and all(gpu.devices for gpu in found.values())
    assert find_device("NVIDIA H100 80GB HBM3") == found["H100-80G"]
    assert find_device("NVIDIA H100") is None, "no guesses: variants differ in speed"


@pytest.mark.parametrize("gpus", ["8xH10", "H1000-80G", "8xMI300X", "8x", "x", "", "0xH100-80G"])
def test_an_unknown_gpu_comes_with_those_that_are_known(gpus: str) -> None:
    with pytest.raises(ConfigError) as error:
        find_cluster(gpus)
    if gpus.startswith("0"):
        assert "at least one GPU" in str(error.value)
    else:
        assert "Known: A100-40G, A100-80G, A100-PCIe-40G" in str(error.value)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # As the models' cards and safetensors indices count them.
        ("Llama-3.1-8B", 8_030_261_248),
        ("Llama-3.2-3B", 3_212_749_824),
        ("Mistral-7B", 7_241_732_096),
        ("Qwen2.5-7B", 7_615_616_512 - 129_024),  # without the biases of query, key and value
        ("Llama-3.1-70B", 70_553_706_496),
        ("Qwen2.5-14B", 14_770_033_664 - 48 * 7_168),
        ("Qwen2.5-32B", 32_763_876_352 - 64 * 7_168),
        ("Qwen2.5-72B", 72_706_203_648 - 80 * 10_240),
        ("Qwen3-8B", 8_190_735_360 - 9_216),  # without the norms of query and key
        ("SmolLM2-135M", 134_515_008),
    ],
)
def test_a_preset_has_the_weights_of_its_model(name: str, parameters: int) -> None:
    assert preset_shape(name).parameters == parameters


def test_a_preset_is_found_by_the_beginning_of_a_model_s_name() -> None:
    assert preset_for("meta-llama/Llama-3.1-8B-Instruct") == "Llama-3.1-8B"
    assert preset_for("meta-llama/Llama-3.3-70B-Instruct") == "Llama-3.1-70B"
    assert preset_for("Qwen/Qwen2.5-72B-Instruct") == "Qwen2.5-72B"
    assert preset_for("alignment-handbook/zephyr-7b-sft-full") == "Mistral-7B"
    assert preset_for("somebody/unheard-of") is None
    with pytest.raises(ConfigError, match=r"did you mean Mistral-7B\?"):
        preset_shape("Mistrall-7B")
