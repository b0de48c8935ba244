"""What a node knows of itself and of the run: what has to be the same on all, and what it has."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dpo_dist.config import Config, Optimization
from dpo_dist.data.models import check_model, is_hub_id
from dpo_dist.errors import ConfigError, DpoDistError, ModelError
from dpo_dist.estimates.disk import training_disk
from dpo_dist.estimates.memory import ModelShape
from dpo_dist.phases.pipeline import package_versions
from dpo_dist.runs.directories import trainings
from dpo_dist.runs.resources import model_shape, planned_bytes
from dpo_dist.runs.weights import arm_weights
from dpo_dist.storage.artifacts import file_digest
from dpo_dist.system.machine import GIB, Gpu, available_memory, free_disk, gpus
from dpo_dist.system.ranks import Nodes
from dpo_dist.tools.doctor.surroundings import extension_locks
from dpo_dist.training.accelerate_command import check_address, check_launch
from dpo_dist.training.job import (
    accumulation_steps,
    machines,
    num_processes,
    read_accelerate_config,
)

BESIDES = GIB  # of disk: tokens, logs, records


class Facts(BaseModel):
    """One node's; memory and disk in bytes. `problems` are what it has found wrong by itself."""

    rank: int
    host: str
    versions: dict[str, str]
    run: str
    model: str
    sft: str
    processes: int
    wants_gpus: bool
    gpus: list[Gpu]
    memory: int
    memory_needed: int
    disk: int
    disk_needed: int
    problems: list[str]


def gather(config: Config, nodes: Nodes | None) -> Facts:
    """This node's facts. Raises `ConfigError` where the run file trains nothing."""
    sections = list(trainings(config).values())
    if not sections:
        raise ConfigError("the run file has neither `sft` nor `train`: there is nothing to check")
    problems = list(_problems(config, sections, nodes))
    if problems:
        needed = disk_needed = 0  # what they rest on is not known
        processes = 0
    else:
        paths = [section.accelerate_config for section in sections]
        processes = max(num_processes(path) // machines(path) for path in paths)
        shape = _shape(config)
        needed = max(_planned(shape, section) for section in sections)
        trained = (training_disk(shape, section, config.model) for section in sections)
        disk_needed = BESIDES + max(sum(parts.values()) for parts in trained)
    return Facts(
        rank=nodes.rank if nodes else 0,
        host=socket.gethostname(),
        versions=package_versions(),
        run=_digest(config.model_dump(mode="json")),
        model=_model(config.model.base),
        sft=_model(sft) if (sft := _given_sft(config)) else "",
        processes=processes,
        wants_gpus=any(_wants_gpus(section.accelerate_config) for section in sections),
        gpus=gpus(),
        memory=available_memory(),
        memory_needed=needed,
        disk=free_disk(config.run.output_dir),
        disk_needed=disk_needed,
        problems=problems,
    )


def _problems(config: Config, sections: list[Optimization], nodes: Nodes | None) -> Iterator[str]:
    """What is wrong by itself, whatever the other nodes have."""
    try:
        check_model(config.model.base)
        for section in sections:
            check_launch(section, nodes)
            accumulation_steps(section, num_processes(section.accelerate_config))
        _shape(config)
        if _given_sft(config):
            arm_weights(config, "sft")  # raises where they are not there, or of another base
    except DpoDistError as error:
        yield str(error)
    if (locks := extension_locks()).state == "failed":
        yield f"stale locks: {locks.text}. {locks.advice}"
    if nodes is not None:
        try:
            check_address(nodes)
        except DpoDistError as error:
            yield str(error)


def _shape(config: Config) -> ModelShape:
    """The base model's sizes. Raises `ModelError` where its configuration cannot be had."""
    try:
        return model_shape(config.model.base, config.model.trust_remote_code)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ModelError(
            f"{config.model.base}: cannot read its configuration ({first}). A Hub model must be "
            "in this machine's cache, or the network must be reachable."
        ) from None


def _planned(shape: ModelShape, section: Optimization) -> int:
    """A process's planned peak, at rows of the greatest length, with all checkpointing, and with
    validation rows, which are there by default."""
    lengths = [section.max_length] * section.micro_batch_size
    return planned_bytes(shape, section, lengths, validates=True)["full"]


def _wants_gpus(accelerate_config: Path) -> bool:
    try:
        values = read_accelerate_config(accelerate_config)
    except ConfigError:
        return False  # it is among the problems
    return not values.get("use_cpu") and values.get("mixed_precision") == "bf16"


def _given_sft(config: Config) -> str | None:
    """The SFT model that training starts from, where it was there before the run."""
    return None if config.model.sft == "phase" else config.model.sft


def _model(model: str) -> str:
    """What tells a model's files from others without reading the weights: the digest of its
    configuration, and every weight file's name and size; of a Hub id the commit in this machine's
    cache, which is another where another node has fetched the model earlier."""
    if is_hub_id(model):
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(model, "config.json")
        commit = Path(found).parent.name if isinstance(found, str) else "not in the cache"
        return f"hub:{model} {commit}"
    folder = Path(model)
    weights = sorted((path.name, path.stat().st_size) for path in folder.glob("*.safetensors*"))
    texts = sorted(folder.glob("*.json"))
    return _digest([weights, [(path.name, file_digest(path)) for path in texts]])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
