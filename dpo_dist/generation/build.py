"""Builds the engine that a run file's section describes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dpo_dist.config import EngineConfig, HfEngine, VllmEngine, VllmServer
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
    trust_remote_code: bool = False,
) -> Engine:
    """Start an engine on `model` that can serve the LoRA `adapters` on top of it. `seeded`: every
    request has its own seed. Servers have their own `dtype`, `seed` and `trust_remote_code`."""
    ranks.strip_launcher_variables()
    match config:
        case VllmEngine():
            from dpo_dist.generation.vllm_engine import VllmInProcess

            return VllmInProcess(config, model, dtype, seed, adapters, seeded, trust_remote_code)
        case VllmServer():
            from dpo_dist.generation.vllm_server import VllmServers

            return VllmServers(config, model, adapters=adapters)
        case HfEngine():
            from dpo_dist.generation.hf_engine import HfInProcess

            return HfInProcess(config, model, dtype, seed, adapters, trust_remote_code)
