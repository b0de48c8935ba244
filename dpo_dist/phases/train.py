"""train: DPO on the preference pairs, against the model that produced them."""

from __future__ import annotations

import shutil
from pathlib import Path

from pydantic import JsonValue

from dpo_dist.config import Lora, required
from dpo_dist.data.chat import load_tokenizer
from dpo_dist.data.preferences import PreferenceSet, load_preferences, preferences_identity
from dpo_dist.data.templates import try_pairs
from dpo_dist.errors import ConfigError, DataError, ModelError
from dpo_dist.estimates.memory import ModelShape
from dpo_dist.estimates.throughput import flops_per_token
from dpo_dist.phases.token_rows import TokenRows, write_token_rows
from dpo_dist.phases.trial import try_prompts_of
from dpo_dist.runs.manifests import PairCounts, PairSource, TrainResult
from dpo_dist.runs.resources import gpu_flops, model_shape, planned_bytes
from dpo_dist.runs.run import Run
from dpo_dist.runs.weights import Weights
from dpo_dist.storage.artifacts import PhaseDirectory
from dpo_dist.storage.figures import read_figures
from dpo_dist.storage.manifest import Counts, read_fingerprint
from dpo_dist.system.console import counted, warn
from dpo_dist.system.machine import has_cuda
from dpo_dist.training.adapters import check_method
from dpo_dist.training.job import (
    OUTCOME,
    InitialReference,
    TrainingJob,
    TrainingOutcome,
)
from dpo_dist.training.launch_shape import LaunchShape
from dpo_dist.training.merging import merge_adapter
from dpo_dist.training.reference import reference_job
from dpo_dist.training.worker import launch

# Models that full fine-tuning starts from, if the SFT model is an adapter; removed at its end.
MERGED = "merged_start"


class TrainPhase:
    """Trains an adapter or a model on the pairs, and writes it to `model/`."""

    name = "train"
    sections = ("train", "preferences")

    def inputs(self, run: Run) -> dict[str, JsonValue]:
        """The pairs, the starting weights, the reference if it is another model, and for pairs from
        outside the run the held-out prompts, which they must not contain.

        Raises `DataError` if judged pairs are missing, and `ModelError` if the candidates were
        sampled from weights other than the starting weights: DPO needs preferences between the
        model's own answers.
        """
        config, section = run.config, required(run.config.train)
        start = run.start_weights()
        check_method(section, start.adapter, config.model)
        judged = config.preferences.source == "judged"
        sampled = read_fingerprint(run.require("sample")).inputs["weights"] if judged else None
        weights = start.identity()
        if judged:
            if sampled != weights:
                raise ModelError(
                    "the candidates were sampled from different weights than those that training "
                    "would start from. Sample and judge again, or restore the model."
                )
            run.require("judge")
        pairs = preferences_identity(config.preferences, run.directory("judge"))
        inputs: dict[str, JsonValue] = {
            "pairs": list(pairs),
            "weights": weights,
            "held_out": None if judged else run.held_out_identity(),
        }
        reference = run.reference_weights()
        return inputs if reference is None else inputs | {"reference": reference.identity()}

    def run(self, run: Run, out: PhaseDirectory) -> TrainResult:
        """Tokenize the pairs, and train with all ranks."""
        section, start, pairs = required(run.config.train), run.start_weights(), read_pairs(run)
        train_rows, validation_rows = _token_rows(run, pairs, out)
        if overlapping := pairs.dropped["evaluation_overlap"]:
            found = counted(overlapping, "pair")
            warn(f"{found} left out: their prompts overlap with the held-out prompts")
        if too_long := pairs.dropped["too_long"] + pairs.dropped["prompt_too_long"]:
            warn(f"{counted(too_long, 'pair')} left out: longer than train.max_length")
        if changed := pairs.dropped["not_rendered"]:
            warn(f"{counted(changed, 'pair')} left out: the chat template changes their answers")
        job = _job(run, out, train_rows, validation_rows)
        _compute_reference(job)
        launch(job)
        shutil.rmtree(out.path / MERGED, ignore_errors=True)
        if section.merge:
            merge_adapter(
                start.model,
                out.path / "model",
                out.path / "merged",
                dtype=run.config.model.dtype,
                template=run.config.model.template,
                trust_remote_code=run.config.model.trust_remote_code,
            )
        kept = len(train_rows) + len(validation_rows)
        as_sampled = train_rows.as_sampled + validation_rows.as_sampled
        judged = run.config.preferences.source == "judged"
        return TrainResult(
            counts=Counts(
                received=kept + sum(pairs.dropped.values()),
                kept=kept,
                dropped=dict(pairs.dropped),
                trained_as_sampled=as_sampled if judged else None,
            ),
            pairs=PairCounts(train=len(train_rows), validation=len(validation_rows)),
            sources=tuple(
                PairSource(name=found.name, kept=found.kept, dropped=dict(found.dropped))
                for found in pairs.sources
            ),
            reference=run.reference_name,
            processes=LaunchShape.of(section).processes,
            **read_figures(out.path / OUTCOME, TrainingOutcome).model_dump(),
        )


