"""Rented machines: a managed SkyPilot job with one task per stage."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar

from dpo_dist.config import Model
from dpo_dist.errors import ConfigError, ModelError, Preempted
from dpo_dist.estimates.memory import ModelShape, training_disk
from dpo_dist.phases.registry import SHARDED
from dpo_dist.runs.resources import find_shape
from dpo_dist.system.console import warn
from dpo_dist.system.options import Option
from dpo_dist.tools.launch.accelerate import accelerate_files
from dpo_dist.tools.launch.layout import Layout, Stage, accelerate_name, dns_name, inside
from dpo_dist.tools.launch.render import fill, to_yaml

SHARED = PurePosixPath("/shared")
SETTINGS = Path("/tmp")  # for a task's accelerate configuration
RESTARTS = 3  # of a task after an unknown failure
# GB of a machine's disk: the minimum (SkyPilot's default), and the part for system, packages
# and generations.
LEAST_DISK, RESERVED_DISK = 256, 64


@dataclass(frozen=True)
class SkyPilot:
    """Rented machines. Tasks share files on a `volume` or, if one machine trains, in a `bucket`.
    Machines without GPUs are never spot machines."""

    name: ClassVar[str] = "skypilot"
    gpu: Annotated[str, Option("GPU type, by SkyPilot's name, e.g. H100", "NAME")]
    bucket: Annotated[str | None, Option("bucket for the runs, for one machine", "NAME")] = None
    volume: Annotated[
        str | None, Option("volume for the runs, for any number of machines", "NAME")
    ] = None
    spot: Annotated[bool, Option("use spot (preemptible) GPU machines")] = False

    def __post_init__(self) -> None:
        if (self.bucket is None) == (self.volume is None):
            raise ConfigError("give exactly one of --bucket and --volume")

    def files(self, layout: Layout) -> dict[str, str]:
        if not layout.gpus_per_node:
            raise ConfigError("--gpus-per-node 0: SkyPilot tasks sample and train on GPUs")
        if self.bucket is not None and layout.nodes > 1:
            raise ConfigError(
                f"--nodes {layout.nodes} with --bucket: in a bucket, machines see each other's "
                "files late, and there is no locking; give a --volume that all machines mount"
            )
        # One shard per machine: a machine generates on all of its GPUs.
        contained = inside(replace(layout, shards=layout.nodes), SHARED / "runs")
        settings = accelerate_files(layout)
        header = {"name": dns_name(layout.name)}
        shape = _shape(contained.config.model)
        tasks = [self._task(contained, stage, settings, shape) for stage in contained.stages()]
        return {"skypilot.yaml": to_yaml([header, *tasks])}

    def submission(self, folder: Path, layout: Layout) -> list[str]:
        # Only the names: SkyPilot reads the values from the environment.
        keys = [key for key in layout.config.key_variables if key in os.environ]
        secrets = [word for key in keys for word in ("--secret", key)]
        return ["sky", "jobs", "launch", *secrets, str(folder / "skypilot.yaml")]

    def _task(
        self, layout: Layout, stage: Stage, settings: dict[str, str], shape: ModelShape | None
    ) -> dict[str, Any]:
        machines = layout.nodes if stage.shards else stage.nodes
        name = accelerate_name(stage.step.phase)
        arguments = [*layout.arguments(), *layout.stage_arguments(stage, SETTINGS)]
        run = fill(
            "skypilot/run.sh.j2",
            command=layout.command(stage, SETTINGS),
            trains=stage.trains,
            shards=stage.shards,
            preflight=["dpo-dist", "preflight", *arguments],
            machines=machines,
            settings=SETTINGS / name,
            accelerate=settings.get(name),
        )
        task: dict[str, Any] = {
            "name": f"{dns_name(layout.name)}-{stage.name}",
            "resources": self._resources(layout, stage, shape),
            "num_nodes": machines,
            "workdir": ".",
            "secrets": dict.fromkeys(layout.config.key_variables, ""),  # set by `--secret KEY`
            "setup": fill("skypilot/setup.sh.j2"),
            "run": run,
        }
        if self.volume is not None:
            return task | {"volumes": {str(SHARED): self.volume}}
        # One upload at a time: a manifest must arrive after the files that it declares complete.
        serial = {"mount_cached": {"transfers": 1}}
        mount = {"name": self.bucket, "mode": "MOUNT_CACHED", "config": serial}
        return task | {"file_mounts": {str(SHARED): mount}}

    def _resources(self, layout: Layout, stage: Stage, shape: ModelShape | None) -> dict[str, Any]:
        recovery = {
            "max_restarts_on_errors": RESTARTS,
            "recover_on_exit_codes": [Preempted.exit_code],
        }
        if not stage.gpus:
            return {"cpus": "8+", "memory": "32+", "job_recovery": recovery}
        whole = stage.trains or stage.job in SHARDED
        count = layout.gpus_per_node if whole else stage.gpus
        return {
            "accelerators": f"{self.gpu}:{count}",
            "use_spot": self.spot,
            "disk_size": self._disk_size(layout, stage, shape),
            "job_recovery": recovery,
        }

    def _disk_size(self, layout: Layout, stage: Stage, shape: ModelShape | None) -> int:
        """GB of disk. Every machine downloads the model. Files for a bucket stay on the machine's
        disk until they are uploaded."""
        if shape is None:
            return LEAST_DISK
        needed = 4 * shape.parameters
        if stage.trains and self.bucket is not None:
            section = layout.run.trainings[stage.step.phase]
            needed += sum(training_disk(shape, section, layout.config.model).values())
        return max(LEAST_DISK, RESERVED_DISK + math.ceil(needed / 1e9))


def _shape(model: Model) -> ModelShape | None:
    try:
        return find_shape(model)[0]
    except ModelError:
        warn(
            f"the size of {model.base} is unknown here, so disk_size is {LEAST_DISK} GB; raise it "
            "for a large model"
        )
        return None
