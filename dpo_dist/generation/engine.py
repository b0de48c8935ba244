"""The interface of an engine: requests, completions and the protocol."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dpo_dist.config import VLLM_LORA_RANKS, Sampling
from dpo_dist.errors import ModelError
from dpo_dist.storage.records import FinishReason


@dataclass(frozen=True)
class Request:
    """One answer to generate. `prompt_ids` include the chat template and its BOS token, if any.
    `adapter` is a LoRA adapter's directory; None: the engine's model without one. `seed` makes
    this answer independent of the other requests; None: the engine's seed. `log_prob` asks for the
    answer's log-prob."""

    id: str
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    max_tokens: int
    adapter: Path | None = None
    seed: int | None = None
    log_prob: bool = False


@dataclass(frozen=True)
class Completion:
    """The answer to the request with the same id; `text` leaves out special tokens. `log_prob` is
    that of `token_ids` under the model itself, at temperature 1 and without filters (nats); None if
    it was not asked for, or the engine does not tell it."""

    id: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    log_prob: float | None = None


def lora_rank(adapters: Sequence[Path]) -> int:
    """The smallest rank of vLLM that fits all adapters. Raises `ModelError` if one is too large."""
    adapter_of = {
        int(json.loads((adapter / "adapter_config.json").read_text())["r"]): adapter
        for adapter in adapters
    }
    needed = max(adapter_of)
    if needed > VLLM_LORA_RANKS[-1]:
        raise ModelError(
            f"{adapter_of[needed]}: the adapter has rank {needed}, but vLLM supports at most "
            f"{VLLM_LORA_RANKS[-1]}. Use the engine `hf`, or merge the adapter into its model."
        )
    return next(rank for rank in VLLM_LORA_RANKS if rank >= needed)


class Engine(Protocol):
    """Answers requests. `identity` names everything that the answers depend on."""

    identity: str
    max_model_len: int

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield one completion per request, in the order in which they finish. Requests are
        consumed lazily. Raises `AssertionError` if prompt and `max_tokens` exceed `max_model_len`:
        callers must skip and count such requests."""

    def close(self) -> None:
        """Release memory and end the engine's processes."""
