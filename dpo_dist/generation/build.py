"""Builds the engine that a run file's section describes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dpo_dist.config import ChatTemplate, EngineConfig, HfEngine, VllmEngine, VllmServer
from dpo_dist.data.chat import end_token_ids, load_tokenizer
from dpo_dist.generation.engine import Engine
from dpo_dist.system import ranks


def build_engine(
    config: EngineConfig,
    model: str,
    *,
    dtype: str,
    seed: int,
    adapters: Sequence[Path] = (),
    seeded: bool = False,
    template: ChatTemplate | None = None,
    trust_remote_code: bool = False,
) -> Engine:
    """Start an engine on `model` that can serve the LoRA `adapters` on top of it. `seeded`: every
    request has its own seed. Servers have their own `dtype`, `seed` and `trust_remote_code`. All
    engines end an answer at the same tokens, those of the model with the chat `template`."""
    ranks.strip_launcher_variables()
    tokenizer = load_tokenizer(model, template, trust_remote_code=trust_remote_code)
    ends = tuple(sorted(end_token_ids(tokenizer)))
    match config:
        case VllmEngine():
            from dpo_dist.generation.vllm_engine import VllmInProcess

            return VllmInProcess(
                config, model, ends, dtype, seed, adapters, seeded, trust_remote_code
            )
        case VllmServer():
            from dpo_dist.generation.vllm_server import VllmServers

            return VllmServers(config, model, ends=ends, adapters=adapters)
        case HfEngine():
            from dpo_dist.generation.hf_engine import HfInProcess

            return HfInProcess(
                config, model, tokenizer, ends, dtype, seed, adapters, trust_remote_code
            )
