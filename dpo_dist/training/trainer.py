"""Builds and runs TRL's trainers on token ids, with callbacks for checkpoints and monitoring."""

from __future__ import annotations

import math
import shutil
from threading import Event
from typing import Any

import torch
from datasets import Dataset
from pydantic import JsonValue
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PrinterCallback
from trl import DPOConfig, SFTConfig, SFTTrainer

from dpo_dist.buckets import buffers
from dpo_dist.config import Checkpointing, Sft, Train, is_quantized
from dpo_dist.data.chat import load_tokenizer
from dpo_dist.storage.artifacts import write_json, write_text
from dpo_dist.storage.figures import write_figures
from dpo_dist.system import ranks
from dpo_dist.system.console import warn
from dpo_dist.tracking import PROJECT
from dpo_dist.training import Trainer, lora_linear
from dpo_dist.training.activations import choose_checkpointing, free_bytes
from dpo_dist.training.alarms import Alarms
from dpo_dist.training.arguments import arguments
from dpo_dist.training.callbacks import BEST_BY, CheckpointKeeper, tracker_callbacks
from dpo_dist.training.job import (
    OUTCOME,
    PREEMPTED,
    TrainingJob,
    TrainingOutcome,
    accumulation_steps,
)
from dpo_dist.training.layout import install
from dpo_dist.training.models import (
    INITIAL,
    adapter_dtype,
    check_head,
    choose_layout,
    lighten,
    load_policy,
    load_reference,
    may_skip_weights,
    uses_bf16,
)
from dpo_dist.training.monitors import MetricsWriter
from dpo_dist.training.preference_trainer import PairCollator, PreferenceTrainer
from dpo_dist.training.quantization import adapter_values, restore_adapters
from dpo_dist.training.sharded import gather_whole_adapters, save_model
from dpo_dist.training.usage import peak_memory

LOADERS = 2  # processes that collate batches for a GPU; one takes 8 ms for 16 pairs


class _Documented:
    """Arguments that show trackers the content of the run file, too."""

    run_file: dict[str, JsonValue]

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "run_file": self.run_file}  # type: ignore[misc]


class PreferenceArguments(_Documented, DPOConfig):  # type: ignore[misc]  # TRL is not typed
    """TRL's arguments, with the run file."""


class DemonstrationArguments(_Documented, SFTConfig):  # type: ignore[misc]  # TRL is not typed
    """TRL's arguments, with the run file."""


def train(job: TrainingJob, preempted: Event) -> None:
    """Train, from the job's checkpoint if it has one, and save the model. Once `preempted` is set,
    save a checkpoint at the end of the step instead."""
    if job.settings.bf16 and not uses_bf16(job):
        warn("several CPU processes train in float32: transformers refuses bf16 for them")
    trainer = _sft_trainer(job) if job.kind == "sft" else build_dpo_trainer(job)
    trainer.remove_callback(PrinterCallback)  # MetricsWriter replaces it
    # TRL sets it for every adapter, and DDP then searches the graph of each micro-batch.
    trainer.args.ddp_find_unused_parameters = may_skip_weights(trainer.model)
    if job.kind == "reference":
        trainer.train()  # fills the cache, and checks the first loss; the weights are discarded
        if ranks.is_main():
            write_json(job.out / OUTCOME, {"rows": len(trainer.train_dataset)})
        return
    keeper = CheckpointKeeper(job, preempted)
    trainer.add_callback(keeper)
    for callback in tracker_callbacks(job) if ranks.is_main() else ():
        trainer.add_callback(callback)  # after MetricsWriter, which completes the metrics
    # The displacement alarm compares with the validation before the first step.
    trainer.args.eval_on_start = trainer.eval_dataset is not None and job.checkpoint is None
    trainer.train(resume_from_checkpoint=str(job.checkpoint) if job.checkpoint else None)
    if keeper.stopped:
        if ranks.is_main():
            write_text(job.out / PREEMPTED, f"{trainer.state.global_step}\n")
        return
    _save(trainer, job)


def _configure_deepspeed(trainer: Trainer, job: TrainingJob) -> None:
    """Set options for which accelerate's configuration has no key."""
    plugin = trainer.accelerator.state.deepspeed_plugin
    if plugin is not None:
        config = plugin.hf_ds_config.config
        # The default is the dtype of the weights, and bfloat16 loses small gradients.
        config.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")
        config["zero_optimization"] = {
            **buffers(job.shape.zero_stage, trainer.model.parameters()),
            **config["zero_optimization"],
        }
        if job.shape.zero_stage == 3:
            gather_whole_adapters(trainer.model)
        if job.reshard:
            # Only in this process: DeepSpeed cannot load an ordinary checkpoint with this flag.
            config["checkpoint"] = {"load_universal": True}


