"""What the forward keeps for the backward: everything, only what is costly to compute, or nothing.

`selective` checkpointing (Korthikanti et al. 2022, https://arxiv.org/abs/2205.05198) keeps the
outputs of matrix products and attention and computes the rest of a layer again: norms, rotary
embeddings and activations take most of the memory and little of the time. `full` keeps a layer's
input, and computes the layer twice.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from dpo_dist.config import Checkpointing
from dpo_dist.errors import ConfigError
from dpo_dist.system import ranks
from dpo_dist.system.console import say
from dpo_dist.system.machine import GIB, available_memory
from dpo_dist.training.job import FITS, TrainingJob, launch_shape

# A product by a smaller matrix is a LoRA layer's: cheap, and as large as what it is added to.
NARROW = 32


def choose_checkpointing(job: TrainingJob, free: float) -> Checkpointing:
    """The kind of activation checkpointing: asked for, or (`auto`) the first that fits into what is
    `free_bytes` of the rank that has least.

    All ranks call it, once they are connected, and get the same: under ZeRO-3 a layer that is
    computed again gathers its weights from all of them, and one that did so alone would wait for
    the others forever.
    """
    asked = job.settings.gradient_checkpointing
    zero3 = launch_shape(job.settings.accelerate_config)[1] == 3
    if asked == "selective" and zero3:
        raise ConfigError(
            "gradient_checkpointing: selective is not possible under ZeRO-3, which releases "
            "weights between the forward pass and its recomputation; use full"
        )
    if asked != "auto":
        return asked
    if ranks.world_size() > 1:
        free = min(gather_object([free]))
    kinds: tuple[Checkpointing, ...] = ("none", "full") if zero3 else ("none", "selective", "full")
    chosen = next(
        (kind for kind in kinds if job.planned_peak_bytes[kind] <= FITS * free), kinds[-1]
    )
    if chosen != "none":
        say(
            f"activation checkpointing: {chosen} ({job.planned_peak_bytes['none'] / GIB:.1f} GiB "
            f"are planned without it, {free / GIB:.1f} GiB are free)"
        )
    return chosen


def free_bytes() -> float:
    """What this process may allocate. To be asked before it loads anything: what is planned counts
    the weights, too."""
    if torch.cuda.is_available():
        # By its number, because a rank gets its device with the process group, which comes later.
        return torch.cuda.mem_get_info(int(os.environ.get("LOCAL_RANK", "0")))[0]
    return available_memory() / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def checkpoint_selectively(model: Any) -> None:
    """Switch selective checkpointing on for the layers of a model.

    Whoever enables checkpointing later gets this kind, too: TRL switches it off and on again
    around a live reference.
    """
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    enable = model.gradient_checkpointing_enable
    context_fn = functools.partial(create_selective_checkpoint_contexts, _policy)

    def enable_selective(*_: Any, **__: Any) -> None:
        enable({"use_reentrant": False, "context_fn": context_fn})
        # For reentrant checkpointing, which needs an input with a gradient.
        model.disable_input_require_grads()

    model.gradient_checkpointing_enable = enable_selective
    enable_selective()


def _policy(_: Any, operation: Any, *args: Any, **__: Any) -> CheckpointPolicy:
    kept = operation in _costly() or (operation in _PRODUCTS and min(args[-1].shape[-2:]) >= NARROW)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


_PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}


@functools.cache
def _costly() -> frozenset[Any]:
    """Attention in every form that torch has for it, ours, and LoRA's layers."""
    aten = torch.ops.aten
    found = [
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
        torch.ops.dpo_dist.segment_attention.default,
        torch.ops.dpo_dist.lora_linear.default,
    ]
    if hasattr(torch.ops.torch_attn, "_varlen_attn"):  # registered where varlen is imported
        found.append(torch.ops.torch_attn._varlen_attn.default)
    return frozenset(found)
