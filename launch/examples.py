"""Writes the other files of this folder, which `dpo-dist launch` renders for the demo: `make
launch-examples`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dpo_dist.config.runfile import load_config
from dpo_dist.runs.run import Run
from dpo_dist.tools.launch.compose import Compose
from dpo_dist.tools.launch.kubernetes.target import Kubernetes
from dpo_dist.tools.launch.layout import Layout
from dpo_dist.tools.launch.local import Local
from dpo_dist.tools.launch.render import Target, write
from dpo_dist.tools.launch.skypilot import SkyPilot
from dpo_dist.tools.launch.slurm import Slurm

RECIPE = Path("recipes/incident_triage/run.yaml")
# Global batches and micro-batches of this small recipe that sixteen GPUs can share.
ON_GPUS = (
    "sft.accelerate_config=accelerate_configs/zero2.yaml",
    "train.accelerate_config=accelerate_configs/zero2.yaml",
    "sft.global_batch_size=16",
    "sft.micro_batch_size=1",
    "train.global_batch_size=16",
    "train.micro_batch_size=1",
)
FROM_HUB = "model.base=HuggingFaceTB/SmolLM2-135M-Instruct"  # no image holds the model
IN_IMAGE = Path("/workspace")
ACTIVATE = ("source .venv/bin/activate",)


@dataclass(frozen=True)
class Example:
    """A target's files for a recipe, and the folder to which they are written."""

    folder: Path
    target: Target
    run_file: Path
    overrides: tuple[str, ...] = ()
    nodes: int = 1
    gpus_per_node: int = 0
    workdir: Path = Path("/shared/dpo_dist")

    def files(self) -> dict[str, str]:
        layout = Layout(
            run_file=self.run_file,
            run=Run(load_config(self.run_file, self.overrides)),
            overrides=self.overrides,
            nodes=self.nodes,
            gpus_per_node=self.gpus_per_node,
            workdir=self.workdir,
        )
        return self.target.files(layout)


EXAMPLES = (
    Example(Path("launch"), Local(setup=ACTIVATE), RECIPE),
    Example(
        Path("launch/slurm"),
        Slurm(partition="gpu", cpu_partition="cpu", time="12:00:00", setup=ACTIVATE),
        RECIPE,
        ON_GPUS,
        nodes=2,
        gpus_per_node=8,
    ),
    Example(
        Path("launch/kubernetes"),
        Kubernetes(image="registry.example/dpo-dist:0.1.0", storage_class="shared-nfs"),
        RECIPE,
        (FROM_HUB, *ON_GPUS),
        nodes=2,
        gpus_per_node=8,
        workdir=IN_IMAGE,
    ),
    Example(
        Path("launch/container"),
        Compose(image="dpo-dist:0.1.0", cpu_image="dpo-dist:0.1.0-cpu"),
        RECIPE,
        (FROM_HUB,),
        workdir=IN_IMAGE,
    ),
    Example(
        Path("launch/cloud"),
        SkyPilot(gpu="H100", volume="dpo-dist-runs", spot=True),
        RECIPE,
        (FROM_HUB, *ON_GPUS),
        nodes=2,
        gpus_per_node=8,
        workdir=Path(),
    ),
)


if __name__ == "__main__":
    for example in EXAMPLES:
        write(example.files(), example.folder)
