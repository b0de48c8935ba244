"""sft: trains the base model on demonstrations, so that its answers have the task's form."""

from __future__ import annotations

from statistics import fmean

from pydantic import JsonValue

from dpo_dist.config import required
from dpo_dist.data.chat import completion_ids, load_tokenizer
from dpo_dist.data.prompts import read_demonstrations
from dpo_dist.data.rows import source_identity, write_parquet
from dpo_dist.errors import DataError
from dpo_dist.estimates.throughput import Pair, flops_per_token
from dpo_dist.runs.resources import gpu_flops, model_shape, planned_bytes
from dpo_dist.runs.run import Run
from dpo_dist.storage.artifacts import PhaseDirectory
from dpo_dist.storage.manifest import Counts, PhaseResult
from dpo_dist.system.console import counted, warn
from dpo_dist.training.job import TrainingJob
from dpo_dist.training.launch_shape import LaunchShape
from dpo_dist.training.worker import launch


class SftPhase:
    """Trains an adapter or a model on demonstrations, and writes it to `model/`."""

    name = "sft"
    sections = ("sft",)

    def inputs(self, run: Run) -> dict[str, JsonValue]:
        """The demonstrations and the base model."""
        return {
            "data": source_identity(required(run.config.sft).data),
            "weights": run.weights("base").identity(),
        }

    def run(self, run: Run, out: PhaseDirectory) -> PhaseResult:
        """Tokenize the demonstrations, and train with all ranks."""
        config, section = run.config, required(run.config.sft)
        base = run.weights("base").model
        tokenizer = load_tokenizer(base, trust_remote_code=config.model.trust_remote_code)
        demonstrations = read_demonstrations(section.data)
        rows = []
        for demonstration in demonstrations:
            prompt, completion = completion_ids(
                tokenizer, demonstration.prompt, demonstration.completion
            )
            if len(prompt) + len(completion) <= section.max_length:
                mask = [0] * len(prompt) + [1] * len(completion)
                rows.append({"input_ids": prompt + completion, "completion_mask": mask})
        if not rows:
            raise DataError(f"every sft row is longer than sft.max_length {section.max_length}")
        if too_long := len(demonstrations) - len(rows):
            warn(f"{counted(too_long, 'row')} left out: longer than sft.max_length")
        shape = model_shape(base, config.model.trust_remote_code)
        mean = Pair(
            prompt=fmean(row["completion_mask"].count(0) for row in rows),
            chosen=fmean(row["completion_mask"].count(1) for row in rows),
            rejected=0,
        )
        job = TrainingJob(
            kind="sft",
            settings=section,
            shape=LaunchShape.of(section),
            model=base,
            dtype=config.model.dtype,
            trust_remote_code=config.model.trust_remote_code,
            rows=write_parquet(out.path / "tokens" / "train.parquet", rows),
            planned_peak_bytes=planned_bytes(
                shape, section, [len(row["input_ids"]) for row in rows]
            ),
            flops_per_token=flops_per_token(shape, section.method, mean),
            gpu_flops=gpu_flops() if section.bf16 else None,
            out=out.path,
            seed=config.run.seed,
            run_name=f"{config.run.name}-sft",
            wandb=run.tracked(out.path),
        )
        launch(job)
        counts = Counts(
            received=len(demonstrations), kept=len(rows), dropped={"too_long": too_long}
        )
        return PhaseResult(counts=counts)
