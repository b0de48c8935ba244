"""What a phase plans with is what `dpo-dist plan` says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from dpo_dist.config import Full, Lora, Sft, Train
from dpo_dist.estimates.fit import Workload, measure
from dpo_dist.estimates.hardware import find_cluster, preset_shape
from dpo_dist.estimates.scaling import Setting
from dpo_dist.estimates.throughput import Pair
from dpo_dist.runs.resources import planned_bytes, strategy
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
        ("fsdp2", "zero3"),
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
