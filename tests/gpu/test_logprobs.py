"""The LM head on a GPU, where products of bfloat16 have float32 results."""

from __future__ import annotations

import pytest
import torch

from dpo_dist.training import logprobs
from dpo_dist.training.logprobs import OUTPUTS, Head, score_tokens
from tests.numerics.test_logprobs import HEADS, definition, operands

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("kind", HEADS)
def test_the_head_is_exact_and_never_waits_for_the_gpu(
    kind: str, trained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, weight, shift, targets = operands(torch.bfloat16, bias=True)
    monkeypatch.setattr(logprobs, "TILE_BYTES", 4 * len(weight) * 70)  # several tiles
    assert shift is not None
    exact = [x.double().requires_grad_() for x in (hidden, weight)]
    bias = shift.double()
    expected = definition(exact[0], Head(exact[1], bias, **HEADS[kind]), targets)
    expected["log_probs"].sum().backward()
    x = hidden.cuda().requires_grad_()
    w = weight.cuda().requires_grad_(trained)
    head, ids = Head(w, shift.cuda(), **HEADS[kind]), targets.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = score_tokens(x, head, ids)
        found["log_probs"].sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name in OUTPUTS[:-1]:
        assert (found[name].double().cpu() - expected[name]).abs().max() < 1e-4, name
    for ours, oracle in ((x, exact[0]), (w, exact[1])):
        if ours.grad is not None and oracle.grad is not None:
            error = (ours.grad.double().cpu() - oracle.grad).norm() / oracle.grad.norm()
            assert error < 1e-2
    assert (w.grad is not None) == trained
