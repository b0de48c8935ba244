"""How batches reach a GPU, and which weights a backward pass reaches."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data._utils.pin_memory import pin_memory
from transformers import AutoConfig, AutoModelForCausalLM

from dpo_dist.config import Train
from dpo_dist.training import trainer
from dpo_dist.training.launch_shape import LaunchShape
from dpo_dist.training.models import may_skip_weights
from dpo_dist.training.packing import PackPlan
from dpo_dist.training.preference_trainer import PairCollator
from tests.training_jobs import training_job

ROWS = [
    {"id": name, "prompt_ids": [1, 2, 3], "chosen_ids": [4, 5], "rejected_ids": [6]}
    for name in ("a", "b")
]


def tensors(batch: dict[str, Any]) -> list[Tensor]:
    plan: PackPlan = batch["pack"]
    own = [value for value in vars(plan).values() if isinstance(value, Tensor)]
    assert len(own) == 8
    return [*own, *(value for value in batch.values() if isinstance(value, Tensor))]


def test_a_batch_is_pinned_and_copied_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch's loader pins and accelerate copies: the plan's tensors, too."""
    pinned: list[Tensor] = []
    waits: list[object] = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tensor.clone())
        return pinned[-1]

    real = Tensor.to

    def to(tensor: Tensor, *given: Any, non_blocking: bool = False) -> Tensor:
        waits.append(not non_blocking)
        return real(tensor, *given)

    batch = PairCollator(pad_token_id=0, packed=True)(ROWS)
    monkeypatch.setattr(Tensor, "pin_memory", pin)
    ready = pin_memory(batch)
    assert {id(tensor) for tensor in tensors(ready)} == {id(tensor) for tensor in pinned}
    assert ready["rows"] == ["a", "b"] and ready["pack"].groups == batch["pack"].groups
    for before, after in zip(tensors(batch), tensors(ready), strict=True):
        torch.testing.assert_close(before, after, rtol=0, atol=0, equal_nan=True)
    monkeypatch.setattr(Tensor, "to", to)
    moved = send_to_device(ready, "meta", non_blocking=True)
    assert {tensor.device.type for tensor in tensors(moved)} == {"meta"}
    assert len(waits) == len(pinned) and not any(waits)


@pytest.mark.parametrize("cuda", [True, False])
def test_only_a_gpu_has_workers_that_collate(tmp_path, monkeypatch, cuda: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    job = training_job(
        tmp_path, settings=Train(accelerate_config=Path("unused.yaml")), dtype="bfloat16"
    )
    found = trainer._arguments(job)
    assert found["dataloader_num_workers"] == (2 if cuda else 0)
    assert found["dataloader_pin_memory"] is cuda
    assert found["accelerator_config"] == {"non_blocking": cuda}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"reduce_bucket_size": 6, "overlap_comm": True}),
        ({"reduce_bucket_size": 9}, {"reduce_bucket_size": 9, "overlap_comm": True}),
        ({"overlap_comm": False}, {"reduce_bucket_size": 6, "overlap_comm": False}),
    ],
)
def test_deepspeed_s_buckets_are_set_unless_its_own_file_does(given, expected) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).requires_grad_(False)
    model[1].requires_grad_(True)
    config = {"zero_optimization": {"stage": 2, **given}}
    plugin = SimpleNamespace(hf_ds_config=SimpleNamespace(config=config))
    state = SimpleNamespace(deepspeed_plugin=plugin)
    fake = SimpleNamespace(model=model, accelerator=SimpleNamespace(state=state))
    job = SimpleNamespace(shape=LaunchShape(zero_stage=2), reshard=False)
    trainer._configure_deepspeed(fake, job)
    assert config["zero_optimization"] == {"stage": 2, **expected}


SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    "architecture", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "gpt_oss"]
)
def test_experts_without_a_token_have_a_gradient_nevertheless(architecture: str) -> None:
    """So DDP need not search: two tokens reach at most four of eight experts."""
    config = AutoConfig.for_model(architecture, **SIZES)
    model = AutoModelForCausalLM.from_config(config)
    ids = torch.tensor([[5, 9]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
    assert not may_skip_weights(model)


def test_weights_that_a_step_may_skip_are_searched_for() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = AutoConfig.for_model("llama")
            self.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))
            self.gate = nn.Linear(2, 4)

    model = Experts()
    assert may_skip_weights(model)
    model.experts.requires_grad_(False)  # as LoRA on other modules leaves them
    assert not may_skip_weights(model)
    for dropped in (0.0, 0.1):
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 16}
        config = AutoConfig.for_model("opt", **sizes, word_embed_proj_dim=16, layerdrop=dropped)
        assert may_skip_weights(AutoModelForCausalLM.from_config(config)) is (dropped > 0)
