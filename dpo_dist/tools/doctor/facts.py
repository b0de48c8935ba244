"""The facts of one node: what must be the same on all nodes, and its resources."""

from __future__ import annotations

import hashlib
import json
import re
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel

from dpo_dist.config import Model, Optimization
from dpo_dist.data.models import check_model, check_unquantized, is_hub_id
from dpo_dist.errors import ConfigError, DpoDistError, ModelError
from dpo_dist.estimates.hardware import Cluster
from dpo_dist.estimates.memory import ModelShape, training_disk
from dpo_dist.phases.pipeline import package_versions
from dpo_dist.runs.resources import model_shape, planned_bytes, planned_host, ways_that_fit
from dpo_dist.runs.run import Run
from dpo_dist.storage.artifacts import file_digest
from dpo_dist.system.machine import GIB, Gpu, available_memory, free_disk, gpus
from dpo_dist.system.ranks import Nodes
from dpo_dist.tools.doctor.environment import extension_locks
from dpo_dist.tools.doctor.findings import Finding
from dpo_dist.tools.doctor.rdma import transport
from dpo_dist.training.accelerate_command import check_address, check_launch
from dpo_dist.training.job import accumulation_steps
from dpo_dist.training.launch_shape import LaunchShape, read_accelerate_config

OTHER_FILES = GIB  # on disk: tokens, logs, records
# A GPU whose memory differs by more than this share is of another kind (40 and 80 GB of an A100).
OTHER_GPU = 0.1


class Facts(BaseModel):
    """Memory and disk are in bytes: `memory` is the available CPU memory, `memory_needed` what a
    process needs of its device, and `host_needed` what a node with GPUs needs of its CPU memory.
    `alternatives` would fit where these are too little. `problems` are those that need no
    comparison of nodes."""

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
    host_needed: int
    alternatives: list[str]
    disk: int
    disk_needed: int
    rdma: Finding
    problems: list[str]


def gather(run: Run, nodes: Nodes | None, planned: Cluster | None = None) -> Facts:
    """Collect this node's facts; `planned` are the GPUs that it should have. Raises `ConfigError`
    if the run file has no training."""
    config, sections = run.config, list(run.trainings.values())
    if not sections:
        raise ConfigError("the run file has neither `sft` nor `train`: there is nothing to check")
    devices, memory = gpus(), available_memory()
    problems = list(_problems(run, nodes))
    if planned is not None and (other := other_gpus(devices, planned)):
        problems.append(other)
    alternatives: list[str] = []
    if problems:
        needed = host_needed = disk_needed = processes = 0  # unknown
        on_gpus = []
    else:
        paths = [section.accelerate_file for section in sections]
        processes = max(LaunchShape.read(path).per_machine for path in paths)
        configs = [read_accelerate_config(path) for path in paths]
        on_gpus = [c.get("mixed_precision") == "bf16" and not c.get("use_cpu") for c in configs]
        shape = _shape(config.model)
        needed = max(_planned(shape, section) for section in sections)
        host_needed = max(planned_host(shape, s, validates=True).peak for s in sections)
        alternatives = _alternatives(shape, sections, devices, memory)
        trained = (training_disk(shape, section, config.model) for section in sections)
        disk_needed = OTHER_FILES + max(sum(parts.values()) for parts in trained)
    return Facts(
        rank=nodes.rank if nodes else 0,
        host=socket.gethostname(),
        versions=package_versions(),
        run=_digest(config.dump()),
        model=_model(config.model.base),
        sft=_model(sft) if (sft := _given_sft(config.model)) else "",
        processes=processes,
        wants_gpus=any(on_gpus),
        gpus=devices,
        memory=memory,
        memory_needed=needed,
        host_needed=host_needed,
        alternatives=alternatives,
        disk=free_disk(config.run.output_dir),
        disk_needed=disk_needed,
        rdma=transport(several=nodes is not None),
        problems=problems,
    )


def _problems(run: Run, nodes: Nodes | None) -> Iterator[str]:
    """What is wrong on this node, independent of the other nodes."""
    model = run.config.model
    try:
        check_model(model.base)
        check_unquantized(model.base)
        for section in run.trainings.values():
            check_launch(section, nodes)
            accumulation_steps(section, LaunchShape.read(section.accelerate_file).processes)
        _shape(model)
        if _given_sft(model):
            run.weights("sft")  # raises if they are missing or belong to another base
    except DpoDistError as error:
        yield str(error)
    if (locks := extension_locks()).state == "failed":
        yield f"stale locks: {locks.text}. {locks.advice}"
    if nodes is not None:
        try:
            check_address(nodes)
        except DpoDistError as error:
            yield str(error)


def other_gpus(found: Sequence[Gpu], planned: Cluster) -> str | None:
    """How a node's GPUs differ from the planned ones; None: they are those."""
    kind, each = planned.name.partition("-")[0], planned.gpu.memory
    same = [
        gpu
        for gpu in found
        if re.search(rf"\b{kind}\b", gpu.name) and abs(gpu.total - each) <= OTHER_GPU * each
    ]
    if len(same) == len(found) >= planned.per_node:
        return None
    names = Counter(f"{gpu.name} ({gpu.total / GIB:.0f} GiB)" for gpu in found)
    devices = ", ".join(f"{count} x {name}" for name, count in names.items()) or "no GPU"
    return (
        f"planned for {planned.per_node} x {planned.name} per node, but this node has {devices}: "
        "run `dpo-dist plan` for these GPUs"
    )


def _shape(model: Model) -> ModelShape:
    """The base model's shape. Raises `ModelError` if its configuration cannot be read."""
    try:
        return model_shape(model.base, model.trust_remote_code)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ModelError(
            f"{model.base}: cannot read its configuration ({first}). A Hub model must be "
            "in this machine's cache, or the network must be reachable."
        ) from None


def _planned(shape: ModelShape, section: Optimization) -> int:
    """The planned peak memory of a process in bytes: rows of the maximum length, full activation
    checkpointing, and validation rows, which exist by default."""
    lengths = [section.max_length] * section.micro_batch_size
    return planned_bytes(shape, section, lengths, validates=True)["full"]


def _alternatives(
    shape: ModelShape, sections: list[Optimization], devices: list[Gpu], memory: int
) -> list[str]:
    """What would fit on nodes like this one, for the first section that does not."""
    if not devices:
        return []
    free = min(gpu.free for gpu in devices)
    for section in sections:
        host = planned_host(shape, section, validates=True).peak
        if _planned(shape, section) > free or host > memory:
            tokens = section.max_length * section.micro_batch_size
            return ways_that_fit(shape, section, tokens, gpu=free, host=memory)
    return []


def _given_sft(model: Model) -> str | None:
    """The SFT model that the run file names; None: the run trains it."""
    return None if model.sft == "phase" else model.sft


def _model(model: str) -> str:
    """Identifies a model without reading its weights. For a Hub id: the commit in this machine's
    cache, which may differ between nodes. For a folder: a digest of the JSON files and of the names
    and sizes of the weight files."""
    if is_hub_id(model):
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(model, "config.json")
        commit = Path(found).parent.name if isinstance(found, str) else "not in the cache"
        return f"hub:{model} {commit}"
    folder = Path(model)
    weights = sorted((path.name, path.stat().st_size) for path in folder.glob("*.safetensors*"))
    texts = sorted(folder.glob("*.json"))
    return _digest([weights, [(path.name, file_digest(path)) for path in texts]])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
