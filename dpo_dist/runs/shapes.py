"""A model's sizes, where they can be known without fetching anything."""

from __future__ import annotations

from pathlib import Path

from dpo_dist.config import Config
from dpo_dist.data.models import is_hub_id
from dpo_dist.errors import ModelError
from dpo_dist.estimates.hardware import preset_for, preset_shape
from dpo_dist.estimates.memory import ModelShape
from dpo_dist.runs.resources import model_shape


def find_shape(config: Config, preset: str | None = None) -> tuple[ModelShape, str]:
    """The model's sizes and where they come from: its own configuration, or the table of common
    models. Nothing is fetched. Raises `ModelError` where neither has it."""
    base = config.model.base
    if preset is not None:
        return preset_shape(preset), f"--model-shape {preset}"
    if (Path(base) / "config.json").exists():
        return model_shape(base, config.model.trust_remote_code), f"{base}/config.json"
    if (named := preset_for(base)) is not None:
        return preset_shape(named), f"estimates/models.toml: {named}"
    cached = " nor in the Hub's cache," if is_hub_id(base) else ","
    if is_hub_id(base) and (shape := _cached_shape(config)) is not None:
        return shape, f"{base} in the Hub's cache"
    raise ModelError(
        f"{base}: its configuration is not on this machine{cached} and the table of common models "
        "has no such name; give the shape with --model-shape (Llama-3.1-8B, Mistral-7B, ...)"
    )


def _cached_shape(config: Config) -> ModelShape | None:
    """Of a model that was loaded here before."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(config.model.base, "config.json")
    if not isinstance(found, str):
        return None
    return model_shape(str(Path(found).parent), config.model.trust_remote_code)
