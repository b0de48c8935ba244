"""What the training's metrics.jsonl says in a few figures, and its alarms."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpo_dist.config import Train
from dpo_dist.reporting.text import visible

Line = Mapping[str, Any]
KL_KEYS = ("per_token", "per_token_se", "cut_off")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a training's metrics.jsonl; none where there is no such training."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def training_figures(
    metrics: Sequence[Line], train: Train | None, selected: int | None = None
) -> dict[str, Any] | None:
    """The figures of the step that became the model: the `selected` one, or the last.

    `margin` is the reward gap on validation pairs at the first and at that evaluation, `kl` the
    divergence of the policy's own answers from the reference (nats per token). What was not
    measured is None, and so is everything where nothing was trained.
    """
    steps = [int(line["step"]) for line in metrics if "alarm" not in line]
    if train is None or not steps:
        return None
    selected = max(steps) if selected is None else selected
    until = [line for line in metrics if int(line["step"]) <= selected]
    margins = logged(until, "eval_rewards/margins")
    kls = [line for line in until if "kl/per_token" in line]
    return {
        "step": selected,
        "beta": train.beta,
        "kl_budget": train.kl.budget,
        "margin": {"first": margins[0], "last": margins[-1]} if margins else None,
        "accuracy": last_value(until, "eval_rewards/accuracies"),
        "kl": {key: kls[-1].get(f"kl/{key}") for key in KL_KEYS} if kls else None,
    }


def alarms(metrics: Sequence[Line]) -> list[dict[str, Any]]:
    """What the training's monitors warned of, and at which step."""
    return [
        {
            "step": int(line["step"]),
            "kind": visible(str(line["alarm"]).replace("_", " ")),
            "message": visible(str(line["message"])),
        }
        for line in metrics
        if "alarm" in line
    ]


def logged(lines: Sequence[Line], key: str) -> list[float]:
    """All values of a metric, in their order."""
    return [float(line[key]) for line in lines if key in line]


def last_value(lines: Sequence[Line], *keys: str) -> float | None:
    """The newest value of the first of the metrics that was logged at all."""
    return next((values[-1] for key in keys if (values := logged(lines, key))), None)
