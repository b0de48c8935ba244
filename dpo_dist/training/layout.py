"""Whether a model can use packed rows, and the forward that integrates them with TRL.

TRL calls `model(input_ids, attention_mask, labels, fused_lm_head=True)` and expects per-token
log-probs in the shape of its padded batch. `install` wraps that forward: if the batch has a
`PackPlan`, the model runs one packed row, and the log-probs are returned in TRL's shape. Padded
batches (SFT, or the fallback) also use our LM head: TRL's rounds logits to bfloat16 on a GPU, and
scores every position on a CPU, including prompts and padding.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from trl.trainer.utils import FusedCausalLMOutput, maybe_gather_lm_head_ctx

from dpo_dist.training import CausalLM, attention
from dpo_dist.training.logprobs import Head, score_tokens
from dpo_dist.training.packing import PackPlan

_PLAIN_LAYERS = {"full_attention", "sliding_attention"}


def why_not_packed(model: CausalLM) -> str | None:
    """The reason why a model cannot use packed rows, or None if it can. They need attention from
    transformers' registry and scalar positions; recurrent state would leak between branches."""
    peft = getattr(model, "peft_config", {})
    if any(config.is_prompt_learning for config in peft.values()):
        return "prompt-learning adapters put virtual tokens before every row"
    base: CausalLM = model.get_base_model() if peft else model
    config = base.config
    text = config.get_text_config()
    if text is not config:
        return f"{config.model_type} is multimodal"
    if config.is_encoder_decoder:
        return f"{config.model_type} has an encoder"
    if any(isinstance(module, torch.nn.Conv1d) for module in base.modules()):
        return f"{config.model_type} has convolutions or recurrence along the sequence"
    if not base._supports_attention_backend:
        return f"{config.model_type} does not use transformers' attention registry"
    unsuited = set(getattr(config, "layer_types", None) or []) - _PLAIN_LAYERS
    if unsuited:
        return f"{config.model_type} has layers of the kind {', '.join(sorted(unsuited))}"
    rope = getattr(config, "rope_parameters", None) or {}
    if any("mrope_section" in r for r in (rope, *rope.values()) if isinstance(r, dict)):
        return f"{config.model_type} has multi-axis positions (mrope)"
    if any(getattr(module, "is_causal", True) is False for module in base.modules()):
        return f"{config.model_type} is not causal: a position sees the ones after it"
    reason = attention.trial(base)
    return None if reason is None else f"{config.model_type} {reason}"


def install(model: CausalLM) -> bool:
    """Wrap a model's forward after TRL's `add_fused_lm_head`; False if it was wrapped before."""
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    if getattr(model, "_runs_packed_rows", False):
        return False
    model._runs_packed_rows = True
    trl_forward = model.forward

    @functools.wraps(type(model).forward)
    def forward(
        self: CausalLM, *args: object, pack: PackPlan | None = None, **kwargs: Any
    ) -> FusedCausalLMOutput:
        if kwargs.get("fused_lm_head"):
            routed = kwargs.get("output_router_logits", _wants_router_loss(self))
            if pack is not None:
                ids, labels = kwargs["input_ids"], kwargs["labels"]
                return packed_forward(self, ids, labels, pack, routed=routed)
            # `padded_forward` returns only log-probs and their mean.
            if not ("shift_labels" in kwargs or routed):
                return padded_forward(self, **kwargs)
        return trl_forward(*args, **kwargs)

    model.forward = types.MethodType(forward, model)
    return True


def packed_forward(
    model: CausalLM, input_ids: Tensor, labels: Tensor, pack: PackPlan, *, routed: bool = False
) -> FusedCausalLMOutput:
    """Run one packed row. `input_ids`, `labels` (R, L), labels -100 outside completions. Returns
    TRL's `FusedCausalLMOutput` with fields of shape (R, L - 1), zero outside completions, and if
    `routed` the router loss of the packed positions."""
    assert model.config._attn_implementation == attention.NAME, "a packed row needs its attention"
    with attention.packed_masks():
        outputs = model.base_model(
            input_ids=input_ids.flatten()[pack.source][None],
            position_ids=pack.positions[None],
            # Without a mask transformers would look for rows that begin at position 0.
            attention_mask=torch.ones_like(pack.positions)[None],
            use_cache=False,
            pack=pack,
            **({"output_router_logits": True} if routed else {}),
        )
    attention.check_kernels()
    hidden = outputs.last_hidden_state[0]  # (T, H)
    scores = _scores(model, hidden[pack.scored], pack.targets)
    mask = labels[:, 1:] != -100
    scores = {name: values[pack.value_index] for name, values in scores.items()}
    aux_loss = _router_loss(model, outputs.router_logits) if routed else None
    return FusedCausalLMOutput(label_mask=mask, aux_loss=aux_loss, **_scatter(scores, mask))


def _wants_router_loss(model: CausalLM) -> bool:
    return bool(getattr(model.config.get_text_config(), "output_router_logits", False))


def _router_loss(model: CausalLM, logits: tuple[Tensor, ...]) -> Tensor:
    """The load-balancing loss that TRL adds, over the positions of a packed row: `logits` are the
    experts' scores (T, experts) of each layer."""
    config = model.config.get_text_config()
    loss: Tensor = load_balancing_loss_func(logits, config.num_experts, config.num_experts_per_tok)
    return loss


def padded_forward(
    model: CausalLM,
    *,
    labels: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    fused_lm_head: bool = True,
    **inputs: object,
) -> FusedCausalLMOutput:
    """Run a padded batch, and score only positions with a label. `labels` (R, L). `loss` is the
    negative sum of their log-probs over `num_items_in_batch`, or over the number of labels."""
    hidden = model.base_model(**{**inputs, "use_cache": False}).last_hidden_state[:, :-1]
    mask = labels[:, 1:] != -100
    outputs = _scatter(_scores(model, hidden[mask], labels[:, 1:][mask]), mask)
    count = mask.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    loss = -outputs["log_probs"].sum() / count
    return FusedCausalLMOutput(loss=loss, label_mask=mask, **outputs)


def _scatter(scores: dict[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
    """Values (N,) placed where `mask` (R, L - 1) is true, zero elsewhere."""
    return {
        name: values.new_zeros(mask.shape).masked_scatter(mask, values)
        for name, values in scores.items()
    }


def _scores(model: CausalLM, hidden: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """`score_tokens` with the model's head, gathered from ZeRO-3's shards."""
    projection = model.get_output_embeddings()
    with maybe_gather_lm_head_ctx(projection.weight, projection.bias):
        return score_tokens(hidden, output_head(model), targets)


def output_head(model: CausalLM) -> Head:
    """The model's output projection and the scale and softcap of its logits."""
    projection = model.get_output_embeddings()
    weight, bias = projection.weight, projection.bias
    if hasattr(weight, "full_tensor"):  # FSDP2
        weight, bias = weight.full_tensor(), None if bias is None else bias.full_tensor()
    config, scale = model.config, 1.0
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        scale = divisor if config.model_type == "hyperclovax" else 1 / divisor
    for name in ("lm_head_multiplier", "output_multiplier", "logit_scale"):
        if (value := getattr(config, name, None)) is not None:
            scale = value
    return Head(weight, bias, getattr(config, "final_logit_softcapping", None), scale)
