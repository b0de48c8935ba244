"""Whether DPO can continue an SFT adapter: it must be of the kind that the run file describes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from pydantic import JsonValue

from dpo_dist.config import Full, Lora, Model, Train
from dpo_dist.config.method import ADAPTER_KIND, LINEAR
from dpo_dist.errors import ConfigError, ModelError
from dpo_dist.storage.artifacts import read_json

ADAPTER_CONFIG = "adapter_config.json"
# Together they say which modules have an adapter.
_PLACES = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


def check_method(section: Train, adapter: Path | None, model: Model) -> None:
    """Raises `ConfigError` for a method that cannot start from the model with this SFT adapter, and
    what `check_continued` raises."""
    if isinstance(section.method, Full) and section.merge:
        raise ConfigError("train.merge: there is no adapter to merge when all weights are trained")
    if adapter is not None and isinstance(section.method, Lora):
        check_continued(section.method, adapter, model)


def check_continued(method: Lora, adapter: Path, model: Model) -> None:
    """Raises `ConfigError` if the adapter is not of the kind that `train.method` describes, and
    `ModelError` if DPO cannot use it: the reference is this adapter, so its base must be the
    base."""
    settings = read_json(adapter / ADAPTER_CONFIG)
    if settings.get("peft_type", "LORA") != "LORA":
        raise ModelError(f"{adapter}: an adapter of the type {settings['peft_type']}, not LORA")
    if settings.get("bias", "none") != "none":
        raise ModelError(
            f"{adapter}: it was trained with bias: {settings['bias']}, which changes the base model"
        )
    for key in ADAPTER_KIND:
        if key not in _PLACES:
            _compare(key, getattr(method, key), settings, adapter)
    if model.sft == "phase":  # the run file's sections agree on the places
        return
    found = settings.get("target_modules")
    plain = not any(settings.get(key) or getattr(method, key) for key in _PLACES[1:])
    if isinstance(found, list) and plain:
        if method.target_modules == "all-linear" and _is_whole_llama(found, model):
            return
        if set(found) == set(method.target_modules):
            return
    _compare_modules(method, adapter, model)


def _compare(key: str, wanted: object, settings: dict[str, JsonValue], adapter: Path) -> None:
    theirs = "lora_alpha" if key == "alpha" else key
    found = settings.get(theirs)
    values = [sorted(v) if isinstance(v, list | tuple) else v or None for v in (wanted, found)]
    if values[0] == values[1]:
        return
    raise ConfigError(
        f"train.method.{key} is {json.dumps(wanted)}, but DPO continues training the SFT adapter "
        f"{adapter}, whose {theirs} is {json.dumps(found)}. Set it to {json.dumps(found)}."
    )


def _is_whole_llama(targets: list[str], model: Model) -> bool:
    """Whether these are the linear layers of a Llama: their names, or their places in full."""
    config = Path(model.base) / "config.json"
    if {name.rpartition(".")[2] for name in targets} != set(LINEAR):
        return False
    if len(targets) == len(LINEAR):
        return True
    layers = read_json(config).get("num_hidden_layers") if config.exists() else None
    return layers is not None and len(targets) == len(LINEAR) * layers


def _compare_modules(method: Lora, adapter: Path, model: Model) -> None:
    """Compare the names of the modules with an adapter, those of the run file on a model without
    weights. Raises `ConfigError`."""
    import torch
    from peft import get_peft_model
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModelForCausalLM

    from dpo_dist.training.models import lora_config

    config = AutoConfig.from_pretrained(model.base, trust_remote_code=model.trust_remote_code)
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)
        names = get_peft_model(base, lora_config(method)).state_dict()
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        found = _adapted(file.keys())
    wanted = _adapted(names)
    if wanted != found:
        name = min(wanted ^ found)
        which = "has one" if name in found else "has none"
        raise ConfigError(
            f"train.method.target_modules gives other layers an adapter than the SFT adapter "
            f"{adapter} has, which DPO continues: at {name} it {which}. Set the "
            f"`target_modules` of its {ADAPTER_CONFIG}."
        )


def _adapted(names: Iterable[str]) -> set[str]:
    return {name.partition(".lora_A")[0] for name in names if ".lora_A" in name}
