"""Building and running TRL's trainers on token ids, under our monitors."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from threading import Event
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import DPOConfig, SFTConfig, SFTTrainer

from dpo_dist.config import Checkpointing, Sft, Train
from dpo_dist.data.chat import load_tokenizer
from dpo_dist.storage.artifacts import write_json, write_text
from dpo_dist.system import ranks
from dpo_dist.system.console import warn
from dpo_dist.training import lora_linear
from dpo_dist.training.activations import choose_checkpointing, free_bytes
from dpo_dist.training.alarms import Alarms
from dpo_dist.training.job import OUTCOME, PREEMPTED, TrainingJob, accumulation_steps, launch_shape
from dpo_dist.training.layout import install
from dpo_dist.training.models import (
    INITIAL,
    choose_layout,
    lighten,
    load_policy,
    load_reference,
    uses_bf16,
)
from dpo_dist.training.monitors import MetricsWriter
from dpo_dist.training.preemption import StopAtStepEnd
from dpo_dist.training.preference_trainer import (
    PairCollator,
    PreferenceTrainer,
    evaluation_batch_size,
)
from dpo_dist.training.saving import BEST_BY, CheckpointKeeper, put_best
from dpo_dist.training.universal import load_universal
from dpo_dist.training.wandb_log import WandbLog


def train(job: TrainingJob, preempted: Event) -> None:
    """Train, from the job's checkpoint if there is one, and save.

    Once `preempted` is set, a checkpoint is saved at the step's end and no model.
    """
    if job.settings.bf16 and not uses_bf16(job):
        warn("several CPU processes train in float32: transformers refuses bf16 there")
    if job.kind == "reference":
        fill_reference_cache(job)
        return
    trainer = build_dpo_trainer(job) if job.kind == "dpo" else _sft_trainer(job)
    trainer.remove_callback(PrinterCallback)  # MetricsWriter speaks for it
    zero_stage = launch_shape(job.settings.accelerate_config)[1]
    trainer.add_callback(CheckpointKeeper(job.settings.keep_checkpoints, zero_stage))
    if job.wandb is not None and ranks.is_main():
        trainer.add_callback(WandbLog(job.wandb.prefix))
    stop = StopAtStepEnd(job.out, preempted)
    trainer.add_callback(stop)
    _accumulate_in_float32(trainer)
    if job.reshard:
        load_universal(trainer)
    # The validation's values before the first step are what displacement is counted from.
    trainer.args.eval_on_start = trainer.eval_dataset is not None and job.checkpoint is None
    trainer.train(resume_from_checkpoint=str(job.checkpoint) if job.checkpoint else None)
    if stop.stopped:
        if ranks.is_main():
            write_text(job.out / PREEMPTED, f"{trainer.state.global_step}\n")
        return
    _save(trainer, job)


def _accumulate_in_float32(trainer: Any) -> None:
    """DeepSpeed adds up the gradients of micro-batches in the weights' dtype unless it is told:
    in bfloat16, small ones are rounded away. accelerate's configuration has no key for that."""
    plugin = trainer.accelerator.state.deepspeed_plugin
    if plugin is not None:
        plugin.hf_ds_config.config.setdefault("data_types", {}).setdefault(
            "grad_accum_dtype", "fp32"
        )


def fill_reference_cache(job: TrainingJob) -> None:
    """Fill the cache of the reference's log-probs, then hold them to the gate of the first loss: a
    step is taken whose result is not kept."""
    trainer = build_dpo_trainer(job)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    if ranks.is_main():
        write_json(job.out / OUTCOME, {"rows": len(trainer.train_dataset)})


def build_dpo_trainer(job: TrainingJob) -> PreferenceTrainer:
    """What trains the job; the reference's log-probs are known when it is built."""
    settings = job.settings
    assert isinstance(settings, Train)
    free = free_bytes()
    model, peft_config = load_policy(job)
    reference = load_reference(job)  # ZeRO-3 would shard what is loaded after the arguments
    tokenizer = load_tokenizer(job.model, trust_remote_code=job.trust_remote_code)
    packed = choose_layout(model, settings)
    rows = Dataset.from_parquet(str(job.rows))
    validation = Dataset.from_parquet(str(job.validation_rows)) if job.validation_rows else None
    args = DPOConfig(
        **_arguments(job),
        **_evaluation(settings, rows, validation if job.kind == "dpo" else None),
        **loss_arguments(settings),
        precompute_ref_log_probs=settings.reference == "cached",
        precompute_ref_batch_size=settings.micro_batch_size,
    )
    checkpointing = _choose_checkpointing(args, job, free)
    trainer = PreferenceTrainer(
        job=job,
        packed=packed,
        model=model,
        ref_model=reference,
        args=args,
        data_collator=PairCollator(pad_token_id=tokenizer.pad_token_id, packed=packed),
        train_dataset=rows,
        eval_dataset=validation,
        processing_class=tokenizer,
        peft_config=peft_config,
        callbacks=[
            MetricsWriter(job.out / "metrics.jsonl", "train" if job.kind == "dpo" else job.kind),
            Alarms(job.out / "metrics.jsonl", settings, wandb=job.wandb is not None),
        ],
    )
    lighten(trainer.model, job, checkpointing)
    return trainer


