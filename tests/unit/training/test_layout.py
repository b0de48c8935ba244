"""Which models run packed rows, and what is said where they cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dpo_dist.config import Train
from dpo_dist.errors import ConfigError
from dpo_dist.training.layout import output_head, why_not_packed
from dpo_dist.training.models import choose_layout

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def build(kind: str, **more: Any) -> Any:
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SMALL, **more}))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "gemma2", "olmo2", "phi3"])
def test_plain_decoders_are_packed(kind: str) -> None:
    assert why_not_packed(build(kind, pad_token_id=0)) is None


@pytest.mark.parametrize(
    ("kind", "more", "reason"),
    [
        ("mamba", {"state_size": 4}, "attention registry"),
        (
            "falcon_h1",
            {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8},
            "attention registry",
        ),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, "layers of the kind conv"),
        ("gpt_oss", {"num_local_experts": 2, "pad_token_id": 0}, "attention sinks"),
        ("mixtral", {"num_local_experts": 2, "output_router_logits": True}, "router loss"),
        ("bloom", {"n_head": 4}, "attention registry"),
    ],
)
def test_a_model_that_packing_cannot_serve_names_the_reason(
    kind: str, more: dict, reason: str
) -> None:
    import re

    found = why_not_packed(build(kind, **more))
    assert found is not None and re.search(reason, found), found


def test_a_convolution_along_the_sequence_is_not_packed() -> None:
    model = build("llama")
    model.model.layers[0].mix = torch.nn.Conv1d(32, 32, 4)
    assert why_not_packed(model) == "llama has convolutions or recurrence along the sequence"


def test_prompt_learning_is_not_packed() -> None:
    from peft import PromptTuningConfig, get_peft_model

    settings = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    reason = why_not_packed(get_peft_model(build("llama"), settings))
    assert reason == "prompt-learning adapters put virtual tokens before every row"


def test_auto_says_why_it_falls_back_and_packed_refuses(capsys) -> None:
    model = build("mixtral", num_local_experts=2, output_router_logits=True)
    assert choose_layout(model, Train()) is False
    assert (
        "padded batches, which compute every prompt twice: mixtral adds a router loss"
        in capsys.readouterr().err
    )
    with pytest.raises(ConfigError, match=r"train\.layout: packed is not possible: mixtral"):
        choose_layout(model, Train(layout="packed"))


def test_padded_keeps_a_softcap(tiny_model: Path) -> None:
    assert choose_layout(build("gemma2"), Train(layout="padded")) is False
    model = build("gemma2")
    choose_layout(model, Train(layout="padded"))
    assert model.config._attn_implementation == "eager", "sdpa would leave the softcap out"
    model = build("llama")
    choose_layout(model, Train(layout="padded"))
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("kind", "more", "scale"),
    [
        ("llama", {}, 1.0),
        ("cohere", {"logit_scale": 0.25}, 0.25),
        ("granite", {"logits_scaling": 8.0}, 0.125),
    ],
)
def test_the_head_scales_as_the_model_does(kind: str, more: dict, scale: float) -> None:
    model = build(kind, **more)
    head = output_head(model)
    assert head.scale == scale
    ids = torch.tensor([[3, 4, 5]])
    hidden = model.base_model(ids).last_hidden_state
    torch.testing.assert_close(model(ids).logits, hidden @ head.weight.T * head.scale)
