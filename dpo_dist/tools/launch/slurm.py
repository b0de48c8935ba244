"""SLURM: one job per phase; each starts after the previous one."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from dpo_dist.system.options import Option
from dpo_dist.tools.launch.accelerate import accelerate_files
from dpo_dist.tools.launch.layout import Layout, Stage
from dpo_dist.tools.launch.local import Setup
from dpo_dist.tools.launch.render import fill


@dataclass(frozen=True)
class Slurm:
    """A cluster under SLURM."""

    name: ClassVar[str] = "slurm"
    setup: Setup = ()
    partition: Annotated[str | None, Option("partition for jobs with GPUs", "NAME")] = None
    cpu_partition: Annotated[
        str | None, Option("partition for jobs without GPUs (default: --partition)", "NAME")
    ] = None
    account: Annotated[str | None, Option("account to charge", "NAME")] = None
    time: Annotated[str | None, Option("time limit of a job; it is then requeued", "LIMIT")] = None
    cpus_per_gpu: Annotated[int, Option("CPUs per GPU", "N")] = 8
    cpus: Annotated[int, Option("CPUs of jobs without GPUs", "N")] = 4
    save_seconds: Annotated[int, Option("seconds to save before the time limit", "S")] = 300
    max_requeues: Annotated[int, Option("maximum number of requeues of a job", "N")] = 100
    container: Annotated[
        str, Option("command to put before dpo-dist, e.g. 'apptainer exec IMAGE'", "WORDS")
    ] = ""
    sbatch: Annotated[
        tuple[str, ...], Option("pass an option to sbatch, e.g. --sbatch=--qos=high", "OPTION")
    ] = ()
    srun: Annotated[
        tuple[str, ...],
        Option("pass an option to srun, e.g. --srun=--container-image=IMAGE", "OPTION"),
    ] = ()

    def files(self, layout: Layout) -> dict[str, str]:
        folder = layout.folder(self.name)
        prefix = [*shlex.split(self.container), "dpo-dist"]
        common = {"layout": layout, "folder": folder, "options": self, "prefix": prefix}
        scripts = {
            f"{job}.sbatch": fill(
                "slurm/job.sbatch.j2",
                stage=stage,
                directives=self._directives(layout, stage),
                own=layout.stage_arguments(stage, folder),
                **common,
            )
            for job, stage in layout.jobs().items()
        }
        shared = {
            "job.sh": fill("slurm/job.sh.j2", **common),
            "submit.sh": fill("slurm/submit.sh.j2", stages=layout.stages(), **common),
        }
        if any(stage.trains for stage in layout.stages()):
            preflight = layout.preflight_arguments(folder)
            shared["node.sh"] = fill("slurm/node.sh.j2", preflight=preflight, **common)
        return {**shared, **scripts, **accelerate_files(layout)}

    def submission(self, folder: Path, layout: Layout) -> list[str]:
        return ["bash", str(folder / "submit.sh")]

    def _directives(self, layout: Layout, stage: Stage) -> list[str]:
        """The options of sbatch for a job."""
        array = stage.shards > 0
        log = layout.run.root / "logs" / ("%x-%A_%a.out" if array else "%x-%j.out")
        values: dict[str, object] = {
            "job-name": f"{layout.name}-{stage.job}",
            "chdir": shlex.quote(str(layout.workdir)),
            "output": shlex.quote(str(log)),
            "open-mode": "append",
            "signal": f"B:USR1@{self.save_seconds}",
            "array": f"0-{stage.shards - 1}" if array else None,
            "nodes": stage.nodes,
            "ntasks-per-node": 1,
            "cpus-per-task": stage.gpus * self.cpus_per_gpu if stage.gpus else self.cpus,
            "gres": f"gpu:{stage.gpus}" if stage.gpus else None,
            "partition": self.partition if stage.gpus else self.cpu_partition or self.partition,
            "account": self.account,
            "time": self.time,
        }
        given = [f"--{name}={value}" for name, value in values.items() if value is not None]
        return ["--requeue", *given, *self.sbatch]
