"""Selective checkpointing: the same numbers, less kept, and nothing costly done twice."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from trl.models.utils import disable_gradient_checkpointing

from dpo_dist.training import lora_linear
from dpo_dist.training.activations import checkpoint_selectively
from tests.numerics.pairs import dpo_loss, make_model, packed_logps, random_pairs
from tests.numerics.test_lora_linear import adapted


class Operations(TorchDispatchMode):
    """Counts the operations that are computed under it."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None):
        self.counts[operation.name()] += 1
        return operation(*args, **(kwargs or {}))


def step(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor], Counter[str], int]:
    """(log-probs, gradients, operations, bytes kept for the backward)."""
    model.zero_grad()
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    with Operations() as operations, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        logps = packed_logps(base, random_pairs(6))
        size = sum(kept.values())
        dpo_loss(logps).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    return logps.detach(), gradients, operations.counts, size


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_step_is_the_same_to_the_last_bit(method: str, dtype: torch.dtype) -> None:
    model = make_model("llama", dtype) if method == "full" else adapted(dtype=dtype)
    lora_linear.install(model)
    step(model)  # the first packed row also checks the kernels
    logps, gradients, operations, _ = step(model)
    checkpoint_selectively(model)
    with disable_gradient_checkpointing(model):  # as around a live reference
        assert not model.is_gradient_checkpointing
    again, again_gradients, again_operations, _ = step(model)
    assert torch.equal(again, logps)
    assert all(torch.equal(again_gradients[name], gradients[name]) for name in gradients)
    assert again_operations["aten::rsqrt"] > operations["aten::rsqrt"], "norms are recomputed"
    costly = ["aten::mm", "dpo_dist::segment_attention", "dpo_dist::lora_linear"]
    for name in costly:
        assert again_operations[name] == operations[name], name
    assert operations["dpo_dist::segment_attention"] == 2
