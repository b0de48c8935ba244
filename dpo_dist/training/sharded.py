"""Weights that DeepSpeed's ZeRO-3 or FSDP2 shards: how they are prepared, and gathered for a while.

During training, both gather a layer's weights in its forward, and only there. Code that reads a
weight elsewhere, or that generates token by token, uses the context managers of this module.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from peft.tuners.lora import LoraLayer
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from trl.models.utils import add_hooks, prepare_deepspeed, remove_hooks

from dpo_dist.system import ranks
from dpo_dist.system.console import warn
from dpo_dist.system.machine import GIB
from dpo_dist.training import CausalLM, Trainer
from dpo_dist.training.activations import free_bytes
from dpo_dist.training.callbacks import best_checkpoint
from dpo_dist.training.job import MEMORY_SHARE


def set_precision(accelerator: Accelerator) -> None:
    """Let FSDP2 compute in the precision of the training, but reduce gradients in float32, and not
    round outputs: accelerate's policy would round log-probs, which are sums over an answer, to
    bfloat16."""
    plugin = accelerator.state.fsdp_plugin if accelerator.is_fsdp2 else None
    if plugin is not None and plugin.mixed_precision_policy is not None:
        half = plugin.mixed_precision_policy.param_dtype
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=half, reduce_dtype=torch.float32
        )


def prepare_frozen(model: CausalLM, accelerator: Accelerator) -> CausalLM:
    """A model that is not trained, sharded as the policy is. (TRL would make one FSDP unit of it,
    whose forward gathers all weights.)"""
    if accelerator.state.deepspeed_plugin is not None:
        return prepare_deepspeed(model, accelerator)
    if accelerator.is_fsdp2:
        model = fsdp2_prepare_model(accelerator, model).eval()
        with torch.no_grad():  # FSDP finds its root in the first forward pass
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=accelerator.device))
        return model
    return accelerator.prepare_model(model, evaluation_mode=True)


def gather_whole_adapters(model: CausalLM) -> None:
    """Let ZeRO-3 gather the weights of an adapted layer together. Call this before DeepSpeed has
    the model.

    PEFT's layer reads weights of its parts. DeepSpeed would find that out in some forward pass,
    depending on what is gathered by chance. If it has recorded the order of the weights before, it
    stops with a "tracing error" as soon as it does not gather all weights ahead.
    """
    import deepspeed

    for module in model.modules():
        if isinstance(module, LoraLayer):
            for weight in module.parameters():
                deepspeed.zero.register_external_parameter(module, weight)


def save_model(trainer: Trainer, folder: Path) -> int:
    """Save the weights of the best step with `select: best`, else of the last one, gathered from
    all ranks, and return that step."""
    state = trainer.state
    best = best_checkpoint(state) if ranks.is_main() else None  # it reads all files
    best = broadcast_object_list([best])[0]
    fsdp = trainer.accelerator.is_fsdp2
    if fsdp:
        if best is not None:
            trainer._load_from_checkpoint(str(best), trainer.model_wrapped)
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(folder))
    if best is None:
        return int(state.global_step)
    if not fsdp and ranks.is_main():
        # Copied: ZeRO cannot load shards that another number of processes wrote.
        for file in folder.glob("*.safetensors*"):
            file.unlink()
        for file in best.glob("*.safetensors*"):
            shutil.copy2(file, folder / file.name)
    return int(state.best_global_step)


@contextmanager
def readable(model: CausalLM, accelerator: Accelerator) -> Iterator[CausalLM]:
    """The unwrapped model, whose parts may be called one by one: with the decoder layers still
    sharded, and with the weights of the other modules gathered under FSDP2. (ZeRO-3 gathers each
    module's weights when it is called.)"""
    with _unsharded([unit for unit in _units(model) if not _is_layer(unit, model)]):
        yield accelerator.unwrap_model(model)


@contextmanager
def generating(model: CausalLM, accelerator: Accelerator) -> Iterator[CausalLM]:
    """`readable`, with the weights gathered once for all tokens of a generation, if every rank has
    the memory for it. All ranks enter together."""
    zero3 = getattr(accelerator.state.deepspeed_plugin, "zero_stage", 0) == 3
    if not (zero3 or accelerator.is_fsdp2) or not _fits(model):
        with readable(model, accelerator) as causal_lm:
            yield causal_lm
        return
    with _gathered_from_zero(model) if zero3 else _gathered_from_fsdp(model, accelerator):
        yield accelerator.unwrap_model(model)


def _fits(model: CausalLM) -> bool:
    """Whether all weights fit into the free memory of every rank."""
    needed = sum(
        getattr(weight, "ds_numel", weight.numel()) * weight.element_size()
        for weight in model.parameters()
    )
    fits = all(gather_object([needed <= MEMORY_SHARE * free_bytes()]))
    if not fits and ranks.is_main():
        warn(
            f"the weights ({needed / GIB:.0f} GiB) do not fit on one device beside the training: "
            "the answers that measure the KL gather every layer for every token, which is slow. "
            "`train.kl.prompts: 0` turns the measurement off."
        )
    return fits


@contextmanager
def _gathered_from_zero(engine: CausalLM) -> Iterator[None]:
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(engine.parameters())):
        remove_hooks(engine)  # which would release each weight after its module's forward
        try:
            yield
        finally:
            add_hooks(engine)


@contextmanager
def _gathered_from_fsdp(model: CausalLM, accelerator: Accelerator) -> Iterator[None]:
    layers = [unit for unit in _units(model) if _is_layer(unit, model)]
    for layer in layers:
        layer.set_reshard_after_forward(False, recurse=False)
    try:
        with _unsharded(_units(model)):
            yield
    finally:
        releases = bool(accelerator.state.fsdp_plugin.reshard_after_forward)
        for layer in layers:
            layer.set_reshard_after_forward(releases, recurse=False)


@contextmanager
def _unsharded(units: list[FSDPModule]) -> Iterator[None]:
    for unit in units:
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()


def _units(model: CausalLM) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _is_layer(unit: FSDPModule, model: CausalLM) -> bool:
    """Whether an FSDP unit is a decoder layer. (FSDP derives a class of its own from each.)"""
    layers = set(getattr(model, "_no_split_modules", None) or [])
    return any(base.__name__ in layers for base in type(unit).__mro__)
