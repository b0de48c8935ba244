from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dpo_dist.config import Train
from dpo_dist.errors import ConfigError
from dpo_dist.training import activations
from dpo_dist.training.activations import choose_checkpointing
from dpo_dist.training.job import TrainingJob

PLAN = {"none": 900, "selective": 500, "full": 300}


def job(**settings: Any) -> TrainingJob:
    return TrainingJob(
        kind="dpo",
        settings=Train(learning_rate=1e-3, **settings),
        model="model",
        dtype="bfloat16",
        rows=Path("rows.parquet"),
        planned_peak_bytes=PLAN,
        out=Path("out"),
        seed=0,
        run_name="test",
    )


@pytest.mark.parametrize(
    ("free", "chosen"), [(2000, "none"), (1000, "selective"), (400, "full"), (10, "full")]
)
def test_auto_is_the_first_that_fits_with_room_to_spare(
    free: int, chosen: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(activations, "_free_bytes", lambda: free)
    assert choose_checkpointing(job()) == chosen
    assert (f"activation checkpointing: {chosen}" in capsys.readouterr().err) == (chosen != "none")


def test_what_is_asked_for_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "_free_bytes", lambda: 10)
    assert choose_checkpointing(job(gradient_checkpointing="none")) == "none"


def test_zero3_knows_no_selective_checkpointing(monkeypatch: pytest.MonkeyPatch) -> None:
    zero3 = {"accelerate_config": Path("accelerate_configs/cpu_zero3.yaml")}
    monkeypatch.setattr(activations, "_free_bytes", lambda: 1000)
    assert choose_checkpointing(job(**zero3)) == "full"
    with pytest.raises(ConfigError, match="ZeRO-3"):
        choose_checkpointing(job(gradient_checkpointing="selective", **zero3))
