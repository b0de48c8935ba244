"""What an engine is asked and what it answers, and the choice of the engine."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dpo_dist.config import (
    VLLM_LORA_RANKS,
    EngineConfig,
    HfEngine,
    Sampling,
    VllmEngine,
    VllmServer,
)
from dpo_dist.errors import ModelError
from dpo_dist.storage.records import FinishReason
from dpo_dist.system import ranks


@dataclass(frozen=True)
class Request:
    """One answer to draw. `prompt_ids` already carry the template and its single BOS, if any.

    `adapter` is the directory of a LoRA adapter on the engine's model, or None for the model
    as it is. `seed` fixes the noise of this answer, whatever else is drawn beside it; None takes
    the engine's.
    """

    id: str
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    max_tokens: int
    adapter: Path | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Completion:
    """The answer to the request of that id; `text` leaves out special tokens."""

    id: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason


def lora_rank(adapters: Sequence[Path]) -> int:
    """The smallest rank that vLLM offers and that holds every adapter. Raises `ModelError` for one
    that is too large."""
    adapter_of = {
        int(json.loads((adapter / "adapter_config.json").read_text())["r"]): adapter
        for adapter in adapters
    }
    needed = max(adapter_of)
    if needed > VLLM_LORA_RANKS[-1]:
        raise ModelError(
            f"{adapter_of[needed]}: an adapter of rank {needed}, and vLLM serves no more than "
            f"{VLLM_LORA_RANKS[-1]}. Use the engine `hf`, or merge it into its model."
        )
    return next(rank for rank in VLLM_LORA_RANKS if rank >= needed)


class Engine(Protocol):
    """Answers requests; `identity` names what has to be the same for the same answers."""

    identity: str
    max_model_len: int

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield one completion per request, in the order in which they finish. Requests are drawn
        as there is room for them, so that a generator need not hold them all.

        A request whose prompt leaves no room for `max_tokens` within `max_model_len` is the
        caller's mistake (an assertion): callers count and skip it before.
        """
        ...

    def close(self) -> None:
        """Give back the memory and the processes."""
        ...


def build_engine(
    config: EngineConfig,
    model: str,
    *,
    dtype: str,
    seed: int,
    adapters: Sequence[Path] = (),
    seeded: bool = False,
    trust_remote_code: bool = False,
) -> Engine:
    """Start an engine on `model`, able to serve the LoRA `adapters` on top of it, for requests of
    which all or none have a seed of their own (`seeded`); servers were started with their own
    dtype, seed and trust."""
    ranks.strip_launcher_variables()
    match config:
        case VllmEngine():
            from dpo_dist.generation.vllm_engine import VllmInProcess

            return VllmInProcess(
                config,
                model,
                dtype=dtype,
                seed=seed,
                adapters=adapters,
                seeded=seeded,
                trust_remote_code=trust_remote_code,
            )
        case VllmServer():
            from dpo_dist.generation.vllm_server import VllmServers

            return VllmServers(config, model, adapters=adapters)
        case HfEngine():
            from dpo_dist.generation.hf_engine import HfInProcess

            return HfInProcess(
                config,
                model,
                dtype=dtype,
                seed=seed,
                adapters=adapters,
                trust_remote_code=trust_remote_code,
            )
