"""sft: trains the base model on demonstrations, so that its answers have the task's form."""

from __future__ import annotations

from collections import Counter
from statistics import fmean

from pydantic import JsonValue

from dpo_dist.config import required
from dpo_dist.data.chat import completion_ids, load_tokenizer
from dpo_dist.data.prompts import read_demonstrations
from dpo_dist.data.rendering import Unrendered
from dpo_dist.data.rows import source_identity, write_parquet
from dpo_dist.data.templates import try_demonstrations
from dpo_dist.errors import DataError
from dpo_dist.estimates.throughput import Pair, flops_per_token
from dpo_dist.phases.trial import try_prompts_of
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
        tokenizer = load_tokenizer(
            base, config.model.template, trust_remote_code=config.model.trust_remote_code
        )
        demonstrations = read_demonstrations(section.data)
        try_demonstrations(tokenizer, section.data, demonstrations)
        try_prompts_of(run, tokenizer)
        rows = []
        dropped = Counter(too_long=0)
        for demonstration in demonstrations:
            try:
                prompt, completion = completion_ids(
                    tokenizer, demonstration.prompt, demonstration.completion
                )
            except Unrendered:
                dropped["not_rendered"] += 1
                continue
            if len(prompt) + len(completion) > section.max_length:
                dropped["too_long"] += 1
            else:
                mask = [0] * len(prompt) + [1] * len(completion)
                rows.append({"input_ids": prompt + completion, "completion_mask": mask})
        if not rows:
            raise DataError(f"no sft row is left to train on (dropped: {dict(dropped)})")
        if too_long := dropped["too_long"]:
            warn(f"{counted(too_long, 'row')} left out: longer than sft.max_length")
        if changed := dropped["not_rendered"]:
            warn(f"{counted(changed, 'row')} left out: the chat template changes their answers")
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
            template=config.model.template,
            rows=write_parquet(out.path / "tokens" / "train.parquet", rows),
            planned_peak_bytes=planned_bytes(
                shape, section, [len(row["input_ids"]) for row in rows]
            ),
            flops_per_token=flops_per_token(shape, section.method, mean),
            gpu_flops=gpu_flops() if section.bf16 else None,
            out=out.path,
            seed=config.run.seed,
            run_name=f"{config.run.name}-sft",
            wandb=run.tracked("sft"),
            run_file=config.dump(),
        )
        launch(job)
        counts = Counts(received=len(demonstrations), kept=len(rows), dropped=dict(dropped))
        return PhaseResult(counts=counts)
