"""What a training needs from the machine: model sizes, planned memory and sharding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from dpo_dist.config import Checkpointing, Model, Optimization, Train
from dpo_dist.data.models import is_hub_id
from dpo_dist.errors import ModelError
from dpo_dist.estimates.hardware import find_device, preset_for, preset_shape
from dpo_dist.estimates.memory import ModelShape
from dpo_dist.estimates.sharding import ZERO_STAGE, Strategy, planned_peak
from dpo_dist.system.machine import gpus, has_cuda
from dpo_dist.training.launch_shape import LaunchShape


def model_shape(model: str, trust_remote_code: bool) -> ModelShape:
    """The sizes of a model, from its configuration."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    return ModelShape.of(config.get_text_config())


def planned_bytes(
    shape: ModelShape, settings: Optimization, lengths: Sequence[int], *, validates: bool = False
) -> dict[Checkpointing, int]:
    """A process's planned peak memory on this machine in bytes, for the longest micro-batch, by
    kind of checkpointing. `lengths` are the rows' numbers of tokens; each token may have to be
    predicted. `validates`: there are validation rows, on which the KL is measured."""
    longest = sum(sorted(lengths)[-settings.micro_batch_size :])
    launch = LaunchShape.of(settings)
    processes = launch.processes
    on_cpu = not has_cuda()
    second = isinstance(settings, Train) and settings.has_second_model(validates=validates)
    live = isinstance(settings, Train) and settings.reference == "live"
    kinds: tuple[Checkpointing, ...] = get_args(Checkpointing)
    return {
        kind: sum(
            planned_peak(
                shape,
                settings.method,
                strategy(launch),
                processes,
                tokens=longest,
                scored=longest,
                checkpointing=kind,
                reference=shape.parameters if second else 0,
                reference_size=4 if live else 2,
                bf16=settings.bf16 and not (on_cpu and processes > 1),  # else float32
                on_cpu=on_cpu,
            ).values()
        )
        for kind in kinds
    }


def gpu_flops() -> float | None:
    """bf16 FLOP/s of a GPU of this machine by its data sheet; None without a GPU, and for one that
    is unknown."""
    found = next(iter(gpus()), None)
    known = None if found is None else find_device(found.name)
    return None if known is None else known.flops


def strategy(launch: LaunchShape, processes: int | None = None) -> Strategy:
    """The sharding strategy of a training, for its own or the given number of processes. FSDP2
    shards the same tensors as ZeRO-3."""
    processes = processes or launch.processes
    if launch.fsdp:
        return "zero3"
    if launch.zero_stage == 3 and launch.offloads:
        return "zero3_offload"
    if launch.zero_stage == 0:
        return "single_gpu" if processes == 1 else "ddp"
    return next(name for name, stage in ZERO_STAGE.items() if stage == launch.zero_stage)


def find_shape(model: Model, preset: str | None = None) -> tuple[ModelShape, str]:
    """The model's sizes and their source: its configuration or the table of common models. Nothing
    is downloaded. Raises `ModelError` if neither has the model."""
    base = model.base
    if preset is not None:
        return preset_shape(preset), f"--model-shape {preset}"
    if (Path(base) / "config.json").exists():
        return model_shape(base, model.trust_remote_code), f"{base}/config.json"
    if (named := preset_for(base)) is not None:
        return preset_shape(named), f"estimates/models.toml: {named}"
    cached = ","
    if is_hub_id(base):
        from huggingface_hub import try_to_load_from_cache

        cached = " nor in the Hub's cache,"
        found = try_to_load_from_cache(base, "config.json")
        if isinstance(found, str):
            shape = model_shape(str(Path(found).parent), model.trust_remote_code)
            return shape, f"{base} in the Hub's cache"
    raise ModelError(
        f"{base}: its configuration is not on this machine{cached} and the model is not in the "
        "table of common models; name its shape with --model-shape (Llama-3.1-8B, Mistral-7B, ...)"
    )
