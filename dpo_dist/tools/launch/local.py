"""One machine: a script that looks for GPUs when it starts, and runs all phases."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dpo_dist.config import Train
from dpo_dist.losses import sorts
from dpo_dist.runs.directories import trainings
from dpo_dist.tools.launch.accelerate import for_processors
from dpo_dist.tools.launch.layout import Layout
from dpo_dist.tools.launch.render import fill


@dataclass(frozen=True)
class Local:
    """This machine. `setup` are lines of shell that make `dpo-dist` available."""

    name: ClassVar[str] = "local"
    setup: tuple[str, ...] = ()

    def files(self, layout: Layout) -> dict[str, str]:
        settings = [word for override in layout.overrides for word in ("--set", override)]
        agreed = ["--yes"] if layout.yes else []
        script = fill(
            "local/local.sh.j2",
            layout=layout,
            folder=layout.folder(self.name),
            setup=self.setup,
            trainings=_trainings(layout),
            command=["dpo-dist", "run", layout.run_file, "--preflight", *settings, *agreed],
        )
        return {"local.sh": script}

    def submission(self, folder: Path, layout: Layout) -> list[str]:
        return ["bash", str(folder / "local.sh")]


@dataclass(frozen=True)
class LocalTraining:
    """A training whose accelerate configuration is still to be chosen. `own` is the run file's,
    where that one is for GPUs; `unit` is the least of the global `batch` that a process takes."""

    phase: str
    own: Path | None
    batch: int
    micro: int
    unit: int


def _trainings(layout: Layout) -> list[LocalTraining]:
    chosen = []
    for phase, section in trainings(layout.config).items():
        key = f"{phase}.accelerate_config="
        if not any(override.startswith(key) for override in layout.overrides):
            own = section.accelerate_config
            micro = section.micro_batch_size
            training = LocalTraining(
                phase,
                own=None if for_processors(own) else own,
                batch=section.global_batch_size,
                micro=micro,
                # These compare the pairs of a micro-batch: in others they train otherwise.
                unit=micro if isinstance(section, Train) and sorts(section.loss) else 1,
            )
            chosen.append(training)
    return chosen
