"""Rented machines: a managed job of SkyPilot, with a task for each stage."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from dpo_dist.config import Config
from dpo_dist.errors import ConfigError, ModelError, Preempted
from dpo_dist.estimates.disk import training_disk
from dpo_dist.estimates.memory import ModelShape
from dpo_dist.phases.pipeline import GENERATING
from dpo_dist.runs.directories import trainings
from dpo_dist.runs.shapes import find_shape
from dpo_dist.system.console import warn
from dpo_dist.tools.launch.accelerate import accelerate_files
from dpo_dist.tools.launch.images import dns_name, inside
from dpo_dist.tools.launch.layout import Layout, Stage, accelerate_name
from dpo_dist.tools.launch.manifests import to_yaml
from dpo_dist.tools.launch.render import fill

SHARED = PurePosixPath("/shared")
SETTINGS = Path("/tmp")  # where a task writes its accelerate configuration
RESTARTS = 3  # of a task that fails for no known reason
# Of a machine's disk, in GB: SkyPilot's own default is the least, and what the system, the packages
# and generations take of it is left free for them.
LEAST_DISK, OTHERS_TAKE = 256, 64


@dataclass(frozen=True)
class SkyPilot:
    """Machines with `gpu`s, `spot` ones or not; those without GPUs are never spot ones. What tasks
    leave to each other lies on a `volume`, or, where one machine trains, in a `bucket`."""

    name: ClassVar[str] = "skypilot"
    gpu: str
    bucket: str | None = None
    volume: str | None = None
    spot: bool = False

    def __post_init__(self) -> None:
        if (self.bucket is None) == (self.volume is None):
            raise ConfigError("give exactly one of --bucket and --volume")

    def files(self, layout: Layout) -> dict[str, str]:
        if not layout.gpus_per_node:
            raise ConfigError("--gpus-per-node 0: SkyPilot tasks sample and train on GPUs")
        if self.bucket is not None and layout.nodes > 1:
            raise ConfigError(
                f"--nodes {layout.nodes} with --bucket: in a bucket, machines see each other's "
                "files late, and there is no locking; give a --volume that all of them mount"
            )
        # A machine generates with all of its GPUs, and needs no more than one shard.
        there = inside(replace(layout, shards=layout.nodes), SHARED / "runs")
        settings = accelerate_files(layout)
        header = {"name": dns_name(layout.name)}
        shape = _shape(there.config)
        tasks = [
            self._task(there, stage, settings, self._resources(there, stage, shape))
            for stage in there.stages()
        ]
        return {"skypilot.yaml": to_yaml([header, *tasks])}

    def submission(self, folder: Path, layout: Layout) -> list[str]:
        # By their names: SkyPilot reads them from the environment.
        here = [key for key in layout.config.key_variables if key in os.environ]
        secrets = [word for key in here for word in ("--secret", key)]
        return ["sky", "jobs", "launch", *secrets, str(folder / "skypilot.yaml")]

    def _task(
        self, there: Layout, stage: Stage, settings: dict[str, str], resources: dict[str, Any]
    ) -> dict[str, Any]:
        machines = there.nodes if stage.shards else stage.nodes
        name = accelerate_name(stage.step.phase)
        run = fill(
            "skypilot/run.sh.j2",
            command=there.command(stage, SETTINGS),
            trains=stage.trains,
            shards=stage.shards,
            preflight=["dpo-dist", "preflight", *there.words(), *there.own_words(stage, SETTINGS)],
            machines=machines,
            settings=SETTINGS / name,
            accelerate=settings.get(name),
        )
        task: dict[str, Any] = {
            "name": f"{dns_name(there.name)}-{stage.name}",
            "resources": resources,
            "num_nodes": machines,
            "workdir": ".",
            # Empty ones that `--secret KEY` fills.
            "secrets": dict.fromkeys(there.config.key_variables, ""),
            "setup": fill("skypilot/setup.sh.j2"),
            "run": run,
        }
        if self.volume is not None:
            return task | {"volumes": {str(SHARED): self.volume}}
        mounted = {
            "name": self.bucket,
            "mode": "MOUNT_CACHED",
            # One after the other: what says that others are complete comes after them.
            "config": {"mount_cached": {"transfers": 1}},
        }
        return task | {"file_mounts": {str(SHARED): mounted}}

    def _resources(self, there: Layout, stage: Stage, shape: ModelShape | None) -> dict[str, Any]:
        recovery = {
            "max_restarts_on_errors": RESTARTS,
            "recover_on_exit_codes": [Preempted.exit_code],
        }
        if not stage.gpus:
            return {"cpus": "8+", "memory": "32+", "job_recovery": recovery}
        whole = stage.trains or stage.job in GENERATING
        count = there.gpus_per_node if whole else stage.gpus
        return {
            "accelerators": f"{self.gpu}:{count}",
            "use_spot": self.spot,
            "disk_size": self._disk_size(there, stage, shape),
            "job_recovery": recovery,
        }

    def _disk_size(self, there: Layout, stage: Stage, shape: ModelShape | None) -> int:
        """In GB. Every machine downloads the model; what it writes into a bucket lies on its own
        disk, too, until it has been copied there."""
        if shape is None:
            return LEAST_DISK
        needed = 4 * shape.parameters
        if stage.trains and self.bucket is not None:
            section = trainings(there.config)[stage.step.phase]
            needed += sum(training_disk(shape, section, there.config.model).values())
        return max(LEAST_DISK, OTHERS_TAKE + math.ceil(needed / 1e9))


def _shape(config: Config) -> ModelShape | None:
    try:
        return find_shape(config)[0]
    except ModelError:
        warn(
            f"the disks have {LEAST_DISK} GB: {config.model.base}'s size is not known here; raise "
            "disk_size for a large model"
        )
        return None
