"""The packed path on a GPU: the varlen kernel against the definition."""

from __future__ import annotations

import pytest
import torch

from dpo_dist.training.attention import self_test

pairs = pytest.importorskip("tests.numerics.pairs", reason="TRL is not installed")
pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_kernel_passes_the_start_up_check(dtype: torch.dtype) -> None:
    self_test(torch.device("cuda"), dtype, heads=8, key_heads=2, dim=64)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2"])
def test_log_probs_are_those_of_the_definition(kind: str) -> None:
    rows = pairs.random_pairs(6)
    exact = pairs.oracle_logps(pairs.make_model(kind), rows)
    batch = {
        name: value.to("cuda") if hasattr(value, "to") else value
        for name, value in pairs.collate(rows).items()
    }
    model = pairs.make_model(kind, torch.float32).cuda()
    with torch.autocast("cuda", torch.bfloat16):
        packed = pairs.packed_logps(model, rows, batch)
    # bfloat16 keeps 8 bits; log-probs here are sums of up to 150 tokens.
    torch.testing.assert_close(packed.double().cpu(), exact, rtol=0.03, atol=0.5)
