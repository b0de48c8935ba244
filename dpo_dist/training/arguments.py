"""The run file's `args`: arguments of TRL's trainers that have no key of their own.

They are checked against the fields of the trainer's configuration, before any model is loaded.
"""

from __future__ import annotations

import difflib
import enum
import typing
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from pydantic import JsonValue, TypeAdapter, ValidationError

from dpo_dist.config import Optimization, Sft
from dpo_dist.errors import ConfigError

_LENGTH = "rows are never truncated; set max_length"
_SHARDING = "hardware and sharding are set by accelerate_config"
_ROWS = "the phase tokenizes the rows itself"
_BATCHES = "the trainer makes its own batches (global_batch_size, layout)"
_PRECISION = "the key `bf16` sets the precision"
_SAVING = "saving is set by save_steps, save_minutes and keep_checkpoints"
_EVALUATION = "validation is set by eval_per_epoch"
_SELECTION = "the key `select` chooses the step"
_CHECKPOINTING = "the key `gradient_checkpointing` does this"
_REFERENCE = "the reference is set by train.reference and rounds.reference"
_PUSHING = "`dpo-dist push` uploads the model"
_MODEL = "the section `model` says how models are loaded"
_FORWARD = "the trainer has its own fused forward"
_NOT_USED = "this trainer does not use it"
_RESUMING = "an interrupted training resumes by itself"

# What the run file or this trainer decides, with the reason.
_OURS = {
    "output_dir": "the directory is run.output_dir and run.name",
    "learning_rate": "it is the key `learning_rate`",
    "num_train_epochs": "it is the key `num_epochs`",
    "max_steps": "the key `num_epochs` sets the length",
    "warmup_steps": "it is the key `warmup_steps`",
    "max_grad_norm": "it is the key `max_grad_norm`",
    "logging_steps": "it is the key `logging_steps`",
    "save_steps": "it is the key `save_steps`",
    "gradient_checkpointing": "it is the key `gradient_checkpointing`",
    "bf16": "it is the key `bf16`",
    "per_device_train_batch_size": "it is the key `micro_batch_size`",
    "per_device_eval_batch_size": "it follows from `micro_batch_size`",
    "gradient_accumulation_steps": "it follows from global_batch_size and micro_batch_size",
    "auto_find_batch_size": "the batch is fixed by global_batch_size and micro_batch_size",
    "save_total_limit": "it is the key `keep_checkpoints`",
    "logging_nan_inf_filter": "it would hide a loss that is not finite",
    "logging_strategy": "the key `logging_steps` sets it",
    "disable_tqdm": "the console is dpo_dist's",
    "use_cache": "a training needs no cache",
    "remove_unused_columns": _ROWS,
    "trust_remote_code": "it is model.trust_remote_code",
    "model_init_kwargs": _MODEL,
    **dict.fromkeys(("seed", "data_seed", "full_determinism"), "the seed is run.seed"),
    **dict.fromkeys(("max_length", "truncation_mode"), _LENGTH),
    **dict.fromkeys(("fp16", "bf16_full_eval", "fp16_full_eval"), _PRECISION),
    **dict.fromkeys(("gradient_checkpointing_kwargs", "activation_offloading"), _CHECKPOINTING),
    **dict.fromkeys(
        (
            *("use_cpu", "accelerator_config", "parallelism_config", "fsdp", "fsdp_config"),
            *("deepspeed", "ddp_backend", "ddp_find_unused_parameters", "local_rank"),
        ),
        _SHARDING,
    ),
    **dict.fromkeys(
        (
            *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "batch_eval_metrics"),
            *("prediction_loss_only", "eval_do_concat_batches", "eval_use_gather_object"),
            *("eval_accumulation_steps", "include_for_metrics", "do_train", "do_eval"),
            "do_predict",
        ),
        _EVALUATION,
    ),
    **dict.fromkeys(
        (
            *("save_strategy", "save_only_model", "save_on_each_node", "enable_jit_checkpoint"),
            "restore_callback_states_from_checkpoint",
        ),
        _SAVING,
    ),
    **dict.fromkeys(("ignore_data_skip", "resume_from_checkpoint"), _RESUMING),
    **dict.fromkeys(
        ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"), _SELECTION
    ),
    **dict.fromkeys(
        (
            *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy"),
            *("hub_always_push", "hub_revision"),
        ),
        _PUSHING,
    ),
    **dict.fromkeys(
        (
            *("torch_compile", "torch_compile_backend", "torch_compile_mode"),
            *("use_liger_kernel", "liger_kernel_config"),
        ),
        _FORWARD,
    ),
    **dict.fromkeys(
        (
            *("dataloader_drop_last", "train_sampling_strategy", "length_column_name"),
            *("padding_free", "pad_to_multiple_of"),
        ),
        _BATCHES,
    ),
    **dict.fromkeys(("label_names", "dataset_num_proc", "pad_token"), _ROWS),
    "label_smoothing_factor": _NOT_USED,
}
_OURS_IN_DPO = {
    "loss_type": "it is train.loss",
    "loss_weights": "they are in train.loss",
    "beta": "it is train.beta",
    "label_smoothing": "it is train.label_smoothing",
    "label_smoothing_factor": "it is train.label_smoothing",
    "ld_alpha": "it is train.ld_alpha",
    "f_divergence_type": "it is train.f_divergence",
    "f_alpha_divergence_coef": "it is train.f_alpha",
    "use_weighting": "it is train.wpo",
    "discopop_tau": "it is train.discopop_tau",
    "average_tokens_across_devices": _NOT_USED,
    "disable_dropout": "policy and reference are compared without noise",
    "neftune_noise_alpha": "noise would make policy and reference differ",
    **dict.fromkeys(
        (
            *("precompute_ref_log_probs", "precompute_ref_batch_size", "sync_ref_model"),
            *("ref_model_mixup_alpha", "ref_model_sync_steps"),
        ),
        _REFERENCE,
    ),
}
_OURS_IN_SFT = {
    "loss_type": "sft trains on the log-likelihood of the answers",
    **dict.fromkeys(("packing", "packing_strategy", "eval_packing", "shuffle_dataset"), _BATCHES),
    **dict.fromkeys(
        (
            *("chat_template_path", "dataset_text_field", "dataset_kwargs", "eos_token"),
            *("completion_only_loss", "assistant_only_loss"),
        ),
        _ROWS,
    ),
}
# transformers 5 has only `warmup_steps`, of which a number below 1 is a share.
WARMUP = "warmup_ratio"
# The package to install, where its name is not that of `report_to`.
_PACKAGES = {"azure_ml": "azureml-core", "flyte": "flytekit", "kubeflow": "kubeflow"}
_BY_METRIC = ("reduce_lr_on_plateau", "greedy")  # schedulers
# Errors of transformers about optimizers that only a model can answer.
_NEEDS_MODEL = "You need to pass a"


