"""What a run leaves on the disk, in bytes."""

from __future__ import annotations

from dpo_dist.config import Config
from dpo_dist.estimates.disk import training_disk
from dpo_dist.estimates.memory import ModelShape

# A token of a candidate, as text and as an id in JSON, and what stands beside it in its line.
ANSWER_TOKEN = 4 + 7
ROW_TOKEN = 8  # a token id in parquet, before compression


def disk_bytes(
    config: Config, shape: ModelShape, *, candidates: float, answers: float, rows: float
) -> dict[str, float]:
    """By what lies there. `candidates` and `answers` are their tokens, `rows` the pairs' tokens."""
    found = {"candidates": candidates * ANSWER_TOKEN, "generations": answers * ANSWER_TOKEN}
    if config.train is None:
        return found
    training = training_disk(shape, config.train, config.model)
    return found | {"tokens of the pairs": rows * ROW_TOKEN, **training}
