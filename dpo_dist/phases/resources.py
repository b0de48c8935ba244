"""What a training phase will need, from its rows and the model's configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from dpo_dist.config import Checkpointing, Optimization
from dpo_dist.planning.memory import ModelShape, planned_peak
from dpo_dist.training.job import launch_shape


def model_shape(model: str, trust_remote_code: bool) -> ModelShape:
    """The sizes of a model, from its configuration alone."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    return ModelShape.of(config.get_text_config())


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
