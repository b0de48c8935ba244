"""Run files of every shape that a layout may meet; nothing of what they name has to exist."""

from __future__ import annotations

from pathlib import Path

from dpo_dist.config.runfile import load_config
from dpo_dist.runs.run import Run
from dpo_dist.tools.launch.layout import Layout
from tests.conftest import ROOT

RECIPE = Path("recipes/incident_triage/run.yaml")
ZERO2 = tuple(
    f"{phase}.accelerate_config={ROOT}/accelerate_configs/cpu_zero2.yaml"
    for phase in ("sft", "train")
)
ONE_EACH = tuple(
    f"{phase}.{size}"
    for phase in ("sft", "train")
    for size in ("global_batch_size=16", "micro_batch_size=1")
)


def layout(*overrides: str, run_file: Path = ROOT / RECIPE, **machines: object) -> Layout:
    """The demo's layout on some machines."""
    return Layout(
        run_file=RECIPE if run_file == ROOT / RECIPE else run_file,
        run=Run(load_config(run_file, overrides)),
        overrides=tuple(overrides),
        **machines,  # type: ignore[arg-type]
    )
