"""Loading the policy, with the start that makes TRL's reference the SFT model."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM

from dpo_dist import ranks
from dpo_dist.config import Lora
from dpo_dist.errors import ConfigError
from dpo_dist.training.job import TrainingJob


def uses_bf16(job: TrainingJob) -> bool:
    """Whether to train under bfloat16 autocast.

    Several CPU processes cannot: transformers refuses bf16 under DeepSpeed without a GPU, so
    they train in float32 whatever the run file says.
    """
    return job.settings.bf16 and (torch.cuda.is_available() or ranks.world_size() == 1)


def weights_dtype(job: TrainingJob) -> torch.dtype:
    """The dtype of the loaded weights.

    LoRA keeps its frozen base in bfloat16 (autocast would cast it in every layer of every step)
    and its adapters in float32. Full fine-tuning needs float32 master weights: an update of
    5e-7 times the weight is rounded away in bfloat16.
    """
    lora = isinstance(job.settings.method, Lora)
    half = lora and uses_bf16(job) and job.dtype == "bfloat16"
    return torch.bfloat16 if half else torch.float32


def load_policy(job: TrainingJob) -> tuple[Any, LoraConfig | None]:
    """(the model to train, the LoRA configuration for TRL to add).

    - an SFT adapter: a `PeftModel`, of which TRL copies the adapter to a frozen "ref" adapter,
      so that the reference is the SFT model. (A base with a fresh LoRA would take the *base*.)
    - anything else: the bare model. With LoRA the reference is that model with the adapter
      off; with full fine-tuning TRL loads it a second time.
    """
    model = AutoModelForCausalLM.from_pretrained(
        job.model,
        dtype=weights_dtype(job),
        trust_remote_code=job.trust_remote_code,
        use_safetensors=True,
    )
    model.config.use_cache = False
    method = job.settings.method
    if job.adapter is not None:
        if not isinstance(method, Lora):
            raise ConfigError(
                "train.method: full fine-tuning cannot start from an SFT adapter; merge the "
                "adapter into its base first and give the result as model.sft"
            )
        return PeftModel.from_pretrained(model, str(job.adapter), is_trainable=True), None
    if isinstance(method, Lora):
        return model, LoraConfig(
            r=method.r,
            lora_alpha=method.alpha,
            lora_dropout=method.dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
    return model, None
