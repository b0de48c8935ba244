"""sft: imitate demonstrations, so that the base answers in the task's form at all."""

from __future__ import annotations

from typing import Any

from dpo_dist.config import Config
from dpo_dist.data.chat import completion_ids, load_tokenizer
from dpo_dist.data.prompts import read_demonstrations
from dpo_dist.data.rows import source_identity, write_parquet
from dpo_dist.errors import DataError
from dpo_dist.runs.directories import run_root
from dpo_dist.runs.resources import model_shape, planned_bytes
from dpo_dist.runs.weights import arm_weights
from dpo_dist.storage.artifacts import PhaseDirectory
from dpo_dist.system.console import counted, warn
from dpo_dist.tracking import tracked_run
from dpo_dist.training.job import TrainingJob
from dpo_dist.training.nodes import Leader
from dpo_dist.training.supervise import launch

SECTIONS = ("sft",)


def inputs(config: Config) -> dict[str, Any]:
    """What the phase reads: the demonstrations and the base model."""
    assert config.sft is not None
    return {
        "data": source_identity(config.sft.data),
        "weights": arm_weights(config, "base").identity(),
    }


def run(config: Config, out: PhaseDirectory, leader: Leader | None = None) -> dict[str, Any]:
    """Tokenize, train with `accelerate launch`, on several machines where there is a `leader`, and
    leave an adapter or model in `model/`."""
    assert config.sft is not None
    base = arm_weights(config, "base").model
    tokenizer = load_tokenizer(base, trust_remote_code=config.model.trust_remote_code)
    demonstrations = read_demonstrations(config.sft.data)
    rows = []
    for demonstration in demonstrations:
        answer = demonstration.completion[0].content
        prompt, completion = completion_ids(tokenizer, demonstration.prompt, answer)
        if len(prompt) + len(completion) <= config.sft.max_length:
            mask = [0] * len(prompt) + [1] * len(completion)
            rows.append({"input_ids": prompt + completion, "completion_mask": mask})
    if not rows:
        raise DataError(f"every sft row is longer than sft.max_length {config.sft.max_length}")
    too_long = len(demonstrations) - len(rows)
    if too_long:
        warn(f"{counted(too_long, 'row')} left out: longer than sft.max_length")
    launch(
        TrainingJob(
            kind="sft",
            settings=config.sft,
            model=base,
            dtype=config.model.dtype,
            trust_remote_code=config.model.trust_remote_code,
            rows=write_parquet(out.path / "tokens" / "train.parquet", rows),
            planned_peak_bytes=planned_bytes(
                model_shape(base, config.model.trust_remote_code),
                config.sft,
                [len(row["input_ids"]) for row in rows],
            ),
            out=out.path,
            seed=config.run.seed,
            run_name=f"{config.run.name}-sft",
            wandb=tracked_run(config, run_root(config), out.path),
        ),
        leader,
    )
    return {
        "counts": {
            "in": len(demonstrations),
            "kept": len(rows),
            "dropped": {"too_long": too_long},
        }
    }
