"""What a run leaves on the disk, in bytes."""

from __future__ import annotations

from dpo_dist.config import Config, Full
from dpo_dist.planning.memory import ModelShape, trained_parameters

# A token of a candidate, as text and as an id in JSON, and what stands beside it in its line.
ANSWER_TOKEN = 4 + 7
ROW_TOKEN = 8  # a token id in parquet, before compression


def disk_bytes(
    config: Config, shape: ModelShape, *, candidates: float, answers: float, rows: float
) -> dict[str, float]:
    """By what lies there. `candidates` and `answers` are their tokens, `rows` the pairs' tokens.

    A checkpoint of all weights: 2 bytes a weight as safetensors, 2 as DeepSpeed's, and 12 of
    master weights and moments; of LoRA 16 a trained weight. One more than are kept exists while
    the newest is written.
    """
    found = {"candidates": candidates * ANSWER_TOKEN, "generations": answers * ANSWER_TOKEN}
    train = config.train
    if train is None:
        return found
    trained = trained_parameters(shape, train.method)
    kept = train.keep_checkpoints + 1 + (train.select == "best")
    full = isinstance(train.method, Full)
    return found | {
        "tokens of the pairs": rows * ROW_TOKEN,
        "checkpoints while training": 16.0 * trained * kept,
        "the model at its end": 2.0 * trained if full else 4.0 * trained,
        "the merged model": 2.0 * shape.parameters if train.merge else 0.0,
    }
