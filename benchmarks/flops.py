"""How many floating-point operations a preference pair needs, whoever trains on it.

With N weights in the linear layers, T = P - 1 + C + R positions (the prompt once), S = C + R scored
ones, A query-key pairs: b = 2NT for the layers, t = 4adLA for attention, e = 2VhS for the head. All
weights: 3(b + t + e). LoRA needs no gradient by the frozen weights: 2b + 3t + 2e + 6 N_lora T.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from dpo_dist.config import Lora
from dpo_dist.estimates.memory import ModelShape


@cache
def _shape(model: str) -> ModelShape:
    from transformers import AutoConfig

    return ModelShape.of(AutoConfig.from_pretrained(model))


def useful_flops(model: str, row: Mapping[str, Any], method: str) -> float:
    """FLOP of one optimizer step's forward and backward on one pair, the reference left out."""
    shape = _shape(model)
    prompt, chosen, rejected = (
        len(row[f"{name}_ids"]) for name in ("prompt", "chosen", "rejected")
    )
    tokens, scored = prompt - 1 + chosen + rejected, chosen + rejected
    pairs = prompt**2 / 2 + sum(n * (prompt + n / 2) for n in (chosen, rejected))
    body = 2.0 * shape.body_parameters * tokens
    attention = 4.0 * shape.heads * shape.head_dim * shape.layers * pairs
    head = 2.0 * shape.vocabulary * shape.hidden * scored
    if method == "full":
        return 3 * (body + attention + head)
    adapters = 6.0 * shape.lora_parameters(Lora().r) * tokens
    return 2 * body + 3 * attention + 2 * head + adapters
