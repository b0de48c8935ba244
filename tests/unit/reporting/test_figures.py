"""The figures of single phases: a training's are those of the step that became its model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpo_dist.config import Train
from dpo_dist.data.rows import write_parquet
from dpo_dist.evaluation.scores import read_scores
from dpo_dist.intervals import wilson
from dpo_dist.reporting.figures import (
    MarginChange,
    TrainingFigures,
    alarms,
    cut_off_shares,
    evaluation_figures,
    funnel,
    training_figures,
)
from dpo_dist.runs.manifests import JudgeManifest, Manifests
from dpo_dist.storage.artifacts import write_json
from dpo_dist.storage.figures import parse_figures, to_json
from tests.report_figures import metric_lines
from tests.report_run import CONFIG, manifest

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


def figures(train: Path, selected: int, lines: list[dict[str, Any]] = LINES) -> TrainingFigures:
    settings = Train.model_validate({"beta": 0.2, "kl": {"budget": 0.3}})
    trained = manifest(
        "train",
        CONFIG.model_copy(update={"train": settings}),
        selected_step=selected,
        pairs={"train": 80, "validation": 8},
        reference="round 1",
        wall_seconds=9.0,
    )
    write_json(train / "manifest.json", trained)
    (train / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = [{"id": f"v{number // 2}"} for number in range(8)]  # two pairs a prompt
    write_parquet(train / "tokens" / "validation.parquet", rows)
    return training_figures(train)


def test_the_figures_are_those_of_the_step_that_became_the_model(tmp_path: Path) -> None:
    found = figures(tmp_path, 10)
    accuracy = found.accuracy
    assert accuracy is not None
    assert (accuracy.n, accuracy.mean) == (4, 0.75), "prompts are counted"
    assert (accuracy.low, accuracy.high) == pytest.approx((0.3006, 0.9544), abs=1e-4)
    values = to_json(found)
    del values["accuracy"]
    assert values == {
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
    assert found.margin is not None and found.accuracy is not None and found.kl is not None
    assert (found.loss, found.margin.last, found.accuracy.mean) == (0.5, 0.9, 0.6)
    assert found.kl.step == 10 and found.alarms == ("gap", "saturation")


def test_what_was_never_measured_is_none(tmp_path: Path) -> None:
    found = figures(tmp_path, 20, LINES[:1])
    assert found.accuracy is None and found.margin == MarginChange(first=0.0, last=0.0)
    assert found.kl is None and found.loss is None and found.first_loss is None


def test_a_training_without_alarms_says_nothing_of_them() -> None:
    assert alarms(metric_lines({"step": 1, "loss": 0.6})) == []


def test_a_funnel_that_does_not_add_up_is_a_bug() -> None:
    counts = {"in": 3, "kept": 1, "dropped": {"tie": 1}}
    leaking = parse_figures(manifest("judge", CONFIG, counts=counts), JudgeManifest, "test")
    with pytest.raises(AssertionError, match="judge"):
        funnel(Manifests(judge=leaking))


def test_cut_off_answers_are_counted_by_arm_with_an_interval(evaluate: Path) -> None:
    found = cut_off_shares(evaluate)
    assert found["dpo"] == wilson(5, 24) and found["sft"].mean == 0


def test_a_finished_evaluation_has_the_figures_of_its_scores(evaluate: Path) -> None:
    scores, found = read_scores(evaluate), evaluation_figures(evaluate)
    assert (found.preferred, found.length) == (scores.preferred, scores.length)
    assert found.length is not None and found.length.delta is not None
    assert found.cut_off.mean == 5 / 24 and found.length.delta.n == 24
