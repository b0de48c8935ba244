"""The section `rounds`: iterative DPO."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PositiveInt, model_validator

from dpo_dist.config.base import Section


class Rounds(Section):
    """Sample from the current policy, judge, train, evaluate, and again: `rounds: 3` for short.

    Every round starts from what the one before has trained, the first from the SFT model.
    """

    count: PositiveInt
    # what a round is measured by: the policy that it starts from, or the initial SFT model
    reference: Literal["previous", "initial"] = "previous"
    # split: cut into `count` parts, so that each round sees prompts that none before it saw
    prompts: Literal["all", "split"] = "all"

    @model_validator(mode="before")
    @classmethod
    def _a_number(cls, value: Any) -> Any:
        is_number = isinstance(value, int) and not isinstance(value, bool)
        return {"count": value} if is_number else value
