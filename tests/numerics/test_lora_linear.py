"""LoRA's layer as one operation against PEFT's own forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from dpo_dist.training import lora_linear
from tests.numerics.pairs import dpo_loss, make_model, packed_logps, random_pairs


def adapted(kind: str = "llama", dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """A model with adapters that do something."""
    config = LoraConfig(
        **{"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "task_type": "CAUSAL_LM"},
        **options,
    )
    model = get_peft_model(make_model(kind, dtype), config, autocast_adapter_dtype=False)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def log_probs_and_gradients(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    logps = packed_logps(model.get_base_model(), random_pairs(4))
    dpo_loss(logps).backward()
    trained = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    return logps.detach(), trained


def counted(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """A list that grows by an element with every call of the operation."""
    calls: list[None] = []
    operation = lora_linear.lora_linear

    def count(*args: Any) -> Any:
        calls.append(None)
        return operation(*args)

    monkeypatch.setattr(lora_linear, "lora_linear", count)
    return calls


@pytest.mark.parametrize("kind", ["llama", "qwen2"])  # qwen2's projections have a bias
def test_log_probs_and_gradients_are_peft_s(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(kind)
    logps, gradients = log_probs_and_gradients(model)
    calls = counted(monkeypatch)
    lora_linear.install(model)
    ours, our_gradients = log_probs_and_gradients(model)
    assert len(calls) == 14, "seven modules in each of two layers"
    torch.testing.assert_close(ours, logps, rtol=0, atol=1e-10)
    assert max(g.abs().max() for g in gradients.values()) > 1e-2
    for name, gradient in gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, rtol=0, atol=1e-12, msg=name)


def test_an_adapter_that_is_off_or_another_one_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = adapted(), random_pairs(4)
    model.add_adapter("ref", model.peft_config["default"])
    lora_linear.install(model)
    base = model.get_base_model()
    policy = packed_logps(base, pairs).detach()
    with model.disable_adapter():
        off = packed_logps(base, pairs).detach()
    model.set_adapter("ref")  # a fresh adapter: its B is zero
    calls = counted(monkeypatch)
    torch.testing.assert_close(packed_logps(base, pairs).detach(), off, rtol=0, atol=1e-10)
    assert len(calls) == 14
    assert (policy - off).abs().max() > 1


@pytest.mark.filterwarnings("ignore:.*lora_bias=True")  # merging is what it warns of
@pytest.mark.parametrize(
    "options", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}]
)
def test_what_is_not_plain_stays_peft_s(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(**options)
    torch.manual_seed(0)
    logps, gradients = log_probs_and_gradients(model)
    calls = counted(monkeypatch)
    lora_linear.install(model)
    torch.manual_seed(0)
    ours, our_gradients = log_probs_and_gradients(model)
    assert not calls
    assert torch.equal(ours, logps)
    assert all(torch.equal(our_gradients[name], gradients[name]) for name in gradients)


def test_bfloat16_is_not_further_from_the_truth_than_peft() -> None:
    """The sum is rounded once, not three times."""
    torch.manual_seed(0)
    config = LoraConfig(r=16, lora_alpha=32, target_modules=["0"])
    exact = get_peft_model(torch.nn.Sequential(torch.nn.Linear(256, 512, bias=False)), config)
    torch.nn.init.normal_(exact.base_model.model[0].lora_B.default.weight, std=0.05)
    rows = torch.randn(400, 256)
    truth = exact(rows)
    errors = []
    exact.base_model.model[0].base_layer.bfloat16()
    for install in (lambda _: None, lora_linear.install):
        install(exact)
        with torch.autocast("cpu", torch.bfloat16):
            errors.append((exact(rows) - truth).norm() / truth.norm())
    assert 1e-4 < errors[1] < errors[0] < 1e-2
