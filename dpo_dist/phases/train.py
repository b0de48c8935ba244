"""train: DPO on the preference pairs, against the SFT model that produced them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dpo_dist.artifacts import FINGERPRINT, PhaseDirectory, read_json
from dpo_dist.config import Config
from dpo_dist.console import warn
from dpo_dist.data.chat import completion_ids, load_tokenizer
from dpo_dist.data.preferences import load_preferences, preferences_identity
from dpo_dist.data.rows import write_parquet
from dpo_dist.errors import DataError, ModelError
from dpo_dist.phases.runs import arm_weights, run_root
from dpo_dist.records import PreferencePair
from dpo_dist.training.job import TrainingJob, accumulation_steps, num_processes
from dpo_dist.training.launch import launch

SECTIONS = ("train", "preferences")


def inputs(config: Config) -> dict[str, Any]:
    """What the phase reads: the pairs, and the SFT model to start from and be measured by.

    Raises `ModelError` when the candidates were sampled from other weights than those: the
    reference of DPO is the model that the preferences are about.
    """
    assert config.train is not None
    accumulation_steps(config.train, num_processes(config.train.accelerate_config))
    weights = arm_weights(config, "sft").identity()
    if config.preferences.source == "judged":
        sampled = read_json(run_root(config) / "sample" / FINGERPRINT)["inputs"]["weights"]
        if sampled != weights:
            raise ModelError(
                "the candidates were sampled from other weights than the SFT model that "
                "training would start from. Sample and judge again, or restore the SFT model."
            )
    pairs = preferences_identity(config.preferences, run_root(config) / "judge")
    return {"pairs": pairs, "weights": weights}


def run(config: Config, out: PhaseDirectory) -> dict[str, Any]:
    """Tokenize the pairs and train; the adapter or model ends up in `model/`."""
    assert config.train is not None
    pairs = load_preferences(config.preferences, run_root(config) / "judge", config.run.seed)
    weights = arm_weights(config, "sft")
    tokenizer = load_tokenizer(weights.model, trust_remote_code=config.model.trust_remote_code)

    def tokenize(split: Sequence[PreferencePair]) -> list[dict[str, Any]]:
        rows = []
        for pair in split:
            prompt, chosen = completion_ids(tokenizer, pair.prompt, pair.chosen)
            _, rejected = completion_ids(tokenizer, pair.prompt, pair.rejected)
            assert config.train is not None
            if len(prompt) + max(len(chosen), len(rejected)) <= config.train.max_length:
                ids = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
                rows.append(ids)
            else:
                pairs.dropped["too_long"] += 1
        return rows

    train_rows, validation_rows = tokenize(pairs.train), tokenize(pairs.validation)
    if not train_rows:
        raise DataError(f"every pair is longer than train.max_length {config.train.max_length}")
    if too_long := pairs.dropped["too_long"]:
        warn(f"{too_long} pairs are left out: longer than train.max_length")
    launch(
        TrainingJob(
            kind="dpo",
            settings=config.train,
            model=weights.model,
            adapter=weights.adapter,
            dtype=config.model.dtype,
            trust_remote_code=config.model.trust_remote_code,
            rows=write_parquet(out.path / "tokens" / "train.parquet", train_rows),
            validation_rows=(
                write_parquet(out.path / "tokens" / "validation.parquet", validation_rows)
                if validation_rows
                else None
            ),
            out=out.path,
            seed=config.run.seed,
            run_name=f"{config.run.name}-train",
            wandb=config.tracking.wandb,
        )
    )
    kept = len(train_rows) + len(validation_rows)
    return {
        "counts": {
            "in": kept + sum(pairs.dropped.values()),
            "kept": kept,
            "dropped": dict(pairs.dropped),
        },
        "pairs": {"train": len(train_rows), "validation": len(validation_rows)},
        "processes": num_processes(config.train.accelerate_config),
        "peak_rss_bytes": int((out.path / "peak_rss_bytes").read_text()),
    }
