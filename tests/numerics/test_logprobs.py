"""The LM head in bfloat16: what rounding may cost."""

from __future__ import annotations

import torch

from dpo_dist.training.logprobs import Head, score_tokens


def test_large_logits_do_not_drown_the_log_probs() -> None:
    """Logits of 20 are rounded to 1/8 in bfloat16; log-probs of likely tokens must not be."""
    torch.manual_seed(0)
    hidden = torch.randn(200, 256).bfloat16()
    weight = (0.25 * torch.randn(1000, 256)).bfloat16()
    weight[0] = 1.0  # a bias that all rows share: it makes logits large, and predicts nothing
    weight += 0.08 * hidden.mean(0)
    logits = hidden.double() @ weight.double().t()
    targets = logits.topk(3).indices[:, 1]
    exact = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    assert logits.abs().amax(-1).mean() > 10

    ours = score_tokens(hidden, Head(weight, None), targets)
    rounded = (hidden @ weight.t()).float().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    error = (ours["log_probs"] - exact).abs().mean()
    assert error < 0.5 * (rounded - exact).abs().mean()
    assert error < 0.02
    mean_logits = ours["mean_logits"].double()
    torch.testing.assert_close(mean_logits, logits.mean(-1), rtol=0, atol=5e-3)
