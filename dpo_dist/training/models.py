"""Loads the policy, such that TRL's reference is the SFT model, and the reference."""

from __future__ import annotations

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoConfig, AutoModelForCausalLM

from dpo_dist.config import Checkpointing, Lora, Train, is_quantized
from dpo_dist.errors import ConfigError, ModelError
from dpo_dist.system.console import warn
from dpo_dist.training import CausalLM, attention
from dpo_dist.training.activations import checkpoint_selectively
from dpo_dist.training.job import TrainingJob
from dpo_dist.training.layout import why_not_packed
from dpo_dist.training.quantization import keep_trainable, quantization_config

# The name of the reference adapter if training does not start from the reference.
INITIAL = "initial"


def uses_bf16(job: TrainingJob) -> bool:
    """Whether to train under bfloat16 autocast. Connected CPU processes always train in float32,
    because transformers refuses bf16 under DeepSpeed without a GPU."""
    return job.settings.bf16 and (torch.cuda.is_available() or not job.shape.connected)


def weights_dtype(job: TrainingJob) -> torch.dtype:
    """The dtype of the loaded weights.

    - DeepSpeed trains bfloat16 weights from float32 master weights, whatever it gets, so float32
      would only take memory while loading.
    - With LoRA the frozen base is in bfloat16 (autocast would cast it in every layer of every
      step), and the adapters are in float32.
    - Otherwise full fine-tuning needs float32 weights: bfloat16 would lose updates of 5e-7 times
      the weight.
    """
    halves = isinstance(job.settings.method, Lora) or job.shape.zero_stage > 0
    half = halves and uses_bf16(job) and job.dtype == "bfloat16"
    return torch.bfloat16 if half else torch.float32


def load_policy(job: TrainingJob, device: torch.device) -> tuple[CausalLM, LoraConfig | None]:
    """(the model to train, the LoRA configuration that TRL should add). The trainer's arguments
    must exist: with them, ZeRO-3 loads a shard of each weight, and FSDP2 loads on the main process
    alone.

    - LoRA on an SFT adapter: a `PeftModel`. TRL copies the adapter to a frozen adapter "ref", so
      the reference is the SFT model. (With a new LoRA it would be the *base*.)
    - LoRA on a full model: the reference is that model with the new adapter disabled.
    - all weights: the reference is the model itself. An SFT adapter has been merged into it.

    If `job.reference` has an adapter, it is loaded as "initial".
    """
    model = _load(job.model, job, weights_dtype(job), device)
    model.config.use_cache = False
    method = job.settings.method
    if not isinstance(method, Lora):
        assert job.adapter is None, "the phase merges it"
        return model, None
    if job.adapter is None:
        return model, lora_config(method)
    # DeepSpeed's ZeRO-3 needs one dtype for all weights.
    options = {"autocast_adapter_dtype": job.shape.zero_stage != 3}
    adapted = PeftModel.from_pretrained(model, str(job.adapter), is_trainable=True, **options)
    if job.reference is not None and job.reference.adapter is not None:
        adapted.load_adapter(str(job.reference.adapter), INITIAL, **options)
    return adapted, None


def lora_config(method: Lora) -> LoraConfig:
    """PEFT's settings of a new adapter."""
    saved = method.modules_to_save
    return LoraConfig(
        r=method.r,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=_names(method.target_modules),
        exclude_modules=_names(method.exclude_modules),
        layers_to_transform=_names(method.layers_to_transform),
        layers_pattern=_names(method.layers_pattern),
        rank_pattern=dict(method.rank_pattern),
        alpha_pattern=dict(method.alpha_pattern),
        modules_to_save=None if saved is None else list(saved),
        use_dora=method.use_dora,
        use_rslora=method.use_rslora,
        init_lora_weights=method.init_lora_weights,
        task_type="CAUSAL_LM",
    )


