"""Activation checkpointing: none, selective or full.

`selective` (Korthikanti et al. 2022, https://arxiv.org/abs/2205.05198) keeps the outputs of matrix
products and attention, and recomputes the rest of a layer: norms, rotary embeddings and activation
functions take most of the memory and little time. `full` keeps only a layer's input and recomputes
the layer.
"""

from __future__ import annotations

import functools
import os

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from dpo_dist.config import Checkpointing
from dpo_dist.errors import ConfigError
from dpo_dist.system import ranks
from dpo_dist.system.console import say
from dpo_dist.system.machine import GIB, available_memory
from dpo_dist.training import CausalLM
from dpo_dist.training.job import MEMORY_SHARE, TrainingJob

# Products with a narrower matrix belong to LoRA layers: cheap to recompute, with large outputs.
NARROW = 32


def choose_checkpointing(job: TrainingJob, free: float) -> Checkpointing:
    """The configured kind of checkpointing; for `auto` the first whose planned memory fits into the
    smallest `free` (bytes) of all ranks. All connected ranks must call this and get the same kind,
    because under ZeRO-3 recomputation gathers weights from all ranks. Raises `ConfigError`."""
    configured = job.settings.gradient_checkpointing
    zero3 = job.shape.zero_stage == 3
    if configured == "selective" and zero3:
        raise ConfigError(
            "gradient_checkpointing: selective is not possible under ZeRO-3, which releases "
            "weights between the forward pass and its recomputation; use full"
        )
    if configured != "auto":
        return configured
    if ranks.world_size() > 1:
        free = min(gather_object([free]))
    kinds: tuple[Checkpointing, ...] = ("none", "full") if zero3 else ("none", "selective", "full")
    fitting = (k for k in kinds if job.planned_peak_bytes[k] <= MEMORY_SHARE * free)
    chosen = next(fitting, kinds[-1])
    if chosen != "none":
        say(
            f"activation checkpointing: {chosen} ({job.planned_peak_bytes['none'] / GIB:.1f} GiB "
            f"are planned without it, {free / GIB:.1f} GiB are free)"
        )
    return chosen


def free_bytes() -> float:
    """The memory that this process may allocate, before it loads a model."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    return available_memory() / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def checkpoint_selectively(model: CausalLM) -> None:
    """Enable selective checkpointing. A later call of `gradient_checkpointing_enable` also enables
    it: TRL disables and enables checkpointing around a live reference."""
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    enable = model.gradient_checkpointing_enable
    context_fn = functools.partial(create_selective_checkpoint_contexts, _policy)

    def enable_selective(*_: object, **__: object) -> None:
        enable({"use_reentrant": False, "context_fn": context_fn})
        # Only reentrant checkpointing needs inputs with a gradient.
        model.disable_input_require_grads()

    model.gradient_checkpointing_enable = enable_selective
    enable_selective()


def _policy(_: object, operation: object, *args: Tensor, **__: object) -> CheckpointPolicy:
    kept = operation in _costly() or (operation in _PRODUCTS and min(args[-1].shape[-2:]) >= NARROW)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


_PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}


@functools.cache
def _costly() -> frozenset[object]:
    """All of torch's attention operators, ours, and LoRA layers."""
    aten = torch.ops.aten
    operators = [
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
        torch.ops.dpo_dist.segment_attention.default,
        torch.ops.dpo_dist.lora_linear.default,
    ]
    if hasattr(torch.ops.bitsandbytes, "gemm_4bit"):  # registered on import
        operators.append(torch.ops.bitsandbytes.gemm_4bit.default)
    if hasattr(torch.ops.torch_attn, "_varlen_attn"):  # registered on import
        operators.append(torch.ops.torch_attn._varlen_attn.default)
    return frozenset(operators)
