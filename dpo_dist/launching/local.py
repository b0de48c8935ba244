"""One machine: a script that looks for GPUs when it starts, and runs all phases."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dpo_dist.config import Optimization
from dpo_dist.launching.accelerate import for_processors
from dpo_dist.launching.layout import TRAINING, Layout
from dpo_dist.launching.render import fill
from dpo_dist.phases.runs import phases_of


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
            command=["dpo-dist", "run", layout.run_file, *settings, *agreed],
        )
        return {"local.sh": script}

    def submission(self, folder: Path, layout: Layout) -> list[str]:
        return ["bash", str(folder / "local.sh")]


def _trainings(layout: Layout) -> dict[str, Path | None]:
    """The training phases whose accelerate configuration is still to be chosen, and the run
    file's own where that one is for GPUs."""
    chosen: dict[str, Path | None] = {}
    for phase in TRAINING:
        section: Optimization | None = getattr(layout.config, phase)
        key = f"{phase}.accelerate_config="
        if section is None or phase not in phases_of(layout.config):
            continue
        if not any(override.startswith(key) for override in layout.overrides):
            own = section.accelerate_config
            chosen[phase] = None if for_processors(own) else own
    return chosen
