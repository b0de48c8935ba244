"""The run file's accelerate configurations, for the machines of a layout."""

from __future__ import annotations

from pathlib import Path

import yaml

from dpo_dist.config import Optimization
from dpo_dist.errors import ConfigError
from dpo_dist.runs.directories import trainings
from dpo_dist.system.console import counted
from dpo_dist.tools.launch.layout import Layout, accelerate_name
from dpo_dist.training.job import (
    accumulation_steps,
    for_one_process,
    machines,
    num_processes,
    read_accelerate_config,
)


def accelerate_files(layout: Layout) -> dict[str, str]:
    """A configuration for each training phase, by the name of its file.

    Raises `ConfigError` where the processes cannot share the global batch evenly, and where the
    run file's own configuration is one for processors but the nodes have GPUs, or one for a single
    process, of which accelerate would start no more.
    """
    return {
        accelerate_name(phase): _file(phase, section, layout)
        for phase, section in trainings(layout.config).items()
    }


def for_processors(path: Path) -> bool:
    """Whether an accelerate configuration trains on processors whatever else there is."""
    return bool(read_accelerate_config(path).get("use_cpu"))


def _file(phase: str, section: Optimization, layout: Layout) -> str:
    path = section.accelerate_config
    processes = layout.nodes * _processes_per_node(phase, path, layout.gpus_per_node)
    try:
        accumulation_steps(section, processes)
    except ConfigError as error:
        raise ConfigError(f"{phase}: {error}") from None
    values = {
        **read_accelerate_config(path),
        "num_machines": layout.nodes,
        "num_processes": processes,
    }
    if processes > 1 and for_one_process(path):
        raise ConfigError(
            f"{phase}.accelerate_config: {path} is for one process (distributed_type NO), but "
            f"this layout needs {processes}: name another with --set {phase}.accelerate_config=..."
        )
    values.pop("machine_rank", None)  # every node's own: it comes with its command
    shape = f"{layout.nodes} x {counted(processes // layout.nodes, 'process', 'processes')}"
    return f"# {path} for {shape}; made by `dpo-dist launch`.\n{yaml.safe_dump(values)}"


def _processes_per_node(phase: str, path: Path, gpus: int) -> int:
    if not gpus:
        return max(1, num_processes(path) // machines(path))
    if for_processors(path):
        raise ConfigError(
            f"{phase}.accelerate_config: {path} trains on the CPU, but the nodes have "
            f"{counted(gpus, 'GPU')} each: name another with --set {phase}.accelerate_config=..."
        )
    return gpus
