"""train: DPO on the preference pairs, against the model that produced them."""

from __future__ import annotations

import json
from typing import Any

from dpo_dist.config import Config, Full, Lora, Train
from dpo_dist.data.chat import load_tokenizer
from dpo_dist.data.preferences import load_preferences, preferences_identity
from dpo_dist.errors import ConfigError, DataError, ModelError
from dpo_dist.estimates.memory import ModelShape
from dpo_dist.phases.held_out import held_out_identity, held_out_prompts
from dpo_dist.phases.token_rows import write_token_rows
from dpo_dist.runs.directories import check_complete, phase_dir, run_root
from dpo_dist.runs.resources import model_shape, planned_bytes
from dpo_dist.runs.weights import Weights, reference_name, reference_weights, start_weights
from dpo_dist.storage.artifacts import FINGERPRINT, PhaseDirectory, read_json
from dpo_dist.system.console import counted, warn
from dpo_dist.tracking import tracked_run
from dpo_dist.training.job import (
    OUTCOME,
    InitialReference,
    TrainingJob,
    accumulation_steps,
    num_processes,
)
from dpo_dist.training.merging import merge_adapter
from dpo_dist.training.nodes import Leader
from dpo_dist.training.reference_pass import compute_reference
from dpo_dist.training.supervise import launch

SECTIONS = ("train", "preferences")


def inputs(config: Config) -> dict[str, Any]:
    """What the phase reads: the pairs, the model to start from and be measured by (or, in a
    round, the initial SFT model as another reference), and the held-out prompts that pairs from
    elsewhere may not be about.

    Raises `DataError` where judged pairs are not there yet, and `ModelError` when the candidates
    were sampled from other weights than those it starts from: the preferences of DPO are about its
    own answers.
    """
    assert config.train is not None
    accumulation_steps(config.train, num_processes(config.train.accelerate_config))
    start = start_weights(config)
    _check_method(config.train, start)
    judged = config.preferences.source == "judged"
    if judged:
        check_complete(config, "sample")
    weights = start.identity()
    if judged:
        sampled = read_json(phase_dir(config, "sample") / FINGERPRINT)["inputs"]["weights"]
        if sampled != weights:
            raise ModelError(
                "the candidates were sampled from different weights than the model training would "
                "start from. Sample and judge again, or restore the model."
            )
        check_complete(config, "judge")
    pairs = preferences_identity(config.preferences, phase_dir(config, "judge"))
    held_out = None if judged else held_out_identity(config)
    other = reference_weights(config)
    reference = {} if other is None else {"reference": other.identity()}
    return {"pairs": pairs, "weights": weights, "held_out": held_out, **reference}


