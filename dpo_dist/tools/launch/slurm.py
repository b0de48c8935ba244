"""SLURM: a job for each phase, each waiting for the one before."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dpo_dist.tools.launch.accelerate import accelerate_files
from dpo_dist.tools.launch.layout import Layout, Stage
from dpo_dist.tools.launch.render import fill


@dataclass(frozen=True)
class Slurm:
    """A cluster under SLURM.

    `cpu_partition` takes the jobs without GPUs. A job has `cpus_per_gpu` processors for each of
    its GPUs, or `cpus`. It is told `save_seconds` before its time is up to save its work, and is
    queued again, `max_requeues` times at most. `setup` are lines of shell that make `dpo-dist`
    available; `container` are words before every `dpo-dist`, `sbatch` and `srun` more options.
    """

    name: ClassVar[str] = "slurm"
    partition: str | None = None
    cpu_partition: str | None = None
    account: str | None = None
    time: str | None = None
    cpus_per_gpu: int = 8
    cpus: int = 4
    save_seconds: int = 300
    max_requeues: int = 100
    sbatch: tuple[str, ...] = ()
    srun: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    container: str = ""

    def files(self, layout: Layout) -> dict[str, str]:
        folder = layout.folder(self.name)
        common = {"layout": layout, "folder": folder, "options": self, "prefix": self._prefix}
        scripts = {
            f"{job}.sbatch": fill(
                "slurm/job.sbatch.j2",
                stage=stage,
                directives=self._directives(layout, stage),
                own=layout.own_words(stage, folder),
                **common,
            )
            for job, stage in layout.jobs().items()
        }
        together = {
            "job.sh": fill("slurm/job.sh.j2", **common),
            "submit.sh": fill("slurm/submit.sh.j2", stages=layout.stages(), **common),
        }
        if any(stage.trains for stage in layout.stages()):
            together["node.sh"] = fill(
                "slurm/node.sh.j2", preflight=layout.preflight_words(folder), **common
            )
        return {**together, **scripts, **accelerate_files(layout)}

    @property
    def _prefix(self) -> list[str]:
        return [*shlex.split(self.container), "dpo-dist"]

    def submission(self, folder: Path, layout: Layout) -> list[str]:
        return ["bash", str(folder / "submit.sh")]

    def _directives(self, layout: Layout, stage: Stage) -> list[str]:
        """The options of sbatch, one a line."""
        array = stage.shards > 0
        log = layout.root / "logs" / ("%x-%A_%a.out" if array else "%x-%j.out")
        cpus = stage.gpus * self.cpus_per_gpu if stage.gpus else self.cpus
        partition = self.partition if stage.gpus else self.cpu_partition or self.partition
        wanted: dict[str, object] = {
            "job-name": f"{layout.name}-{stage.job}",
            "chdir": shlex.quote(str(layout.workdir)),
            "output": shlex.quote(str(log)),
            "open-mode": "append",
            "signal": f"B:USR1@{self.save_seconds}",
            "array": f"0-{stage.shards - 1}" if array else None,
            "nodes": stage.nodes,
            "ntasks-per-node": 1,
            "cpus-per-task": cpus,
            "gres": f"gpu:{stage.gpus}" if stage.gpus else None,
            "partition": partition,
            "account": self.account,
            "time": self.time,
        }
        given = [f"--{name}={value}" for name, value in wanted.items() if value is not None]
        return ["--requeue", *given, *self.sbatch]
