"""The figures of a finished training: those of the step that became its model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpo_dist.config import Train
from dpo_dist.data.rows import write_parquet
from dpo_dist.reporting.training import training_figures
from dpo_dist.storage.artifacts import write_json

LINES: list[dict[str, Any]] = [
    {"step": 0, "eval_rewards/margins": 0.0},
    {"step": 0, "kl/per_token": 0.0, "kl/per_token_se": 0.0, "kl/cut_off": 0.0, "kl/sequences": 4},
    {"step": 5, "loss": 0.69},
    {"step": 10, "loss": 0.6, "rewards/accuracies": 1.0},
    {"step": 10, "eval_rewards/margins": 0.5, "eval_rewards/accuracies": 0.75, "eval_loss": 0.62},
    {"step": 10, "kl/per_token": 0.1, "kl/cut_off": 0.25, "kl/sequences": 1},
    {"step": 10, "alarm": "gap", "message": "m"},
    {"step": 20, "loss": 0.5},
    {"step": 20, "eval_rewards/margins": 0.9, "eval_rewards/accuracies": 0.6, "eval_loss": 0.7},
    {"step": 20, "alarm": "saturation", "message": "m"},
]


def figures(train: Path, selected: int, lines: list[dict[str, Any]] = LINES) -> dict[str, Any]:
    settings = Train.model_validate({"beta": 0.2, "kl": {"budget": 0.3}})
    manifest = {
        "steps": 20,
        "selected_step": selected,
        "pairs": {"train": 80, "validation": 8},
        "reference": "round 1",
        "wall_seconds": 9.0,
        "peak_rss_bytes": 2**30,
        "config": {"train": settings.model_dump(mode="json")},
    }
    write_json(train / "manifest.json", manifest)
    (train / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = [{"id": f"v{number // 2}"} for number in range(8)]  # two pairs a prompt
    write_parquet(train / "tokens" / "validation.parquet", rows)
    return training_figures(train)


def test_the_figures_are_those_of_the_step_that_became_the_model(tmp_path: Path) -> None:
    found = figures(tmp_path, 10)
    accuracy = found.pop("accuracy")
    assert (accuracy["n"], accuracy["mean"]) == (4, 0.75), "prompts are counted"
    assert (accuracy["low"], accuracy["high"]) == pytest.approx((0.3006, 0.9544), abs=1e-4)
    assert found == {
        "steps": 20,
        "selected_step": 10,
        "pairs": {"train": 80, "validation": 8},
        "beta": 0.2,
        "kl_budget": 0.3,
        "reference": "round 1",
        "first_loss": 0.69,
        "loss": 0.6,
        "validation_loss": 0.62,
        "margin": {"first": 0.0, "last": 0.5},
        "kl": {"step": 10, "per_token": 0.1, "se": None, "answers": 1, "cut_off": 0.25},
        "alarms": ["gap"],
        "wall_seconds": 9.0,
        "peak_rss_bytes": 2**30,
    }


def test_the_last_step_has_what_was_measured_before_it(tmp_path: Path) -> None:
    found = figures(tmp_path, 20)
    assert (found["loss"], found["margin"]["last"], found["accuracy"]["mean"]) == (0.5, 0.9, 0.6)
    assert found["kl"]["step"] == 10 and found["alarms"] == ["gap", "saturation"]


def test_what_was_never_measured_is_none(tmp_path: Path) -> None:
    found = figures(tmp_path, 20, LINES[:1])
    assert found["accuracy"] is None and found["margin"] == {"first": 0.0, "last": 0.0}
    assert found["kl"] is None and found["loss"] is None and found["first_loss"] is None
