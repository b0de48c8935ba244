"""What a training phase will need: the model's sizes, memory, disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from dpo_dist.config import Checkpointing, Config, Optimization, Train
from dpo_dist.data.models import is_hub_id
from dpo_dist.errors import ModelError
from dpo_dist.planning.hardware import preset_for, preset_shape
from dpo_dist.planning.memory import ModelShape, planned_peak, trained_parameters
from dpo_dist.training.job import launch_shape


def model_shape(model: str, trust_remote_code: bool) -> ModelShape:
    """The sizes of a model, from its configuration alone."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    return ModelShape.of(config.get_text_config())


def find_shape(config: Config, preset: str | None = None) -> tuple[ModelShape, str]:
    """The model's sizes and where they come from: its own configuration, or the table of common
    models. Nothing is fetched. Raises `ModelError` where neither has it."""
    base = config.model.base
    if preset is not None:
        return preset_shape(preset), f"--model-shape {preset}"
    if (Path(base) / "config.json").exists():
        return model_shape(base, config.model.trust_remote_code), f"{base}/config.json"
    if (named := preset_for(base)) is not None:
        return preset_shape(named), f"planning/models.toml: {named}"
    cached = " nor in the Hub's cache," if is_hub_id(base) else ","
    if is_hub_id(base) and (shape := _cached_shape(config)) is not None:
        return shape, f"{base} in the Hub's cache"
    raise ModelError(
        f"{base}: its configuration is not on this machine{cached} and the table of common models "
        "has no such name; name the shape with --model-shape (Llama-3.1-8B, Mistral-7B, ...)"
    )


def _cached_shape(config: Config) -> ModelShape | None:
    """Of a model that was loaded here before."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(config.model.base, "config.json")
    if not isinstance(found, str):
        return None
    return model_shape(str(Path(found).parent), config.model.trust_remote_code)


def training_disk(shape: ModelShape, settings: Optimization) -> int:
    """Bytes of a training's checkpoints and of the model that it leaves.

    A trained weight is 16 bytes of a checkpoint: 2 as safetensors, 2 as DeepSpeed's, and 12 of
    master weights and moments. One more than are kept exists while the newest is written.
    """
    trained = trained_parameters(shape, settings.method)
    kept = settings.keep_checkpoints + 1
    merged = 0
    if isinstance(settings, Train):
        kept += settings.select == "best"
        merged = 2 * shape.parameters if settings.merge else 0
    return trained * (16 * kept + 4) + merged


def planned_bytes(
    shape: ModelShape, settings: Optimization, lengths: Sequence[int]
) -> dict[Checkpointing, int]:
    """A process's planned peak for the longest micro-batch, by the kind of checkpointing.

    `lengths` are the rows' tokens; every one of them may have to be predicted.
    """
    longest = sum(sorted(lengths)[-settings.micro_batch_size :])
    processes, stage = launch_shape(settings.accelerate_config)
    kinds: tuple[Checkpointing, ...] = get_args(Checkpointing)
    return {
        kind: sum(
            planned_peak(
                shape,
                settings.method,
                tokens=longest,
                scored=longest,
                bf16=settings.bf16,
                checkpointing=kind,
                zero_stage=stage,
                processes=processes,
            ).values()
        )
        for kind in kinds
    }
