"""How the processes of a training share it: what an accelerate configuration says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from dpo_dist.config import Section
from dpo_dist.errors import ConfigError

NOT_SHARDED = "no sharding"


class LaunchShape(Section):
    """The processes of a training and what DeepSpeed or FSDP shards between them.

    - `processes`: on all `machines` together.
    - `zero_stage`: DeepSpeed's; 0 without ZeRO.
    - `fsdp`: sharded by FSDP2.
    - `offloads`: weights and optimizer states are in the CPU's memory or on disk.
    - `one_process`: accelerate starts one process, whatever the number of processes is.
    """

    processes: int = 1
    machines: int = 1
    zero_stage: int = 0
    fsdp: bool = False
    offloads: bool = False
    one_process: bool = False

    @classmethod
    def read(cls, accelerate_config: Path) -> LaunchShape:
        """The shape in an accelerate configuration. Raises `ConfigError`."""
        values = read_accelerate_config(accelerate_config)
        deepspeed = values.get("deepspeed_config") or {}
        return cls(
            processes=int(values["num_processes"]),
            machines=int(values.get("num_machines", 1)),
            zero_stage=_zero_stage(deepspeed),
            fsdp=values.get("distributed_type") == "FSDP",
            offloads=_offloads(deepspeed),
            # YAML reads an unquoted NO as False.
            one_process=values.get("distributed_type") in ("NO", False),
        )

    @property
    def per_machine(self) -> int:
        """The processes of one machine."""
        return self.processes // self.machines

    @property
    def sharding(self) -> str:
        """Who shards the training, as a checkpoint records it: its files fit no other."""
        if self.fsdp:
            return "FSDP"
        return f"DeepSpeed ZeRO-{self.zero_stage}" if self.zero_stage else NOT_SHARDED

    @property
    def shards_weights(self) -> bool:
        """Whether no process holds all weights."""
        return self.fsdp or self.zero_stage == 3


def read_accelerate_config(accelerate_config: Path) -> dict[str, Any]:
    """Its values. Raises `ConfigError` if it is not a valid accelerate configuration."""
    try:
        values = yaml.safe_load(accelerate_config.read_text(encoding="utf-8"))
        int(values["num_processes"]), int(values.get("num_machines", 1))
        _zero_stage(values.get("deepspeed_config") or {})
        return dict(values)
    except FileNotFoundError:
        raise ConfigError(f"accelerate_config: {accelerate_config}: no such file") from None
    except (yaml.YAMLError, AttributeError, TypeError, KeyError, ValueError) as error:
        raise ConfigError(
            f"accelerate_config: {accelerate_config}: cannot read `num_processes` ({error})"
        ) from None


def _zero_stage(settings: dict[str, Any]) -> int:
    if file := settings.get("deepspeed_config_file"):
        return int(_zero_optimization(file).get("stage", 0))
    return int(settings.get("zero_stage", 0))


def _offloads(settings: dict[str, Any]) -> bool:
    keys = ("offload_param", "offload_optimizer")
    if file := settings.get("deepspeed_config_file"):
        zero = _zero_optimization(file)
        devices = [(zero.get(key) or {}).get("device") for key in keys]
    else:
        devices = [settings.get(f"{key}_device") for key in keys]
    return all(device in ("cpu", "nvme") for device in devices)


def _zero_optimization(deepspeed_config: str) -> dict[str, Any]:
    settings = json.loads(Path(deepspeed_config).read_text(encoding="utf-8"))
    return dict(settings.get("zero_optimization", {}))
