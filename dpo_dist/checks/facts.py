"""What a node knows of itself and of the run: what has to be the same on all, and what it has."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dpo_dist.artifacts import file_digest
from dpo_dist.checks.surroundings import extension_locks
from dpo_dist.config import Config, Full, Optimization
from dpo_dist.data.models import check_model, is_hub_id
from dpo_dist.errors import ConfigError, DpoDistError, ModelError
from dpo_dist.machine import GIB, Gpu, available_memory, free_disk, gpus
from dpo_dist.phases.pipeline import package_versions
from dpo_dist.phases.resources import model_shape, planned_bytes
from dpo_dist.planning.memory import ModelShape
from dpo_dist.ranks import Nodes
from dpo_dist.training.accelerate_command import check_address, check_launch
from dpo_dist.training.job import (
    accumulation_steps,
    machines,
    num_processes,
    read_accelerate_config,
)


class Facts(BaseModel):
    """One node's; memory and disk in bytes. `problems` are what it has found wrong by itself."""

    rank: int
    host: str
    versions: dict[str, str]
    run: str
    model: str
    processes: int
    wants_gpus: bool
    gpus: list[Gpu]
    memory: int
    memory_needed: int
    disk: int
    disk_needed: int
    problems: list[str]


def trainings(config: Config) -> Iterator[Optimization]:
    """The sections of the run file that train."""
    yield from (section for section in (config.sft, config.train) if section is not None)


def gather(config: Config, nodes: Nodes | None) -> Facts:
    """This node's facts. Raises `ConfigError` where the run file trains nothing."""
    sections = list(trainings(config))
    if not sections:
        raise ConfigError("the run file has neither `sft` nor `train`: nothing is to be checked")
    problems = list(_problems(config, sections, nodes))
    if problems:
        needed = disk_needed = 0  # what they rest on is not known
        processes = 0
    else:
        settings = sections[-1].accelerate_config
        processes = num_processes(settings) // machines(settings)
        shape = _shape(config)
        needed = max(_planned(shape, section) for section in sections)
        disk_needed = max(_disk(shape, section) for section in sections)
    return Facts(
        rank=nodes.rank if nodes else 0,
        host=socket.gethostname(),
        versions=package_versions(),
        run=_digest(config.model_dump(mode="json")),
        model=_model(config.model.base),
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
            f"{config.model.base}: its configuration cannot be read ({first}). From the Hub it has "
            "to be in this machine's cache, or the network reachable."
        ) from None


def _planned(shape: ModelShape, section: Optimization) -> int:
    """A process's planned peak, at rows of the greatest length, with all checkpointing, and with
    validation rows, which are there by default."""
    lengths = [section.max_length] * section.micro_batch_size
    return planned_bytes(shape, section, lengths, validates=True)["full"]


def _disk(shape: ModelShape, section: Optimization) -> int:
    """Checkpoints (weights and AdamW's states in float32: 12 bytes a trained weight, 16 under
    ZeRO) and the model."""
    if not isinstance(section.method, Full):
        return GIB
    return GIB + shape.parameters * (16 * (section.keep_checkpoints + 1) + 4)


def _wants_gpus(accelerate_config: Path) -> bool:
    try:
        values = read_accelerate_config(accelerate_config)
    except ConfigError:
        return False  # it is among the problems
    return not values.get("use_cpu") and values.get("mixed_precision") == "bf16"


def _model(model: str) -> str:
    """What tells a model's files from others without reading the weights: the digest of its
    configuration, and every weight file's name and size. A Hub id stands for itself."""
    if is_hub_id(model):
        return f"hub:{model}"
    folder = Path(model)
    weights = sorted((path.name, path.stat().st_size) for path in folder.glob("*.safetensors*"))
    texts = sorted(folder.glob("*.json"))
    return _digest([weights, [(path.name, file_digest(path)) for path in texts]])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
