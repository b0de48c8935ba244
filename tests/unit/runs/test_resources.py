"""What a phase plans with is what `dpo-dist plan` says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from dpo_dist.config import Full, Lora, Sft, Train
from dpo_dist.estimates.fit import Workload, measure
from dpo_dist.estimates.hardware import find_cluster, preset_shape
from dpo_dist.estimates.scaling import Setting
from dpo_dist.estimates.throughput import Pair
from dpo_dist.runs.resources import planned_bytes, planned_host, strategy, ways_that_fit
from dpo_dist.system.machine import GIB
from dpo_dist.training.launch_shape import LaunchShape
from tests.conftest import ROOT

MISTRAL = preset_shape("Mistral-7B")
CONFIGS = ROOT / "accelerate_configs"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("single_gpu", "single_gpu"),
        ("cpu", "single_gpu"),
        *((name, name) for name in ("ddp", "zero1", "zero2", "zero3", "zero3_offload")),
        ("multi_node_zero3", "zero3"),
        ("fsdp2", "fsdp2"),
        ("cpu_zero2", "zero2"),
    ],
)
def test_every_shipped_configuration_has_its_strategy(name: str, expected: str) -> None:
    assert strategy(LaunchShape.read(CONFIGS / f"{name}.yaml")) == expected


def test_deepspeed_s_own_file_says_whether_it_offloads(tmp_path: Path) -> None:
    own = tmp_path / "ds.json"
    config = tmp_path / "accelerate.yaml"
    values = {"num_processes": 8, "deepspeed_config": {"deepspeed_config_file": str(own)}}
    config.write_text(yaml.safe_dump(values))
    zero = {"stage": 3, "offload_param": {"device": "cpu"}}
    own.write_text(json.dumps({"zero_optimization": zero}))
    assert strategy(LaunchShape.read(config)) == "zero3", "the optimizer stays on the GPU"
    zero["offload_optimizer"] = {"device": "cpu"}
    own.write_text(json.dumps({"zero_optimization": zero}))
    assert strategy(LaunchShape.read(config)) == "zero3_offload"


@pytest.mark.parametrize("name", ["ddp", "zero1", "zero2", "zero3", "zero3_offload"])
@pytest.mark.parametrize("validates", [True, False])
@pytest.mark.parametrize("method", [Lora(), Full()])
def test_the_trainer_plans_what_plan_prints(
    name: str, validates: bool, method: Lora | Full, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpo_dist.runs.resources.has_cuda", lambda: True)
    settings = Train(method=method, accelerate_config=CONFIGS / f"{name}.yaml", micro_batch_size=2)
    found = planned_bytes(MISTRAL, settings, [700, 300, 700], validates=validates)["full"]
    pair = Pair(1, 350, 350)
    assert pair.computed == pair.scored == 700
    second = MISTRAL.parameters if validates and isinstance(method, Full) else 0
    work = Workload(MISTRAL, method, pair, pair, 16, second)
    assert found == measure(work, find_cluster("8xH100-80G"), Setting(name, 2, 1, "full")).total


def test_sft_has_no_second_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpo_dist.runs.resources.has_cuda", lambda: True)
    config = {"method": {"type": "full"}, "accelerate_config": CONFIGS / "single_gpu.yaml"}
    sft, train = Sft(data={"path": "d.jsonl"}, **config), Train(**config)
    one, two = (planned_bytes(MISTRAL, s, [9], validates=True)["none"] for s in (sft, train))
    assert two - one == 2 * MISTRAL.parameters


@pytest.mark.parametrize(
    ("settings", "validates", "expected"),
    [
        ({"method": {"type": "full"}}, True, True),
        ({"method": {"type": "full"}}, False, False),
        ({"method": {"type": "full"}, "kl": {"prompts": 0}}, True, False),
        ({"method": {"type": "full"}, "reference": "live"}, False, True),
        ({"reference": "live"}, True, False),
    ],
)
def test_a_second_model_is_live_or_measures_the_kl(settings, validates, expected) -> None:
    assert Train(**settings).has_second_model(validates=validates) == expected


def test_several_processes_without_a_gpu_are_planned_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dpo_dist.runs.resources.has_cuda", lambda: False)
    two = planned_bytes(MISTRAL, Train(accelerate_config=CONFIGS / "cpu_zero2.yaml"), [9])
    asked = Train(accelerate_config=CONFIGS / "cpu_zero2.yaml", bf16=False)
    assert two == planned_bytes(MISTRAL, asked, [9])
    assert two["full"] > 4 * MISTRAL.parameters


BIG = preset_shape("Llama-3.1-70B")
BOX_FREE = {"gpu": 79 * GIB, "host": 2000 * GIB}


def full(name: str, **more: object) -> Train:
    config = {"method": {"type": "full"}, "accelerate_config": CONFIGS / f"{name}.yaml"}
    return Train(**{**config, "global_batch_size": 64, "micro_batch_size": 1, **more})


@pytest.fixture
def on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpo_dist.runs.resources.has_cuda", lambda: True)


@pytest.mark.usefixtures("on_gpus")
def test_a_model_that_does_not_fit_comes_with_what_would() -> None:
    """All weights of 70 B on one box: offload, LoRA, QLoRA, or more boxes."""
    offload, lora, qlora, nodes = ways_that_fit(BIG, full("zero3"), 2048, **BOX_FREE)
    assert offload == "train.accelerate_config: zero3_offload"
    assert lora == "train.method: {type: lora} with train.accelerate_config: zero3"
    nf4 = "train.method: {type: lora, quantization: nf4} with train.accelerate_config: zero2"
    assert qlora == nf4
    assert re.fullmatch(r"train.accelerate_config: multi_node_zero3 on \d+ nodes", nodes)
    # Without the memory for it, offload and saving 2P on rank 0 are not proposed.
    little = ways_that_fit(BIG, full("zero3"), 2048, gpu=79 * GIB, host=100 * GIB)
    assert little == [lora, qlora]
    assert ways_that_fit(BIG, full("zero3"), 2048, gpu=8 * GIB, host=2000 * GIB) == []


@pytest.mark.usefixtures("on_gpus")
def test_qlora_of_70_b_is_what_fits_one_gpu() -> None:
    lora = Train(accelerate_config=CONFIGS / "single_gpu.yaml", micro_batch_size=1)
    found = ways_that_fit(BIG, lora, 2048, gpu=79 * GIB, host=60 * GIB)
    nf4 = "train.method: {type: lora, quantization: nf4} with train.accelerate_config: single_gpu"
    assert found == [nf4, "train.accelerate_config: multi_node_zero3 on 2 nodes"]
    quantized = lora.model_copy(update={"method": Lora(quantization="nf4")})
    assert planned_bytes(BIG, quantized, [2048])["full"] < 79 * GIB


def test_the_node_s_memory_follows_from_the_configuration() -> None:
    shape = BIG.parameters
    zero2, fsdp2 = (planned_host(BIG, full(n), validates=True) for n in ("zero2", "fsdp2"))
    assert zero2.loading < 100 * GIB
    assert fsdp2.loading >= (2 + 4 + 2) * shape  # the file, the policy and the second model
    live = planned_host(BIG, full("fsdp2", reference="live"))
    assert live.loading - fsdp2.loading == 2 * shape
    two = planned_host(BIG, full("multi_node_zero3"))
    assert two.loading < 100 * GIB < two.saving  # rank 0's node gathers the model
    merged = Train(accelerate_config=CONFIGS / "zero3.yaml", merge=True)
    assert planned_host(BIG, merged).peak >= 4 * shape


@pytest.mark.usefixtures("on_gpus")
def test_merging_that_a_node_has_no_memory_for_can_be_left_out() -> None:
    merged = Train(accelerate_config=CONFIGS / "zero3.yaml", micro_batch_size=1, merge=True)
    found = ways_that_fit(BIG, merged, 2048, gpu=79 * GIB, host=100 * GIB)
    assert found == ["train.merge: false (merge on another machine)"]
