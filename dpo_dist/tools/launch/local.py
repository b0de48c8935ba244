"""One machine: a script that counts the GPUs when it starts, and runs all phases."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, TypeAlias

from dpo_dist.config import Train
from dpo_dist.losses import sorting_losses
from dpo_dist.system.options import Option, set_options
from dpo_dist.tools.launch.accelerate import for_cpu
from dpo_dist.tools.launch.layout import Layout
from dpo_dist.tools.launch.render import fill

# Shell lines that make `dpo-dist` available.
Setup: TypeAlias = Annotated[
    tuple[str, ...],
    Option("a shell line to run first, e.g. 'source .venv/bin/activate'", "LINE"),
]


@dataclass(frozen=True)
class Local:
    """This machine."""

    name: ClassVar[str] = "local"
    setup: Setup = ()

    def files(self, layout: Layout) -> dict[str, str]:
        arguments = [layout.run_file, "--preflight", *set_options(layout.overrides)]
        script = fill(
            "local/local.sh.j2",
            layout=layout,
            folder=layout.folder(self.name),
            setup=self.setup,
            trainings=_trainings(layout),
            command=["dpo-dist", "run", *arguments, *(["--yes"] if layout.yes else [])],
        )
        return {"local.sh": script}

    def submission(self, folder: Path, layout: Layout) -> list[str]:
        return ["bash", str(folder / "local.sh")]


def _trainings(layout: Layout) -> list[list[str]]:
    """The script's arguments of `choose`, for the trainings whose accelerate configuration the user
    does not override."""
    trainings = []
    for phase, section in layout.run.trainings.items():
        key = f"{phase}.accelerate_config="
        if any(override.startswith(key) for override in layout.overrides):
            continue
        own, micro = section.accelerate_file, section.micro_batch_size
        # A loss that sorts the pairs of a micro-batch depends on the micro-batch's size.
        unit = micro if isinstance(section, Train) and sorting_losses(section.loss) else 1
        numbers = map(str, (section.global_batch_size, micro, unit))
        trainings.append([phase, *numbers, *([] if for_cpu(own) else [str(own)])])
    return trainings