def run(config: Config, out: PhaseDirectory, leader: Leader | None = None) -> dict[str, Any]:
    """Tokenize the pairs and train, on several machines where there is a `leader`; the adapter or
    model ends up in `model/`."""
    assert config.train is not None
    # The judge phase has left out what overlaps with the evaluation, before it asked.
    held_out = [] if config.preferences.source == "judged" else held_out_prompts(config)
    pairs = load_preferences(
        config.preferences,
        phase_dir(config, "judge"),
        config.run.seed,
        held_out,
        same_in_every_round=config.rounds is not None,
    )
    start = start_weights(config)
    tokenizer = load_tokenizer(start.model, trust_remote_code=config.model.trust_remote_code)
    train_rows, validation_rows = (
        write_token_rows(
            *(out.path / "tokens" / name, tokenizer, split),
            *(config.train.max_length, pairs.dropped),
        )
        for name, split in (
            ("train.parquet", pairs.train),
            ("validation.parquet", pairs.validation),
        )
    )
    if not train_rows:
        raise DataError(f"every pair is longer than train.max_length {config.train.max_length}")
    if config.train.select == "best" and not validation_rows:
        raise ConfigError("train.select: best needs validation pairs, and there are none")
    if overlapping := pairs.dropped["evaluation_overlap"]:
        warn(
            f"{counted(overlapping, 'pair')} left out: their prompts overlap with the held-out "
            "prompts"
        )
    if too_long := pairs.dropped["too_long"] + pairs.dropped["prompt_too_long"]:
        warn(f"{counted(too_long, 'pair')} left out: longer than train.max_length")
    shape = model_shape(start.model, config.model.trust_remote_code)
    _check_vocabulary(start.model, shape, max(train_rows.largest, validation_rows.largest))
    job = TrainingJob(
        kind="dpo",
        settings=config.train,
        model=start.model,
        adapter=start.adapter,
        dtype=config.model.dtype,
        trust_remote_code=config.model.trust_remote_code,
        rows=train_rows.path,
        validation_rows=validation_rows.path if validation_rows else None,
        # Beside the runs, which share it: a sweep computes the reference once.
        reference_folder=config.run.output_dir / "reference_logps",
        start=start.identity(),
        reference=_initial_reference(config),
        planned_peak_bytes=planned_bytes(
            *(shape, config.train, [*train_rows.lengths, *validation_rows.lengths]),
            validates=bool(validation_rows),
        ),
        out=out.path,
        seed=config.run.seed,
        run_name=f"{config.run.name}-train" + (f"-round-{config.round}" if config.round else ""),
        wandb=tracked_run(config, run_root(config), out.path),
    )
    if job.reference is not None:
        compute_reference(job, leader)
    launch(job, leader)
    if config.train.merge:
        _merge(config, start.model, out)
    kept = len(train_rows) + len(validation_rows)
    return {
        "counts": {
            "in": kept + sum(pairs.dropped.values()),
            "kept": kept,
            "dropped": dict(pairs.dropped),
        },
        "pairs": {"train": len(train_rows), "validation": len(validation_rows)},
        "reference": reference_name(config),
        "processes": num_processes(config.train.accelerate_config),
        **read_json(out.path / OUTCOME),
    }


def _initial_reference(config: Config) -> InitialReference | None:
    """The reference, where it is not what training starts from."""
    weights = reference_weights(config)
    if weights is None:
        return None
    return InitialReference(
        model=weights.model, adapter=weights.adapter, identity=weights.identity()
    )


def _merge(config: Config, base: str, out: PhaseDirectory) -> None:
    """Beside the adapter in `model/`, the whole model in `merged/`."""
    merge_adapter(
        base,
        out.path / "model",
        out.path / "merged",
        dtype=config.model.dtype,
        trust_remote_code=config.model.trust_remote_code,
    )


def _check_method(settings: Train, start: Weights) -> None:
    """Refuse a method that cannot start from these weights."""
    if isinstance(settings.method, Full) and settings.merge:
        raise ConfigError("train.merge: there is no adapter to merge when all weights are trained")
    if start.adapter is None:
        return
    if isinstance(settings.method, Full) and settings.reference == "live":
        raise ConfigError(
            "train.reference: live cannot be the SFT adapter when all weights are trained: TRL "
            "would load the base. Use `cached`."
        )
    if isinstance(settings.method, Lora):
        adapter = json.loads((start.adapter / "adapter_config.json").read_text(encoding="utf-8"))
        for ours, theirs in (("r", "r"), ("alpha", "lora_alpha")):
            wanted, found = getattr(settings.method, ours), adapter[theirs]
            if wanted != found:
                raise ConfigError(
                    f"train.method.{ours} is {wanted}, but DPO continues training the SFT adapter "
                    f"{start.adapter}, whose {theirs} is {found}. Set it to {found}."
                )


def _check_vocabulary(model: str, shape: ModelShape, largest: int) -> None:
    """Refuse a tokenizer with more tokens than the model has embeddings."""
    if largest >= shape.vocabulary:
        raise ModelError(
            f"{model}: the tokenizer made the token {largest}, but the model has only "
            f"{shape.vocabulary} embeddings; tokenizer and model do not match"
        )