def refused(settings: Optimization) -> Mapping[str, str]:
    """The arguments that `args` must not contain, with the reasons."""
    return _OURS | (_OURS_IN_SFT if isinstance(settings, Sft) else _OURS_IN_DPO)


def arguments_class(settings: Optimization) -> Any:
    """TRL's configuration of the trainer."""
    from trl import DPOConfig, SFTConfig

    return SFTConfig if isinstance(settings, Sft) else DPOConfig


def check_arguments(settings: Optimization) -> None:
    """Raises `ConfigError` for `args` that the trainer cannot use: an unknown name, one that the
    run file decides elsewhere, a value of the wrong type, an optimizer, scheduler or tracker that
    cannot be made here. Without `args` nothing is imported."""
    if not settings.args:
        return
    place = _place(settings)
    values = arguments(settings)
    _check_trackers(place, settings.trackers)
    _try(place, settings, values)


def arguments(settings: Optimization) -> dict[str, Any]:
    """`args` with the types of the configuration's fields, without the trackers, which the trainer
    adds itself. Raises `ConfigError`."""
    if not settings.args:
        return {}
    kind = arguments_class(settings)
    hints = typing.get_type_hints(kind)
    problems = dict(_problems(settings, set(hints)))
    values: dict[str, Any] = {}
    for name, value in settings.args.items():
        if name in problems:
            continue
        try:
            values[name] = _typed(value, float if name == WARMUP else hints[name])
        except ValueError as error:
            problems[name] = str(error)
    if WARMUP in values:
        share = values.pop(WARMUP)
        if not 0 <= share < 1:
            problems[WARMUP] = f"{share:g} is not a share of the steps, from 0 to below 1"
        elif settings.warmup_steps:
            problems[WARMUP] = "the key `warmup_steps` is set, too: keep one of them"
        values["warmup_steps"] = share
    if values.get("weight_decay", 0) < 0:
        problems["weight_decay"] = f"{values['weight_decay']:g} is below 0"
    if (chosen := values.get("lr_scheduler_type")) and chosen in _BY_METRIC:
        problems["lr_scheduler_type"] = f"{chosen} needs a validation metric, which it does not get"
    if problems:
        place = _place(settings)
        raise ConfigError("\n".join(f"{place}.{name}: {text}" for name, text in problems.items()))
    values.pop("report_to", None)
    return values


