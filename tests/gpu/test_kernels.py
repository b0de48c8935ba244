"""The kernels of a step on a GPU, against their definitions in float64. TRL is not needed."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu_check.kernels import (
    GROUPS,
    Attention,
    cases,
    compare_with_definition,
    make_plan,
)
from dpo_dist.training.logprobs import Head, score_tokens

pytestmark = pytest.mark.gpu
DEVICE = "cuda"


@pytest.mark.parametrize("case", cases(quick_cpu=False), ids=lambda case: case.name)
def test_attention_and_its_gradients(case: Attention) -> None:
    errors, outputs_repeat, _ = compare_with_definition(
        case, make_plan(GROUPS, DEVICE), torch.bfloat16
    )
    assert max(errors) < 2e-2  # bfloat16 keeps 8 bits
    assert outputs_repeat


@pytest.mark.parametrize("softcap", [None, 10.0])
@pytest.mark.parametrize("trained", [False, True], ids=["frozen head", "trained head"])
def test_the_head_and_its_gradients(trained: bool, softcap: float | None) -> None:
    if trained:
        pytest.importorskip("trl")  # gathers a sharded head
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(300, 256, generator=generator).bfloat16()
    weight = torch.randn(1000, 256, generator=generator).div(5).bfloat16()
    targets = torch.randint(1000, (300,), generator=generator)
    slopes = torch.randn(300, generator=generator)

    exact = [x.double().requires_grad_() for x in (hidden, weight)]
    logits = exact[0] @ exact[1].T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    expected = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    expected.backward(slopes.double())

    found = [x.to(DEVICE).requires_grad_(trained or x is hidden) for x in (hidden, weight)]
    head = Head(found[1], None, softcap)
    log_probs = score_tokens(found[0], head, targets.to(DEVICE))["log_probs"]
    log_probs.backward(slopes.to(DEVICE))

    # Logits of up to 13 in bfloat16 would be wrong by 0.03.
    torch.testing.assert_close(log_probs.double().cpu(), expected, rtol=0, atol=1e-3)
    for ours, theirs in zip(found, exact, strict=True):
        if ours.grad is not None:
            assert theirs.grad is not None
            error = (ours.grad.double().cpu() - theirs.grad).abs().max() / theirs.grad.abs().max()
            assert error < 2e-2
