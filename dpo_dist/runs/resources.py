"""What a training phase will need, from its rows and the model's configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from dpo_dist.config import Checkpointing, Optimization, Train
from dpo_dist.estimates.memory import ModelShape
from dpo_dist.estimates.sharding import ZERO_STAGE, Strategy, planned_peak
from dpo_dist.system.machine import has_cuda
from dpo_dist.training.job import launch_shape, offloads, uses_fsdp


def model_shape(model: str, trust_remote_code: bool) -> ModelShape:
    """The sizes of a model, from its configuration alone."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    return ModelShape.of(config.get_text_config())


def planned_bytes(
    shape: ModelShape, settings: Optimization, lengths: Sequence[int], *, validates: bool = False
) -> dict[Checkpointing, int]:
    """A process's planned peak on this machine for the longest micro-batch, by the kind of
    checkpointing.

    `lengths` are the rows' tokens; every one of them may have to be predicted. `validates` says
    whether there are validation rows, on which the KL is measured.
    """
    longest = sum(sorted(lengths)[-settings.micro_batch_size :])
    processes, _ = launch_shape(settings.accelerate_config)
    on_cpu = not has_cuda()
    beside = isinstance(settings, Train) and settings.has_second_model(validates=validates)
    live = isinstance(settings, Train) and settings.reference == "live"
    kinds: tuple[Checkpointing, ...] = get_args(Checkpointing)
    return {
        kind: sum(
            planned_peak(
                *(shape, settings.method, strategy(settings.accelerate_config), processes),
                tokens=longest,
                scored=longest,
                checkpointing=kind,
                reference=shape.parameters if beside else 0,
                reference_size=4 if live else 2,
                bf16=settings.bf16 and not (on_cpu and processes > 1),  # float32 there
                on_cpu=on_cpu,
            ).values()
        )
        for kind in kinds
    }


def strategy(accelerate_config: Path, processes: int | None = None) -> Strategy:
    """How an accelerate configuration shards among its own processes, or as many as are given.
    FSDP2 shards all that ZeRO-3 does."""
    own, stage = launch_shape(accelerate_config)
    processes = processes or own
    if uses_fsdp(accelerate_config):
        return "zero3"
    if stage == 3 and offloads(accelerate_config):
        return "zero3_offload"
    if stage == 0:
        return "single_gpu" if processes == 1 else "ddp"
    return next(name for name, its_stage in ZERO_STAGE.items() if its_stage == stage)
