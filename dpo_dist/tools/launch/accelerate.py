"""The run file's accelerate configurations, adapted to the machines of a layout."""

from __future__ import annotations

from pathlib import Path

import yaml

from dpo_dist.config import Optimization
from dpo_dist.config.training import ACCELERATE_CONFIGS, accelerate_file
from dpo_dist.errors import ConfigError
from dpo_dist.system.console import counted
from dpo_dist.tools.launch.layout import Layout, accelerate_name
from dpo_dist.training.job import accumulation_steps
from dpo_dist.training.launch_shape import LaunchShape, read_accelerate_config


def accelerate_files(layout: Layout) -> dict[str, str]:
    """The configuration of each training phase, by file name. Raises `ConfigError` if the processes
    cannot share the global batch evenly, or if the run file's configuration is for CPUs but the
    nodes have GPUs, or for one process but several are needed."""
    return {
        accelerate_name(phase): _file(phase, section, layout)
        for phase, section in layout.run.trainings.items()
    }


def for_cpu(path: Path) -> bool:
    """Whether an accelerate configuration trains on the CPU even if there are GPUs."""
    return bool(read_accelerate_config(path).get("use_cpu"))


def _file(phase: str, section: Optimization, layout: Layout) -> str:
    path = accelerate_file(section.accelerate_config, layout.nodes * layout.gpus_per_node)
    processes = layout.nodes * _processes_per_node(phase, path, layout.gpus_per_node)
    try:
        accumulation_steps(section, processes)
    except ConfigError as error:
        raise ConfigError(f"{phase}: {error}") from None
    if processes > 1 and LaunchShape.read(path).one_process:
        raise ConfigError(
            f"{phase}.accelerate_config: {path} is for one process (distributed_type NO), but "
            f"this layout needs {processes}: name another with --set {phase}.accelerate_config=..."
        )
    values = read_accelerate_config(path)
    values |= {"num_machines": layout.nodes, "num_processes": processes}
    values.pop("machine_rank", None)  # differs per node: an option of the node's command
    shape = f"{layout.nodes} x {counted(processes // layout.nodes, 'process', 'processes')}"
    source = path.stem if path.parent == ACCELERATE_CONFIGS else path
    return f"# {source} for {shape}; made by `dpo-dist launch`.\n{yaml.safe_dump(values)}"


def _processes_per_node(phase: str, path: Path, gpus: int) -> int:
    if not gpus:
        return max(1, LaunchShape.read(path).per_machine)
    if for_cpu(path):
        raise ConfigError(
            f"{phase}.accelerate_config: {path} trains on the CPU, but the nodes have "
            f"{counted(gpus, 'GPU')} each: name another with --set {phase}.accelerate_config=..."
        )
    return gpus