def loss_arguments(settings: Train) -> dict[str, Any]:
    """The loss in TRL's words."""
    return {
        "beta": settings.beta,
        "loss_type": list(settings.loss),
        "loss_weights": list(settings.loss.values()),
        "label_smoothing": settings.label_smoothing,
        "f_divergence_type": settings.f_divergence,
        "f_alpha_divergence_coef": settings.f_alpha,
        "ld_alpha": settings.ld_alpha,
        "use_weighting": settings.wpo,
        "discopop_tau": settings.discopop_tau,
    }


def _evaluation(settings: Train, rows: Dataset, validation: Dataset | None) -> dict[str, Any]:
    if validation is None:
        return {}
    steps = math.ceil(len(rows) / settings.global_batch_size)
    return {
        "eval_strategy": "steps",
        "eval_steps": max(1, steps // settings.eval_per_epoch),
        "metric_for_best_model": BEST_BY if settings.select == "best" else None,
        "greater_is_better": True,
        "per_device_eval_batch_size": evaluation_batch_size(
            len(validation), settings.micro_batch_size, ranks.world_size()
        ),
    }


def _sft_trainer(job: TrainingJob) -> SFTTrainer:
    assert isinstance(job.settings, Sft)
    free = free_bytes()
    model, peft_config = load_policy(job)
    args = SFTConfig(**_arguments(job), completion_only_loss=True, packing=False)
    checkpointing = _choose_checkpointing(args, job, free)
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_parquet(str(job.rows)),
        processing_class=load_tokenizer(job.model, trust_remote_code=job.trust_remote_code),
        peft_config=peft_config,
        callbacks=[MetricsWriter(job.out / "metrics.jsonl", "sft")],
    )
    install(trainer.model)
    lora_linear.install(trainer.model)
    lighten(trainer.model, job, checkpointing)
    return trainer


def _choose_checkpointing(args: Any, job: TrainingJob, free: float) -> Checkpointing:
    """Choose it with all ranks, which the arguments have connected, and write it into them."""
    checkpointing = choose_checkpointing(job, free)
    args.gradient_checkpointing = checkpointing == "full"  # `selective` is not the library's
    return checkpointing


def _arguments(job: TrainingJob) -> dict[str, Any]:
    """What SFT and DPO share of `transformers.TrainingArguments`."""
    settings = job.settings
    on_cpu = not torch.cuda.is_available()
    processes = ranks.world_size()
    return {
        "output_dir": str(job.out / "checkpoints"),
        "run_name": job.run_name,
        "seed": job.seed,
        "learning_rate": settings.learning_rate,
        "num_train_epochs": settings.num_epochs,
        "per_device_train_batch_size": settings.micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps(settings, processes),
        "max_length": settings.max_length,
        "max_grad_norm": settings.max_grad_norm,
        "warmup_steps": settings.warmup_steps,
        "bf16": uses_bf16(job),
        "gradient_checkpointing": False,  # chosen once the ranks are connected
        "logging_steps": settings.logging_steps,
        "logging_nan_inf_filter": False,  # it would print an average in place of a NaN
        "max_steps": 1 if job.kind == "reference" else -1,
        "save_strategy": "no" if job.kind == "reference" else "steps",
        "save_steps": settings.save_steps,
        "save_total_limit": None,  # CheckpointKeeper's work
        "report_to": "none",  # WandbLog's work
        "disable_tqdm": True,
        "remove_unused_columns": False,
        # `use_cpu` with several processes would silently turn DeepSpeed off; gloo is what makes
        # a process group of CPU ranks.
        "use_cpu": on_cpu and processes == 1,
        "ddp_backend": "gloo" if on_cpu and processes > 1 else None,
    }


def _save(trainer: Any, job: TrainingJob) -> None:
    """Save the trained adapter or model, gathered from all ranks."""
    partial = job.model_dir.with_name("model.partial")
    trainer.save_model(str(partial))
    trainer.accelerator.wait_for_everyone()
    if ranks.is_main():
        for frozen in ("ref", INITIAL):  # adapters that are references
            shutil.rmtree(partial / frozen, ignore_errors=True)
        (partial / "training_args.bin").unlink(missing_ok=True)  # pickled; job.json says it all
        # Without `select: best` there is no best step, and this is the last one.
        selected = put_best(partial, trainer.state)
        shutil.rmtree(job.model_dir, ignore_errors=True)
        partial.rename(job.model_dir)
        outcome = {
            "steps": trainer.state.global_step,
            "selected_step": selected,
            "peak_rss_bytes": _peak_rss_bytes(),
        }
        write_json(job.out / OUTCOME, outcome)
        _drop_checkpoints(job.out / "checkpoints")


def _drop_checkpoints(folder: Path) -> None:
    # Optimizer states of a finished training are of no further use and many times its size.
    shutil.rmtree(folder, ignore_errors=True)


def _peak_rss_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
