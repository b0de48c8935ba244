"""Suggestions for wrong keys and values: the nearest right one of the section at hand, and the keys
that TRL, axolotl and LLaMA-Factory call otherwise."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Sequence
from itertools import takewhile
from operator import eq
from typing import Literal, get_args, get_origin

from pydantic import BaseModel

# Other names of a key -> the ends of our keys' paths, the most likely first. Only those that exist
# are suggested. TRL and transformers, PEFT, axolotl, LLaMA-Factory, vLLM.
ALIASES: dict[str, tuple[str, ...]] = {
    # training
    "lr": ("learning_rate",),
    "epochs": ("num_epochs",),
    "num_train_epochs": ("num_epochs",),
    "batch_size": ("global_batch_size",),
    "train_batch_size": ("global_batch_size",),
    "effective_batch_size": ("global_batch_size",),
    "per_device_train_batch_size": ("micro_batch_size",),
    "per_device_batch_size": ("micro_batch_size",),
    "per_device_eval_batch_size": ("micro_batch_size",),
    "gradient_accumulation_steps": ("global_batch_size",),
    "max_seq_length": ("max_length",),
    "max_seq_len": ("max_length",),
    "sequence_len": ("max_length",),
    "cutoff_len": ("max_length",),
    "gradient_clipping": ("max_grad_norm",),
    "fp16": ("bf16",),
    "save_total_limit": ("keep_checkpoints",),
    "activation_checkpointing": ("gradient_checkpointing",),
    "eval_steps": ("eval_per_epoch",),
    "deepspeed": ("accelerate_config",),
    "fsdp": ("accelerate_config",),
    "load_best_model_at_end": ("select",),
    "precompute_ref_log_probs": ("reference",),
    # DPO
    "loss_type": ("loss",),
    "loss_weights": ("loss",),
    "pref_loss": ("loss",),
    "rl": ("loss",),
    "pref_beta": ("beta",),
    "dpo_beta": ("beta",),
    "rl_beta": ("beta",),
    "rpo_alpha": ("loss",),
    "dpo_label_smoothing": ("label_smoothing",),
    "f_divergence_type": ("f_divergence",),
    "f_alpha_divergence_coef": ("f_alpha",),
    "use_weighting": ("wpo",),
    # adapters
    "rank": ("method.r",),
    "lora_r": ("method.r",),
    "lora_rank": ("method.r",),
    "lora_alpha": ("method.alpha",),
    "lora_dropout": ("method.dropout",),
    "lora_target": ("method.target_modules",),
    "lora_target_modules": ("method.target_modules",),
    "lora_modules_to_save": ("method.modules_to_save",),
    "additional_target": ("method.modules_to_save",),
    "peft_use_dora": ("method.use_dora",),
    "peft_use_rslora": ("method.use_rslora",),
    "load_in_4bit": ("method.quantization",),
    "quantization_bit": ("method.quantization",),
    "use_peft": ("train.method",),
    "adapter": ("train.method",),
    "peft": ("train.method",),
    "lora": ("train.method",),
    "finetuning_type": ("train.method",),
    # models
    "model_name_or_path": ("model.base",),
    "model_name": ("model.base",),
    "base_model": ("model.base",),
    "adapter_name_or_path": ("model.sft",),
    "torch_dtype": ("model.dtype",),
    "template": ("model.chat_template",),
    "enable_thinking": ("model.chat_template_kwargs",),
    # data
    "file": ("path",),
    "data_files": ("path",),
    "dataset_name": ("dataset",),
    "dataset_split": ("split",),
    "max_samples": ("limit",),
    "datasets": ("preferences",),
    # sampling
    "max_tokens": ("max_new_tokens",),
    "num_generations": ("sample.slots",),
    "engines": ("engine",),
    "tp_size": ("tensor_parallel_size",),
    "base_url": ("urls",),
    # the run
    "output_dir": ("run.output_dir",),
    "run_name": ("run.name",),
    "report_to": ("train.args.report_to", "tracking"),
    "wandb_project": ("tracking.wandb.project",),
    "use_wandb": ("tracking.wandb",),
}
# Ordinary settings of transformers' trainer without a key of their own.
TRAINER_ARGS = (
    *("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_ratio", "weight_decay", "optim"),
    *("optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "neftune_noise_alpha"),
    *("torch_compile", "tf32", "use_liger_kernel", "group_by_length", "save_strategy"),
)
ALIASES |= {
    "lr_scheduler": ("args.lr_scheduler_type",),
    "optimizer": ("args.optim",),
    **{name: (f"args.{name}",) for name in TRAINER_ARGS},
}
# Other names of a value -> ours.
VALUES: dict[str, tuple[str, ...]] = {
    "dpo": ("sigmoid",),
    "qlora": ("lora",),
    "full_finetune": ("full",),
    "bf16": ("bfloat16",),
    "fp16": ("bfloat16",),
    "float16": ("bfloat16",),
    "half": ("bfloat16",),
    "fp32": ("float32",),
    "float": ("float32",),
    "transformers": ("hf",),
    "huggingface": ("hf",),
    "sglang": ("vllm_server",),
    "server": ("vllm_server",),
    "anthropic": ("claude",),
    "openai": ("openai_compatible",),
    "vllm": ("openai_compatible",),
    "gpt": ("openai_compatible",),
    "file": ("path",),
    "local": ("path",),
    "hub": ("path",),
    "true": ("full",),
}
_MOST = 3  # places that a suggestion lists

Path = tuple[str, ...]


def key_hint(root: type[BaseModel], loc: Sequence[str | int], path: Sequence[str | int]) -> str:
    """What to write instead of an unknown key, such as "; did you mean `beta`?"; empty if there is
    no likely one. `loc` is its place as pydantic names it, `path` the same without the unions'
    tags."""
    *parents, last = (str(part) for part in path if isinstance(part, str))
    key, place = last.lower().replace("-", "_"), tuple(parents)
    here = {name for kind in sections_at(root, loc[:-1]) for name in kind.model_fields}
    if key in here:
        return _ask([key])
    if others := [
        tag
        for kind in sections_at(root, [step for step in place if isinstance(step, str)])
        for tag in tags(kind)
        if key in kind.model_fields
    ]:
        return f"; only {' and '.join(f'`{tag}`' for tag in others)} has it"
    for end in (key, *ALIASES.get(key, ())):
        if found := _places(root, end, place):
            shown = [_from(place, path, target) for target in found[:_MOST]]
            return _ask(shown)
    return _ask(difflib.get_close_matches(key, sorted(here), n=1))


def value_hint(value: object, allowed: Collection[str]) -> str:
    """The allowed value that was probably meant."""
    text = str(value).lower()
    for name in VALUES.get(text, ()):
        if name in allowed:
            more = " (with `quantization: nf4`)" if text == "qlora" else ""
            return f"; did you mean `{name}`{more}?"
    return _ask(difflib.get_close_matches(text, allowed, n=1))


def sections_at(root: type[BaseModel], loc: Sequence[str | int]) -> list[type[BaseModel]]:
    """The sections that may stand at a place; a union's tag in `loc` selects one of them."""
    found = [root]
    for step in loc:
        inner = [
            kind
            for section in found
            if step in section.model_fields
            for kind in _sections_in(section.model_fields[str(step)].annotation)
        ]
        tagged = [kind for kind in found if step in (*tags(kind), kind.__name__)]
        found = inner or tagged or found  # else an item of a list
    return found