def read_pairs(run: Run) -> PreferenceSet:
    """The preference pairs, without those whose prompts overlap with the held-out prompts. The
    judge phase has dropped these; pairs from outside the run are checked here."""
    config = run.config
    return load_preferences(
        config.preferences,
        run.directory("judge"),
        config.run.seed,
        [] if config.preferences.source == "judged" else run.held_out_prompts(),
        same_in_every_round=config.rounds is not None,
    )


def _token_rows(run: Run, pairs: PreferenceSet, out: PhaseDirectory) -> tuple[TokenRows, TokenRows]:
    """(training rows, validation rows). Raises `DataError` if there are no training rows, and
    `ConfigError` if validation rows are needed and there are none."""
    section, model = required(run.config.train), run.start_weights().model
    tokenizer = load_tokenizer(
        model, run.config.model.template, trust_remote_code=run.config.model.trust_remote_code
    )
    if run.config.preferences.source != "judged":
        try_pairs(tokenizer, pairs.train)
        try_prompts_of(run, tokenizer)
    splits = {"train.parquet": pairs.train, "validation.parquet": pairs.validation}
    train_rows, validation_rows = (
        write_token_rows(
            out.path / "tokens" / name, tokenizer, split, section.max_length, pairs.dropped
        )
        for name, split in splits.items()
    )
    if not train_rows:
        raise DataError(f"no pair is left to train on (dropped: {dict(+pairs.dropped)})")
    if section.select == "best" and not validation_rows:
        raise ConfigError("train.select: best needs validation pairs, and there are none")
    return train_rows, validation_rows


def _job(
    run: Run, out: PhaseDirectory, train_rows: TokenRows, validation_rows: TokenRows
) -> TrainingJob:
    config, section, start = run.config, required(run.config.train), run.start_weights()
    shape = model_shape(start.model, config.model.trust_remote_code)
    _check_vocabulary(start.model, shape, max(train_rows.largest, validation_rows.largest))
    policy, reference = _without_adapter(run, start, out.path / MERGED / "start"), None
    if found := run.reference_weights():
        other = _without_adapter(run, found, out.path / MERGED / "reference")
        reference = InitialReference(
            model=other.model, adapter=other.adapter, identity=found.identity()
        )
    return TrainingJob(
        kind="dpo",
        settings=section,
        shape=LaunchShape.of(section),
        model=policy.model,
        adapter=policy.adapter,
        dtype=config.model.dtype,
        trust_remote_code=config.model.trust_remote_code,
        template=config.model.template,
        rows=train_rows.path,
        validation_rows=validation_rows.path if validation_rows else None,
        # Shared by all runs and by the points of a sweep, so that it is computed once.
        reference_folder=config.run.output_dir / "reference_logps",
        start=start.identity(),
        reference=reference,
        planned_peak_bytes=planned_bytes(
            shape,
            section,
            [*train_rows.lengths, *validation_rows.lengths],
            validates=bool(validation_rows),
        ),
        flops_per_token=flops_per_token(shape, section.method, train_rows.mean),
        gpu_flops=gpu_flops() if section.bf16 else None,
        out=out.path,
        seed=config.run.seed,
        run_name=f"{config.run.name}-train" + (f"-round-{run.round}" if run.round else ""),
        wandb=run.tracked("train"),
        run_file=run.config.dump(),
    )


def _without_adapter(run: Run, weights: Weights, folder: Path) -> Weights:
    """The weights that a training loads: in full fine-tuning an adapter is merged first, into a
    model in `folder`. The model is in float32 if the training is."""
    config, section = run.config, required(run.config.train)
    if weights.adapter is None or isinstance(section.method, Lora):
        return weights
    in_half = LaunchShape.of(section).zero_stage > 0 and has_cuda()
    if not folder.exists():
        merge_adapter(
            weights.model,
            weights.adapter,
            folder,
            dtype=config.model.dtype if in_half else "float32",
            template=config.model.template,
            trust_remote_code=config.model.trust_remote_code,
        )
    return Weights(str(folder))


def _compute_reference(job: TrainingJob) -> None:
    """Compute the log-probs of a reference other than the start, unless it is done. Raises what
    `launch` raises."""
    if job.reference is not None and not ((own := reference_job(job)).out / OUTCOME).exists():
        launch(own)


def _check_vocabulary(model: str, shape: ModelShape, largest: int) -> None:
    """Raise `ModelError` if a token id has no embedding."""
    if largest >= shape.vocabulary:
        raise ModelError(
            f"{model}: the tokenizer produced the token id {largest}, but the model has only "
            f"{shape.vocabulary} embeddings; tokenizer and model do not match"
        )
