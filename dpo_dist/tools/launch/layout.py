"""The jobs of a run and the resources of each, independent of the scheduler."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Annotated

from dpo_dist.config import Config, EngineConfig, Resource, required
from dpo_dist.errors import ConfigError, NotConfirmed
from dpo_dist.phases.registry import SHARDED
from dpo_dist.runs.run import TRAINING, Run, Step
from dpo_dist.system.console import counted
from dpo_dist.system.options import Option, set_options


@dataclass(frozen=True)
class Stage:
    """One `dpo-dist` command and its resources. `job` is unique in a round: the phase evaluate
    generates in the job `evaluate` on GPUs and judges in the job `score`. Without shards the job
    has `nodes` with `gpus` each. With `shards` (even with one) there is a job per shard on `gpus`
    of one node, and it only generates."""

    job: str
    step: Step
    nodes: int = 1
    gpus: int = 0
    shards: int = 0

    @property
    def name(self) -> str:
        """Unique in the run: `train`, or `train-2` in round 2."""
        return f"{self.job}-{self.step.round}" if self.step.round else self.job

    @property
    def needs(self) -> str:
        """The resources in words."""
        count = counted(self.shards, "job") if self.shards else counted(self.nodes, "node")
        return f"{count}, {counted(self.gpus, 'GPU')} each" if self.gpus else count

    @property
    def trains(self) -> bool:
        return self.step.phase in TRAINING


@dataclass(frozen=True)
class Layout:
    """A run and the machines that run it. Its jobs start in `workdir`. Raises `ConfigError` for
    impossible numbers, and `NotConfirmed` for a paid judge without `yes`."""

    run_file: Path
    run: Run
    overrides: tuple[str, ...] = ()
    nodes: Annotated[int, Option("number of machines to train on", "N")] = 1
    gpus_per_node: Annotated[int, Option("GPUs per machine; 0: CPU only", "M")] = 0
    shards: Annotated[int | None, Option("sampling jobs (default: one per engine)", "K")] = None
    workdir: Annotated[Path, Option("working directory of the jobs", "DIR")] = Path()
    yes: Annotated[bool, Option("use paid judges without asking for confirmation")] = False

    def __post_init__(self) -> None:
        for name, least in (("nodes", 1), ("gpus_per_node", 0), ("shards", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"--{name.replace('_', '-')} {value}: at least {least}")
        if any(judge.paid for judge in self.config.judges) and not self.yes:
            raise NotConfirmed(
                "a judge of this run costs money, and a job cannot ask for confirmation: pass "
                "--yes to proceed"
            )

    @property
    def config(self) -> Config:
        return self.run.config

    @property
    def name(self) -> str:
        return self.config.run.name

    def folder(self, target: str) -> Path:
        """The folder of a target's files."""
        return self.run.root / "launch" / target

    def stages(self) -> tuple[Stage, ...]:
        """All stages in order. Each waits for the previous one."""
        if not self.run.phases:
            raise ConfigError(f"{self.run_file}: the run file configures no phase")
        return tuple(stage for step in self.run.steps for stage in self._stages(step))

    def jobs(self) -> dict[str, Stage]:
        """Every job's first stage, by the job's name; later ones differ only in the round."""
        jobs: dict[str, Stage] = {}
        for stage in self.stages():
            jobs.setdefault(stage.job, stage)
        return jobs

    def arguments(self) -> list[str]:
        """The arguments of every command: the run file and the user's `--set`, without accelerate
        configurations, which the layout's own files replace."""
        replaced = tuple(f"{phase}.accelerate_config=" for phase in TRAINING)
        kept = [override for override in self.overrides if not override.startswith(replaced)]
        return [str(self.run_file), *set_options(kept)]

    def stage_arguments(self, stage: Stage, accelerate_folder: Path) -> list[str]:
        """The further arguments of a stage, except round and shard. `accelerate_folder` holds the
        files of `accelerate.accelerate_files`."""
        phase = stage.step.phase
        if stage.trains:
            return set_options([accelerate_setting(phase, accelerate_folder)])
        arguments = ["--yes"] if self.yes and phase in ("judge", "evaluate") else []
        if phase in SHARDED and stage.gpus and (key := self._workers_key(phase)):
            arguments += set_options([f"{key}=null"])  # a worker per GPU of the job
        return arguments

    def command(self, stage: Stage, accelerate_folder: Path) -> list[str]:
        """The complete command of a stage, except its shard."""
        own = self.stage_arguments(stage, accelerate_folder)
        at_round = ["--round", str(stage.step.round)] if stage.step.round else []
        return ["dpo-dist", stage.step.phase, *self.arguments(), *own, *at_round]

    def preflight_arguments(self, accelerate_folder: Path) -> list[str]:
        """The arguments of `dpo-dist preflight`, for all trainings of the run."""
        phases = [stage.step.phase for stage in self.jobs().values() if stage.trains]
        settings = [accelerate_setting(phase, accelerate_folder) for phase in phases]
        return [*self.arguments(), *set_options(settings)]

    def _stages(self, step: Step) -> list[Stage]:
        match step.phase:
            case "sft" | "train":
                return [Stage(step.phase, step, self.nodes, self.gpus_per_node)]
            case "sample":
                return [self._generation(step, required(self.config.sample).engine)]
            case "judge":
                judge = required(self.config.judge).judge
                return [Stage("judge", step, gpus=self._gpus_for(judge))]
            case "evaluate":
                generation = self._generation(step, self.config.evaluation_engine)
                if not generation.shards:
                    return [generation]
                evaluate = required(self.config.evaluate)
                gpus = self._gpus_for(evaluate.judge, evaluate.benchmarks)
                return [generation, Stage("score", step, gpus=gpus)]
            case _:
                return [Stage(step.phase, step)]

    def _generation(self, step: Step, engine: EngineConfig) -> Stage:
        if not engine.needs_gpu:  # servers generate
            return Stage(step.phase, step)
        each = engine.gpus_per_worker
        if self.gpus_per_node and each > self.gpus_per_node:
            raise ConfigError(
                f"{step.phase}: engine.tensor_parallel_size is {each}, but a node has "
                f"{counted(self.gpus_per_node, 'GPU')}"
            )
        shards = self.shards or self.nodes * max(1, self.gpus_per_node // each)
        gpus = each if self.gpus_per_node else 0
        array = shards > 1 or gpus
        return Stage(step.phase, step, gpus=gpus, shards=shards if array else 0)

    def _workers_key(self, phase: str) -> str | None:
        """The key that sets the number of workers per machine; None: the run file has none."""
        own = phase == "evaluate" and self.config.evaluate and self.config.evaluate.engine
        section = "evaluate" if own else "sample"
        engine = own or (self.config.sample and self.config.sample.engine)
        fixed = engine and engine.fixed_workers is not None
        return f"{section}.engine.workers" if fixed else None

    def _gpus_for(self, *resources: Resource | None) -> int:
        """1 if any of the resources needs a GPU and the nodes have GPUs, otherwise 0."""
        needed = any(resource is not None and resource.needs_gpu for resource in resources)
        return min(1, self.gpus_per_node) if needed else 0


def accelerate_name(phase: str) -> str:
    """The name of a training phase's accelerate configuration."""
    return f"accelerate_{phase}.yaml"


def accelerate_setting(phase: str, folder: Path) -> str:
    """The override that makes a training phase use its accelerate configuration in `folder`."""
    return f"{phase}.accelerate_config={folder / accelerate_name(phase)}"


def check_image(image: str) -> None:
    """Raise `ConfigError` for an image without a fixed version."""
    if re.search(r"@sha256:[0-9a-f]{64}$", image):
        return
    tag = image.rpartition("/")[2].partition(":")[2]
    if tag in ("", "latest"):
        raise ConfigError(
            f"image {image}: give its version (or digest), so that every job of the run uses the "
            "same image"
        )


def inside(layout: Layout, runs: PurePosixPath) -> Layout:
    """The layout for jobs in containers, which write their runs to `runs`. The run file has the
    same path relative to the working directory there as here. Raises `ConfigError` for a run file
    outside the current directory."""
    given, found = layout.run_file, layout.run_file.resolve()
    # A link keeps its name: what it leads to here may be elsewhere in the containers.
    relative = os.path.relpath(found if given.is_absolute() else given)
    if not found.is_relative_to(Path.cwd()) or relative.startswith(".."):
        raise ConfigError(
            f"{layout.run_file} is outside the working directory, so its path in the containers "
            f"is unknown: run this from the directory that becomes {layout.workdir} in the "
            "containers"
        )
    section = layout.config.run.model_copy(update={"output_dir": Path(runs)})
    config = layout.config.model_copy(update={"run": section})
    return replace(
        layout,
        run_file=layout.workdir / relative,
        run=replace(layout.run, config=config),
        overrides=(*layout.overrides, f"run.output_dir={runs}"),
    )


def dns_name(text: str) -> str:
    """A name for Kubernetes and Compose: a lower-case letter, then letters, digits and hyphens."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return name if name[:1].isalpha() else f"run-{name}".rstrip("-")