def _names(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def load_reference(job: TrainingJob, device: torch.device) -> CausalLM | None:
    """The reference's weights, if all weights are trained and they are needed: in every step
    (`reference: live`), or to measure the KL. With LoRA the policy contains the reference.

    A live reference has the policy's dtype: in bfloat16 its rounding would differ from that of the
    policy under autocast, by a nat per answer. For the KL alone it has the SFT model's dtype.
    """
    settings = job.settings
    assert isinstance(settings, Train)
    if not settings.has_second_model(validates=job.validation_rows is not None):
        return None
    live = settings.reference == "live" or not uses_bf16(job)
    dtype = weights_dtype(job) if live else getattr(torch, job.dtype)
    model = _load(job.reference.model if job.reference else job.model, job, dtype, device)
    model.requires_grad_(False)
    return model.eval()


def _load(model: str, job: TrainingJob, dtype: torch.dtype, device: torch.device) -> CausalLM:
    # Straight to the device, without a copy in the host's memory. Sharded weights cannot be: there
    # transformers asks DeepSpeed or FSDP where each weight goes.
    config = AutoConfig.from_pretrained(model, trust_remote_code=job.trust_remote_code)
    softcap = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    place = {} if job.shape.shards_weights else {"device_map": {"": device}}
    loaded = AutoModelForCausalLM.from_pretrained(
        model,
        dtype=dtype,
        trust_remote_code=job.trust_remote_code,
        use_safetensors=True,
        # SDPA would leave a softcap out. None: transformers chooses what the model supports.
        attn_implementation=None if softcap is None else "eager",
        quantization_config=quantization_config(
            job, dtype, torch.bfloat16 if uses_bf16(job) else torch.float32
        ),
        **place,
    )
    if job.shape.zero_stage == 3 and not is_quantized(job.settings.method):
        weights = list(loaded.parameters())
        assert all(hasattr(weight, "ds_id") for weight in weights), "loaded whole, not as shards"
    return keep_trainable(loaded)


def check_head(model: CausalLM) -> None:
    """Raises `ModelError` for a LoRA adapter on the head: log-probs are computed from its weight,
    which the adapter does not change."""
    if isinstance(model.get_output_embeddings(), LoraLayer):
        raise ModelError(
            "the LM head has a LoRA adapter, which is not supported: leave it out of "
            "`target_modules`, or name it in `modules_to_save`"
        )


def adapter_dtype(job: TrainingJob) -> torch.dtype:
    """The dtype of the trained adapters. DeepSpeed has float32 master weights of its own, and its
    ZeRO-3 needs one dtype for all weights."""
    return weights_dtype(job) if job.shape.zero_stage else torch.float32


def lighten(model: CausalLM, job: TrainingJob, checkpointing: Checkpointing) -> None:
    """Reduce the memory of the layers without a change of the results."""
    if uses_bf16(job):
        # PEFT would cast the input of every LoRA layer to float32, and autocast would cast it back:
        # the same numbers, but the backward keeps a copy.
        for module in model.modules():
            if hasattr(module, "cast_input_dtype_enabled"):
                module.cast_input_dtype_enabled = False
    if checkpointing == "selective":
        checkpoint_selectively(model)


def may_skip_weights(model: CausalLM) -> bool:
    """Whether a backward pass may not reach all trained weights, on one rank or on all of them:
    layers that are dropped at random (OPT), or experts of which each is a module of its own, as in
    code from the Hub. The experts of transformers' models are one tensor, which always gets a
    gradient."""
    return getattr(model.config, "layerdrop", 0) > 0 or any(
        isinstance(module, torch.nn.ModuleList)
        and "expert" in name.rpartition(".")[2]
        and any(weight.requires_grad for weight in module.parameters())
        for name, module in model.named_modules()
    )


def choose_layout(model: CausalLM, settings: Train) -> bool:
    """Set the attention of the layout; return whether it uses packed rows. If the model cannot use
    them, `layout: auto` warns and uses TRL's padded batches; `packed` raises `ConfigError`."""
    reason = None
    if settings.layout != "padded":
        reason = why_not_packed(model)
    if reason is not None:
        if settings.layout == "packed":
            raise ConfigError(f"train.layout: packed is not possible: {reason}")
        warn(f"using padded batches, which compute every prompt twice: {reason}")
    disable_dropout(model)
    if settings.layout == "padded" or reason is not None:
        return False
    attention.register()
    model.set_attn_implementation(attention.NAME)
    return True


def disable_dropout(model: CausalLM) -> None:
    """Set to 0 the dropout that modules keep as a number. TRL disables only `torch.nn.Dropout`,
    and a DPO loss with dropout compares a policy with a reference that drops other units."""
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and name.endswith(("dropout", "pdrop", "layerdrop")):
                setattr(module, name, 0.0)
