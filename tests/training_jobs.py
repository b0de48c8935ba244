"""Jobs of trainings that a test runs in part, or of which only some fields matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpo_dist.config import Train
from dpo_dist.training.job import TrainingJob


def training_job(out: Path, **fields: Any) -> TrainingJob:
    """A DPO training in `out` with these fields."""
    usual = {
        "kind": "dpo",
        "settings": Train(),
        "model": "model",
        "dtype": "float32",
        "rows": out / "rows.parquet",
        "planned_peak_bytes": {"none": 0, "selective": 0, "full": 0},
        "out": out,
        "seed": 1,
        "run_name": "test",
    }
    return TrainingJob.model_validate(usual | fields)