def tags(kind: type[BaseModel]) -> list[str]:
    """The values of `type` or `source` that select a section in a union."""
    return [
        str(value)
        for name in ("type", "source")
        if name in kind.model_fields and get_origin(kind.model_fields[name].annotation) is Literal
        for value in get_args(kind.model_fields[name].annotation)
    ]


def _sections_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections_in(part)


def _places(root: type[BaseModel], end: str, place: Path) -> list[Path]:
    """The keys whose paths end so: those nearest to the section at hand, first below it. Keys below
    a free mapping, such as `args`, exist too."""
    wanted = tuple(end.split("."))
    found = dict.fromkeys(path for path in _keys(root) if _ends(path, wanted))
    if not found and len(wanted) > 1:
        *free, name = wanted
        found = {(*path, name): None for path in _keys(root, free=True) if _ends(path, (*free,))}
    ranks = {path: (-_common(path, place), len(path)) for path in found}
    nearest = [path for path in found if ranks[path] == min(ranks.values())]
    return [] if len(nearest) > _MOST else nearest


def _common(path: Path, other: Path) -> int:
    """The number of sections that two keys share."""
    return sum(takewhile(bool, map(eq, path, other)))


def _keys(kind: type[BaseModel], before: Path = (), *, free: bool = False) -> Iterator[Path]:
    """The paths of all keys below a section; with `free` those of mappings without a schema."""
    for name, field in kind.model_fields.items():
        path, inner = (*before, name), [*_sections_in(field.annotation)]
        if not free or (not inner and _is_mapping(field.annotation)):
            yield path
        for section in inner:
            if section is not kind:
                yield from _keys(section, path, free=free)


def _is_mapping(annotation: object) -> bool:
    return get_origin(annotation) is dict or any(map(_is_mapping, get_args(annotation)))


def _ends(path: Path, end: Path) -> bool:
    return path[-len(end) :] == end


def _from(place: Path, path: Sequence[str | int], target: Path) -> str:
    """A key's name within the section at hand, or else its path from the top."""
    if target[:-1] == place:
        return target[-1]
    if target[: len(place)] == place:  # with the numbers of the items on the way
        return ".".join(map(str, (*path[:-1], *target[len(place) :])))
    return ".".join(target)


def _ask(names: Sequence[str]) -> str:
    shown = " or ".join(f"`{name}`" for name in names)
    return f"; did you mean {shown}?" if names else ""
