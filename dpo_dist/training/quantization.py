"""QLoRA: LoRA on a base whose linear layers are in NF4 (Dettmers et al. 2023,
https://arxiv.org/abs/2305.14314).

The reference is the same quantized base, with the SFT adapter if there is one, so it rounds as the
policy does. PEFT's own layers compute the adapters: `lora_linear` needs plain weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig

from dpo_dist.config import Lora
from dpo_dist.errors import ModelError
from dpo_dist.training import CausalLM
from dpo_dist.training.job import TrainingJob

BLOCK = 64  # weights that share a scale


def quantization_config(
    job: TrainingJob, weights: torch.dtype, compute: torch.dtype
) -> BitsAndBytesConfig | None:
    """How transformers quantizes the base while it loads; None: not at all. `weights` is the dtype
    of the other weights, `compute` that of the products.

    The packed weights are stored as `weights`: ZeRO-3 and FSDP2 shard weights of one dtype, and
    FSDP2 leaves out integers. The head stays as it is; transformers excludes it.
    """
    method = job.settings.method
    if not isinstance(method, Lora) or method.quantization is None:
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=method.quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_quant_storage=weights,
    )


def keep_trainable(model: CausalLM) -> CausalLM:
    """Avoid two errors of bitsandbytes 0.50 on CPUs; nothing changes without quantized weights.

    With AVX512-BF16 it repacks a weight in the first forward without gradients, in place, for a
    kernel that has no backward: after a validation, gradients would stop at the last layer. And it
    applies wrong scales if a row is not a whole number of blocks; raises `ModelError` then.
    """
    for name, module in model.named_modules():
        if not hasattr(module, "support_avx512bf16_for_cpu"):
            continue
        module.support_avx512bf16_for_cpu = False
        if module.weight.device.type == "cpu" and module.in_features % BLOCK:
            raise ModelError(
                f"{name} has {module.in_features} inputs: on a CPU, quantization: nf4 needs a "
                f"multiple of {BLOCK}"
            )
    return model


def adapter_values(model: CausalLM) -> dict[str, Tensor]:
    """The values of a PEFT model's trained weights by name; empty without an adapter."""
    if not hasattr(model, "peft_config"):
        return {}
    return {name: w.data for name, w in model.named_parameters() if w.requires_grad}


def restore_adapters(model: CausalLM, values: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """TRL rounds the adapters of a quantized model to bfloat16, in which AdamW would lose small
    updates and most of its second moment's decay. Give them `dtype` and, where they have any, their
    `values` from before."""
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            weight.data = values.get(name, weight.data).to(dtype)