def _problems(settings: Optimization, known: set[str]) -> Iterator[tuple[str, str]]:
    """The names that cannot be used, with the reasons."""
    ours = refused(settings)
    for name in settings.args:
        if name == WARMUP:
            continue
        if name in ours:
            yield name, f"cannot be set here: {ours[name]}"
        elif name not in known:
            usable = sorted({*known, WARMUP} - ours.keys())
            near = difflib.get_close_matches(name, usable, n=1, cutoff=0.5)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            yield name, f"TRL's {arguments_class(settings).__name__} has no such argument{hint}"


def _typed(value: JsonValue, hint: Any) -> Any:
    """The value with a field's type. Raises `ValueError`."""
    kinds = [part for part in typing.get_args(hint) if isinstance(part, enum.EnumMeta)]
    if kinds and isinstance(value, str):  # the annotation also accepts any text
        members: Iterable[enum.Enum] = kinds[0].__members__.values()
        choices = [str(member.value) for member in members]
        if value not in choices:
            near = difflib.get_close_matches(value, choices, n=1, cutoff=0.5)
            hint = f"did you mean `{near[0]}`? " if near else ""
            raise ValueError(f"{value!r} is unknown; {hint}Known: {', '.join(choices)}")
        return value
    if isinstance(value, bool) and hint in (int, float):
        raise ValueError(f"{value} is not a number")
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        reasons = dict.fromkeys(problem["msg"] for problem in error.errors())
        raise ValueError(f"{value!r}: {' or '.join(reasons)}") from None


def _check_trackers(place: str, trackers: tuple[str, ...]) -> None:
    """Raises `ConfigError` for a tracker that is unknown or not installed."""
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    installed = get_available_reporting_integrations()
    for name in trackers:
        if name not in INTEGRATION_TO_CALLBACK:
            near = difflib.get_close_matches(name, INTEGRATION_TO_CALLBACK, n=1, cutoff=0.5)
            hint = f"did you mean `{near[0]}`? " if near else ""
            known = ", ".join(INTEGRATION_TO_CALLBACK)
            raise ConfigError(f"{place}.report_to: {name!r} is unknown; {hint}Known: {known}")
        package = _PACKAGES.get(name, name)
        if name not in installed and find_spec(package) is None:
            raise ConfigError(
                f"{place}.report_to: {name} is not installed. Install it with: "
                f"pip install {package}"
            )


def _try(place: str, settings: Optimization, values: Mapping[str, Any]) -> None:
    """Make the configuration, and for one weight the optimizer and the scheduler. Raises
    `ConfigError`."""
    import torch
    from transformers import Trainer, get_scheduler

    kind = arguments_class(settings)
    # Without devices: finding them would connect the ranks.
    probe = type(kind.__name__, (kind,), {"_setup_devices": torch.device("cpu"), "_n_gpu": 0})
    ours = {"output_dir": "probe", "bf16": False, "learning_rate": settings.learning_rate}
    with _named(place):
        args = probe(**{**ours, **values})
    with _named(f"{place}.optim: {args.optim.value}"):
        try:
            make, options = Trainer.get_optimizer_cls_and_kwargs(args)
            optimizer = make([torch.nn.Parameter(torch.zeros(2, 2))], **options)
        except ValueError as error:
            if str(error).startswith(_NEEDS_MODEL):
                return
            raise
    name = args.lr_scheduler_type.value
    with _named(f"{place}.lr_scheduler_type: {name}"):
        options = args.lr_scheduler_kwargs
        get_scheduler(name, optimizer, 1, 10, scheduler_specific_kwargs=options)


@contextmanager
def _named(place: str) -> Iterator[None]:
    """Turn the libraries' errors into a `ConfigError` at this place."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{place}: {reason}") from None


def _place(settings: Optimization) -> str:
    return "sft.args" if isinstance(settings, Sft) else "train.args"
