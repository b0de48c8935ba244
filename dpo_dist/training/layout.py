"""Which layout a model trains in, and the seam at which packed rows enter TRL.

TRL calls `model(input_ids, attention_mask, labels, fused_lm_head=True)` and wants per-token
log-probs in the shape of its padded batch. `install` wraps that call: where the batch carries a
`PackPlan`, the model runs one packed row and the log-probs are put back into TRL's shape. Losses,
metrics, references and saving stay TRL's. On a CPU padded batches (SFT, the fall-back) get our LM
head as well: TRL's scores every position there, prompts and padding included, in float32.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import FusedCausalLMOutput, maybe_gather_lm_head_ctx

from dpo_dist.training import attention
from dpo_dist.training.logprobs import OUTPUTS, Head, score_tokens
from dpo_dist.training.packing import PackPlan

_PLAIN_LAYERS = {"full_attention", "sliding_attention"}


def why_not_packed(model: Any) -> str | None:
    """The reason why a model cannot run packed rows, or None when it can.

    Packed rows need attention that goes through transformers' registry, and positions that are
    one number: recurrent state would run from one branch into the next.
    """
    peft = getattr(model, "peft_config", {})
    if any(config.is_prompt_learning for config in peft.values()):
        return "prompt-learning adapters put virtual tokens before every row"
    base: Any = model.get_base_model() if peft else model
    config = base.config
    text = config.get_text_config()
    if text is not config:
        return f"{config.model_type} is multimodal"
    if config.is_encoder_decoder:
        return f"{config.model_type} has an encoder"
    if not base._supports_attention_backend:
        return f"{config.model_type} does not use transformers' attention registry"
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds - _PLAIN_LAYERS:
        return (
            f"{config.model_type} has layers of the kind {', '.join(sorted(kinds - _PLAIN_LAYERS))}"
        )
    if any(isinstance(module, torch.nn.Conv1d) for module in base.modules()):
        return f"{config.model_type} has convolutions or recurrence along the sequence"
    rope = getattr(config, "rope_parameters", None) or {}
    if "mrope_section" in rope or any(
        isinstance(r, dict) and "mrope_section" in r for r in rope.values()
    ):
        return f"{config.model_type} has multi-axis positions (mrope)"
    if any(name.endswith("sinks") for name, _ in base.named_parameters()):
        return f"{config.model_type} has attention sinks"
    if getattr(config, "output_router_logits", False):
        return f"{config.model_type} adds a router loss, which counts prompts once per completion"
    return None


def install(model: Any) -> bool:
    """Wrap the forward of a model, or of the model under its adapters, after TRL's
    `add_fused_lm_head` has wrapped it; once. Returns whether this was the time."""
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    if getattr(model, "_runs_packed_rows", False):
        return False
    model._runs_packed_rows = True
    trl_forward = model.forward

    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, pack: PackPlan | None = None, **kwargs: Any) -> Any:
        if kwargs.get("fused_lm_head"):
            if pack is not None:
                return packed_forward(self, kwargs["input_ids"], kwargs["labels"], pack)
            if not torch.cuda.is_available() and _is_plain(self, kwargs):
                return padded_forward(self, **kwargs)
        return trl_forward(*args, **kwargs)

    model.forward = types.MethodType(forward, model)
    return True


def packed_forward(model: Any, input_ids: Tensor, labels: Tensor, pack: PackPlan) -> Any:
    """One packed row through the model, log-probs in TRL's shape.

    `input_ids`, `labels` (R, L), labels -100 outside completions. Returns TRL's
    `FusedCausalLMOutput` with per-token fields of shape (R, L - 1), zero outside completions.
    """
    assert model.config._attn_implementation == attention.NAME, "a packed row needs its attention"
    hidden = model.base_model(
        input_ids=input_ids.flatten()[pack.source][None],
        position_ids=pack.positions[None],
        # A 4-D mask is left as it is: no mask is built for a row that the plan describes.
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=input_ids.device),
        use_cache=False,
        pack=pack,
    ).last_hidden_state[0]  # (T, H)
    scores = _scores(model, hidden[pack.scored], pack.targets)
    mask = labels[:, 1:] != -100
    spread = {
        name: values.new_zeros(mask.shape).masked_scatter(mask, values[pack.value_index])
        for name, values in scores.items()
    }
    assert spread.keys() == set(OUTPUTS)
    return FusedCausalLMOutput(label_mask=mask, **spread)


def _is_plain(model: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a padded call asks for nothing but log-probs and their mean."""
    return "shift_labels" not in kwargs and not getattr(model.config, "output_router_logits", False)


def padded_forward(
    model: Any,
    *,
    labels: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    fused_lm_head: bool = True,
    **inputs: Any,
) -> Any:
    """A padded batch through the model; only positions with a label are scored. `labels` (R, L).

    `loss` is the mean negative log-prob of the labels, over `num_items_in_batch` where given.
    """
    hidden = model.base_model(**{**inputs, "use_cache": False}).last_hidden_state[:, :-1]
    mask = labels[:, 1:] != -100
    scores = _scores(model, hidden[mask], labels[:, 1:][mask])
    spread = {
        name: values.new_zeros(mask.shape).masked_scatter(mask, values)
        for name, values in scores.items()
    }
    count = mask.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    loss = -spread["log_probs"].sum() / count
    return FusedCausalLMOutput(loss=loss, label_mask=mask, **spread)


def _scores(model: Any, hidden: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """`score_tokens` under the model's head, gathered from ZeRO-3's shards."""
    projection = model.get_output_embeddings()
    with maybe_gather_lm_head_ctx(projection.weight, projection.bias):
        return score_tokens(hidden, output_head(model), targets)


def output_head(model: Any) -> Head:
    """The model's projection with the constants that architectures apply to its logits."""
    projection = model.get_output_embeddings()
    weight, bias = projection.weight, projection.bias
    if hasattr(weight, "full_tensor"):  # FSDP2
        weight, bias = weight.full_tensor(), None if bias is None else bias.full_tensor()
    config = model.config
    scale = next(
        (
            value
            for name in ("logit_scale", "output_multiplier", "lm_head_multiplier")
            if (value := getattr(config, name, None)) is not None
        ),
        None,
    )
    if scale is None and (divisor := getattr(config, "logits_scaling", None)) is not None:
        scale = divisor if config.model_type == "hyperclovax" else 1 / divisor
    return Head(
        weight,
        bias,
        getattr(config, "final_logit_softcapping", None),
        1.0 if scale is None else scale,
    )
