"""Which models run packed rows, and what is said where they cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dpo_dist.config import Train
from dpo_dist.errors import ConfigError
from dpo_dist.training.attention import kernel_for
from dpo_dist.training.layout import output_head, why_not_packed
from dpo_dist.training.models import choose_layout, load_policy
from dpo_dist.training.segment_attention import Rule
from tests.numerics.test_against_trl import make_job

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
        ("mamba", {"state_size": 4}, "convolutions or recurrence"),
        ("minimax", {"num_local_experts": 2}, "layers of the kind linear_attention"),
        ("bloom", {"n_head": 4}, "attention registry"),
        ("bert", {}, "not causal"),
        ("nemotron", {}, "does not pass its arguments on to its attention"),
        ("doge", {}, "builds its own attention mask"),
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
    model = build("nemotron")
    assert choose_layout(model, Train()) is False
    assert (
        "padded batches, which compute every prompt twice: nemotron does not pass"
        in capsys.readouterr().err
    )
    with pytest.raises(ConfigError, match=r"train\.layout: packed is not possible: nemotron"):
        choose_layout(model, Train(layout="packed"))


def test_padded_batches_have_the_attention_that_the_model_supports(
    tiny_model: Path, tmp_path: Path
) -> None:
    """sdpa would leave the softcap of Gemma 2 out, and cannot do the sinks of gpt-oss."""
    found = {}
    for kind in ("llama", "gemma2", "gpt_oss"):
        build(kind, pad_token_id=0, num_local_experts=2).save_pretrained(tmp_path / kind)
        settings = Train(method={"type": "full"}, layout="padded", bf16=False)
        job = make_job(tmp_path / kind, tmp_path, None, settings)
        model, _ = load_policy(job, torch.device("cpu"))
        assert choose_layout(model, settings) is False
        found[kind] = model.config._attn_implementation
    assert found == {"llama": "sdpa", "gemma2": "eager", "gpt_oss": "eager"}


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("kind", ["opt", "seed_oss"])
def test_dropout_that_a_model_keeps_as_a_number_is_off(kind: str, layout: str) -> None:
    """TRL's `disable_dropout` reaches only `torch.nn.Dropout`."""
    own = {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.5, "attention_dropout": 0.5}
    model = build(kind, **own, residual_dropout=0.5, pad_token_id=0)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    ids = torch.arange(3, 40)[None]
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)
    choose_layout(model, Train(layout=layout))
    assert torch.equal(model(ids).logits, model.eval()(ids).logits)


@pytest.mark.parametrize(
    ("device", "dtype", "width", "rule", "sinks", "kernel"),
    [
        ("cuda", torch.bfloat16, 128, Rule(0.1), False, "flash"),
        ("cuda", torch.float16, 256, Rule(0.1, window=8), False, "flash"),
        ("cuda", torch.bfloat16, 512, Rule(0.1), False, "flex"),
        ("cuda", torch.bfloat16, 128, Rule(0.1, softcap=50.0), False, "flex"),
        ("cuda", torch.bfloat16, 64, Rule(0.1), True, "flex"),
        ("cuda", torch.float32, 64, Rule(0.1), False, "flex"),
        ("cuda", torch.float64, 64, Rule(0.1), False, "segment"),
        ("cpu", torch.bfloat16, 64, Rule(0.1, softcap=50.0), True, "segment"),
    ],
)
def test_the_kernel_follows_from_device_dtype_and_rule(
    device: str, dtype: torch.dtype, width: int, rule: Rule, sinks: bool, kernel: str
) -> None:
    assert kernel_for(device, dtype, width, rule, sinks) == kernel


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
