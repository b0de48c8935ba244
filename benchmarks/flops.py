"""The floating-point operations that training on a preference pair needs, for any trainer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from dpo_dist.config import Full, Lora
from dpo_dist.estimates.memory import ModelShape
from dpo_dist.estimates.throughput import Pair, training_flops


@cache
def _shape(model: str) -> ModelShape:
    from transformers import AutoConfig

    return ModelShape.of(AutoConfig.from_pretrained(model))


def useful_flops(model: str, row: Mapping[str, Any], method: str) -> float:
    """Operations of the forward and backward pass on one pair, with the prompt computed once and
    without the reference."""
    pair = Pair(*(len(row[f"{name}_ids"]) for name in ("prompt", "chosen", "rejected")))
    return training_flops(_shape(model), Full() if method == "full" else Lora(), pair)
