"""The packed path on a GPU: the varlen kernel against the definition."""

from __future__ import annotations

import pytest
import torch

from dpo_dist.training.attention import Use, self_test
from dpo_dist.training.segment_attention import Rule

pairs = pytest.importorskip("tests.numerics.pairs", reason="TRL is not installed")
pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("width", "value_width", "rule", "sinks"),
    [
        (64, 64, Rule(0.125), False),
        (192, 128, Rule(0.07), False),
        (64, 64, Rule(0.125, window=7), False),
        (64, 64, Rule(0.125, window=7), True),
        (64, 64, Rule(0.125, softcap=50.0), False),
        (512, 512, Rule(1.0), False),
    ],
)
def test_the_kernels_pass_the_start_up_check(
    width: int, value_width: int, rule: Rule, sinks: bool, dtype: torch.dtype
) -> None:
    self_test(Use(torch.device("cuda"), dtype, 8, 2, width, value_width, rule, sinks))


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2", "granite_swa", "minicpm3"])
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
