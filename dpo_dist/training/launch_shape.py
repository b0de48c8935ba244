"""How the processes of a training share it: what an accelerate configuration says, or the launcher
that has started this process."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from dpo_dist.config import Optimization, Section
from dpo_dist.config.training import ACCELERATE_CONFIGS
from dpo_dist.errors import ConfigError
from dpo_dist.system import ranks
from dpo_dist.system.machine import has_cuda, visible_gpus
from dpo_dist.system.yamlfile import YamlError, parse_yaml

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
    def of(cls, settings: Optimization) -> LaunchShape:
        """The shape in which a training phase trains in this process, or would be started by it.
        Raises `ConfigError`."""
        return cls.of_launcher() if ranks.launched() else cls.read(settings.accelerate_file)

    @classmethod
    def of_launcher(cls) -> LaunchShape:
        """The shape that the launcher of this process has set in its environment: torchrun's
        variables, and those of accelerate's utils/launch.py. Raises `ConfigError`."""
        deepspeed = {}
        if _is_true("ACCELERATE_USE_DEEPSPEED"):
            prefix = "ACCELERATE_DEEPSPEED_"
            names = (name for name in os.environ if name.startswith(prefix))
            deepspeed = {name.removeprefix(prefix).lower(): os.environ[name] for name in names}
            # The key in accelerate's file.
            deepspeed["deepspeed_config_file"] = deepspeed.pop("config_file", "")
            deepspeed.setdefault("zero_stage", str(_DEFAULT_STAGE))
        try:
            stage, offloads = _zero_stage(deepspeed), _offloads(deepspeed)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"the launcher's DeepSpeed configuration: {error}") from None
        return cls(
            processes=ranks.world_size(),
            machines=ranks.machines(),
            zero_stage=stage,
            fsdp=_is_true("ACCELERATE_USE_FSDP"),
            offloads=offloads,
        )

    @classmethod
    def read(cls, accelerate_config: Path) -> LaunchShape:
        """The shape in an accelerate configuration. Raises `ConfigError`."""
        values = read_accelerate_config(accelerate_config)
        deepspeed = values.get("deepspeed_config") or {}
        if values.get("distributed_type") == "DEEPSPEED":
            deepspeed = {"zero_stage": _DEFAULT_STAGE, **deepspeed}
        return cls(
            processes=int(values["num_processes"]),
            machines=int(values.get("num_machines", 1)),
            zero_stage=_zero_stage(deepspeed),
            fsdp=values.get("distributed_type") == "FSDP",
            offloads=_offloads(deepspeed),
            one_process=_one_process(values),
        )

    @property
    def per_machine(self) -> int:
        """The processes of one machine."""
        return self.processes // self.machines

    @property
    def connected(self) -> bool:
        """Whether the processes, even a single one, form a process group."""
        return self.processes > 1 or self.zero_stage > 0 or self.fsdp

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


_DEFAULT_STAGE = 2  # of accelerate's DeepSpeed plugin


def _is_true(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")


def read_accelerate_config(accelerate_config: Path) -> dict[str, Any]:
    """Its values. Raises `ConfigError` if it is not a valid accelerate configuration."""
    try:
        values = parse_yaml(accelerate_config.read_text(encoding="utf-8"))
        machines = int(values.get("num_machines", 1))
        int(values["num_processes"])
        _zero_stage(values.get("deepspeed_config") or {})
    except FileNotFoundError:
        name = accelerate_config.stem
        known = (ACCELERATE_CONFIGS / f"{name}.yaml").is_file()
        advice = f". The configuration that is shipped is named `{name}`" if known else ""
        raise ConfigError(f"accelerate_config: {accelerate_config}: no such file{advice}") from None
    except YamlError as error:
        raise ConfigError(f"accelerate_config: {accelerate_config}: {error}") from None
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise ConfigError(
            f"accelerate_config: {accelerate_config}: cannot read `num_processes` ({error})"
        ) from None
    on_gpus = values.get("mixed_precision") == "bf16"  # of the shipped files
    if accelerate_config.parent == ACCELERATE_CONFIGS and on_gpus and not _one_process(values):
        # A configuration that is given by its name is for this machine's GPUs.
        gpus = len(visible_gpus()) if has_cuda() else 0
        values["num_processes"] = gpus * machines or values["num_processes"]
    return dict(values)


def _one_process(values: dict[str, Any]) -> bool:
    # YAML reads an unquoted NO as False.
    return values.get("distributed_type") in ("NO", False)


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
