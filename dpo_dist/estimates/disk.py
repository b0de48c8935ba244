"""What a training needs on the disk."""

from __future__ import annotations

from dpo_dist.config import Model, Optimization, Train
from dpo_dist.estimates.memory import ModelShape, trained_parameters


def training_disk(shape: ModelShape, section: Optimization, model: Model) -> dict[str, int]:
    """Bytes at most, by what lies there.

    A checkpoint: 2 bytes a trained weight as safetensors, 2 as DeepSpeed's, and 12 of master
    weights and moments; without DeepSpeed 4 and 8. One more than are kept exists while the newest
    is written. The trained weights themselves are float32 without DeepSpeed's bfloat16.
    """
    trained = trained_parameters(shape, section.method)
    best = isinstance(section, Train) and section.select == "best"
    merged = isinstance(section, Train) and section.merge
    return {
        "checkpoints while training": 16 * trained * (section.keep_checkpoints + 1 + best),
        "the model at its end": 4 * trained,
        "the merged model": merged * shape.parameters * (2 if model.dtype == "bfloat16" else 4),
    }
