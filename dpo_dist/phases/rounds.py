"""The prompts of a round: all of them, or its own part."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dpo_dist.config import Config
from dpo_dist.data.prompts import iterate_prompts, split_prompts
from dpo_dist.storage.records import Prompt


def round_prompts(config: Config) -> Iterable[Prompt]:
    """The prompts that are sampled, one by one: all, or the round's part of them."""
    assert config.sample is not None
    prompts = iterate_prompts(config.sample.prompts)
    if not _splits(config):
        return prompts
    assert config.rounds is not None
    return split_prompts(list(prompts), config.rounds.count, config.run.seed)[config.round - 1]


def part_identity(config: Config) -> dict[str, Any]:
    """What says in a fingerprint which part of the prompts is sampled; nothing where all are."""
    if not _splits(config):
        return {}
    assert config.rounds is not None
    return {"part": f"{config.round} of {config.rounds.count}"}


def _splits(config: Config) -> bool:
    return config.rounds is not None and config.rounds.prompts == "split"
