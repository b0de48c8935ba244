"""Loading the policy, with the start that makes TRL's reference the SFT model."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM

from dpo_dist.config import Checkpointing, Lora, Train
from dpo_dist.errors import ConfigError
from dpo_dist.system import ranks
from dpo_dist.system.console import warn
from dpo_dist.training import attention
from dpo_dist.training.activations import checkpoint_selectively
from dpo_dist.training.job import TrainingJob, uses_fsdp
from dpo_dist.training.layout import why_not_packed

# The adapter that is the reference, where training does not start from it.
INITIAL = "initial"


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

    - LoRA on an SFT adapter: a `PeftModel`, of which TRL copies the adapter to a frozen "ref"
      adapter, so that the reference is the SFT model. (A base with a fresh LoRA would take the
      *base*.)
    - LoRA on a whole model: the reference is that model with the new adapter off.
    - all weights: an SFT adapter is merged first; the reference is what training starts from.

    An adapter that is another reference (`job.reference`) lies beside them as "initial".
    """
    model = AutoModelForCausalLM.from_pretrained(
        job.model,
        dtype=weights_dtype(job),
        trust_remote_code=job.trust_remote_code,
        use_safetensors=True,
        attn_implementation="sdpa",
    )
    model.config.use_cache = False
    method = job.settings.method
    if isinstance(method, Lora) and job.adapter is None:
        return model, LoraConfig(
            r=method.r,
            lora_alpha=method.alpha,
            lora_dropout=method.dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
    if job.adapter is None:
        return model, None
    adapted = PeftModel.from_pretrained(
        model, str(job.adapter), is_trainable=isinstance(method, Lora)
    )
    if isinstance(method, Lora):
        if job.reference is not None and job.reference.adapter is not None:
            adapted.load_adapter(str(job.reference.adapter), INITIAL)
        return adapted, None
    return adapted.merge_and_unload().requires_grad_(True), None  # PEFT froze the base


def load_reference(job: TrainingJob) -> Any | None:
    """The reference's weights, where all weights are trained and they are needed: in every step
    (`reference: live`), or to measure the KL. An adapter's reference is in the policy.

    A live reference has the policy's dtype: in bfloat16 it would round otherwise than the policy
    does under autocast, by a nat per answer. For the KL alone the weights stay in the dtype that
    the SFT model is kept in; `train.kl.prompts: 0` saves them.
    """
    settings = job.settings
    assert isinstance(settings, Train)
    if not settings.has_second_model(validates=job.validation_rows is not None):
        return None
    if job.reference is not None:
        other = {"model": job.reference.model, "adapter": job.reference.adapter}
        job = job.model_copy(update=other | {"reference": None})
    model, _ = load_policy(job)
    if uses_bf16(job) and settings.reference != "live":
        model.to(getattr(torch, job.dtype))
    model.requires_grad_(False)
    return model.eval()


def lighten(model: Any, job: TrainingJob, checkpointing: Checkpointing) -> None:
    """Let the layers copy and keep less, with the same results."""
    if uses_bf16(job):
        _share_inputs_with_lora(model)
    if checkpointing == "selective":
        checkpoint_selectively(model)


def _share_inputs_with_lora(model: torch.nn.Module) -> None:
    """Under autocast, let LoRA layers multiply the activations that the base layers multiply.

    PEFT casts them to the adapter's float32, autocast casts them back: the same numbers, in a
    copy per layer that stays alive until the backward.
    """
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            setattr(module, "cast_input_dtype_enabled", False)  # noqa: B010


_FSDP = "packed rows have not been tested under FSDP"


def choose_layout(model: Any, settings: Train) -> bool:
    """Whether packed rows are used; sets the attention that this takes.

    `layout: auto` falls back to TRL's padded batches with one warning that names the reason;
    `packed` raises `ConfigError` instead.
    """
    reason = None
    if settings.layout != "padded":
        reason = _FSDP if uses_fsdp(settings.accelerate_config) else why_not_packed(model)
    if reason is not None:
        if settings.layout == "packed":
            raise ConfigError(f"train.layout: packed is not possible: {reason}")
        warn(f"using padded batches, which compute every prompt twice: {reason}")
    text = model.config.get_text_config()
    if settings.layout == "padded" or reason is not None:
        if getattr(text, "attn_logit_softcapping", None):
            model.set_attn_implementation("eager")  # sdpa leaves the softcap out
        return False
    attention.register()
    model.set_attn_implementation(attention.NAME)
    if torch.cuda.is_available():
        heads = text.num_attention_heads
        attention.self_test(
            torch.device("cuda"),
            torch.bfloat16,
            heads,
            getattr(text, "num_key_value_heads", None) or heads,
            getattr(text, "head_dim", None) or text.hidden_size // heads,
        )
    return True
