"""What the evaluation will ask, as the phases that lead to it have to know it."""

from __future__ import annotations

from typing import Any

from dpo_dist.config import Config
from dpo_dist.data.prompts import read_prompts
from dpo_dist.data.rows import source_identity
from dpo_dist.storage.records import Prompt


def held_out_prompts(config: Config) -> list[Prompt]:
    """The evaluation's prompts; none where the run file has no `evaluate` section."""
    return read_prompts(config.evaluate.prompts) if config.evaluate is not None else []


def held_out_identity(config: Config) -> dict[str, Any] | None:
    """What identifies them in a fingerprint."""
    return source_identity(config.evaluate.prompts) if config.evaluate is not None else None