def build_dpo_trainer(job: TrainingJob) -> PreferenceTrainer:
    """The trainer of a job."""
    settings = job.settings
    assert isinstance(settings, Train)
    rows = Dataset.from_parquet(str(job.rows))
    validation = Dataset.from_parquet(str(job.validation_rows)) if job.validation_rows else None
    args = PreferenceArguments(
        **_arguments(job),
        **_evaluation(settings, rows, validation if job.kind == "dpo" else None),
        **loss_arguments(settings),
    )
    args.run_file = job.run_file
    # `args` has connected the ranks, and knows what is sharded: DeepSpeed and FSDP load shards.
    checkpointing = choose_checkpointing(job, free_bytes())
    model, peft_config = load_policy(job, args.device)
    reference = load_reference(job, args.device)
    tokenizer = _tokenizer(job)
    packed = choose_layout(model, settings)
    args.gradient_checkpointing = checkpointing == "full"  # `lighten` enables `selective`
    adapter = adapter_values(model)
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
            MetricsWriter(
                job.out / "metrics.jsonl", "train" if job.kind == "dpo" else job.kind, job
            ),
            Alarms(job.out / "metrics.jsonl", settings, wandb=job.wandb is not None),
        ],
    )
    _finish(trainer, job, checkpointing, adapter)
    return trainer


def loss_arguments(settings: Train) -> dict[str, Any]:
    """The arguments of `DPOConfig` that define the loss."""
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
    # The largest batch, at most the micro-batch, that divides the validation rows evenly: TRL
    # averages batches, so the pairs of a smaller last batch would count more.
    sizes, world = range(settings.micro_batch_size, 1, -1), ranks.world_size()
    batch_size = next((n for n in sizes if len(validation) % (n * world) == 0), 1)
    return {
        "eval_strategy": "steps",
        "eval_steps": max(1, steps // settings.eval_per_epoch),
        "metric_for_best_model": BEST_BY if settings.select == "best" else None,
        "greater_is_better": True,
        "per_device_eval_batch_size": batch_size,
    }


def _sft_trainer(job: TrainingJob) -> SFTTrainer:
    assert isinstance(job.settings, Sft)
    args = DemonstrationArguments(**_arguments(job), completion_only_loss=True, packing=False)
    args.run_file = job.run_file
    checkpointing = choose_checkpointing(job, free_bytes())
    model, peft_config = load_policy(job, args.device)
    args.gradient_checkpointing = checkpointing == "full"
    adapter = adapter_values(model)
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_parquet(str(job.rows)),
        processing_class=_tokenizer(job),
        peft_config=peft_config,
        callbacks=[MetricsWriter(job.out / "metrics.jsonl", "sft", job)],
    )
    install(trainer.model)
    lora_linear.install(trainer.model)
    _finish(trainer, job, checkpointing, adapter)
    return trainer


def _tokenizer(job: TrainingJob) -> PreTrainedTokenizerBase:
    return load_tokenizer(job.model, job.template, trust_remote_code=job.trust_remote_code)


def _finish(
    trainer: Trainer, job: TrainingJob, checkpointing: Checkpointing, adapter: dict[str, Tensor]
) -> None:
    """What follows when TRL has changed the model; `adapter` has the adapter's own values."""
    check_head(trainer.model)
    lighten(trainer.model, job, checkpointing)
    _configure_deepspeed(trainer, job)
    if is_quantized(job.settings.method):
        restore_adapters(trainer.model, adapter, adapter_dtype(job))


def _arguments(job: TrainingJob) -> dict[str, Any]:
    """The `transformers.TrainingArguments` that SFT and DPO share."""
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
        "gradient_checkpointing": False,  # set later, when the ranks are connected
        "logging_steps": settings.logging_steps,
        "logging_nan_inf_filter": False,  # it would replace a NaN by an average
        "max_steps": 1 if job.kind == "reference" else -1,
        "save_strategy": "no" if job.kind == "reference" else "steps",
        "save_total_limit": None,  # CheckpointKeeper saves, and deletes old ones
        "report_to": "none",  # `tracker_callbacks` reports
        "project": PROJECT,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        # `use_cpu` would silently disable DeepSpeed and FSDP; DDP needs it.
        "use_cpu": on_cpu and not (job.shape.zero_stage or job.shape.fsdp),
        "ddp_backend": "gloo" if on_cpu and job.shape.connected else None,
        # Batches are collated and pinned ahead, and copied while the GPU computes. On a CPU the
        # workers would take cores from the training.
        "dataloader_num_workers": 0 if on_cpu else LOADERS,
        "dataloader_pin_memory": not on_cpu,
        "accelerator_config": {"non_blocking": not on_cpu},
        **arguments(settings),
    }


def _save(trainer: Trainer, job: TrainingJob) -> None:
    """Save the trained adapter or model, gathered from all ranks."""
    partial = job.model_dir.with_name("model.partial")
    selected = save_model(trainer, partial)
    trainer.accelerator.wait_for_everyone()
    peak = peak_memory(trainer.args.device)
    if ranks.is_main():
        for frozen in ("ref", INITIAL):  # adapters that are references
            shutil.rmtree(partial / frozen, ignore_errors=True)
        (partial / "training_args.bin").unlink(missing_ok=True)  # a pickle; job.json has it all
        shutil.rmtree(job.model_dir, ignore_errors=True)
        partial.rename(job.model_dir)
        outcome = TrainingOutcome(
            steps=trainer.state.global_step,
            selected_step=selected,
            peak_rss_bytes=peak.rss_bytes,
            peak_device_bytes=peak.device_bytes,
        )
        write_figures(job.out / OUTCOME, outcome)
        # The optimizer states are no longer needed, and are many times the model's size.
        shutil.rmtree(job.out / "checkpoints", ignore_errors=True)
