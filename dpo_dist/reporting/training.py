"""What a finished training says in a few figures, and its alarms."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dpo_dist.intervals import Estimate, wilson
from dpo_dist.reporting.text import visible
from dpo_dist.storage.artifacts import MANIFEST, read_json

Line = Mapping[str, Any]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a training's metrics.jsonl; none where there is no such training."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def training_figures(train: Path) -> dict[str, Any]:
    """Where a complete train phase has ended: the figures of the step that became its model.

    Each is the last one logged up to that step, "first_loss" the first of all; None where it was
    never measured. "margin" is the reward gap on validation pairs at the first and at the last
    evaluation, and the interval of "accuracy" counts their prompts, since pairs of one prompt are
    not independent. "kl" is that of the policy's own answers from "reference", in nats per token,
    with its standard error and the step that it was measured at.
    """
    manifest = read_json(train / MANIFEST)
    settings, selected = manifest["config"]["train"], manifest["selected_step"]
    lines = [line for line in read_metrics(train / "metrics.jsonl") if line["step"] <= selected]
    margins = _logged(lines, "eval_rewards/margins")
    accuracy = _last(lines, "eval_rewards/accuracies")
    return {
        "steps": manifest["steps"],
        "selected_step": selected,
        "pairs": manifest["pairs"],
        "beta": settings["beta"],
        "kl_budget": settings["kl"]["budget"],
        "reference": manifest["reference"],
        "first_loss": next(iter(_logged(lines, "loss")), None),
        "loss": _last(lines, "loss"),
        "validation_loss": _last(lines, "eval_loss"),
        "accuracy": None if accuracy is None else asdict(_accuracy(accuracy, train)),
        "margin": {"first": margins[0], "last": margins[-1]} if margins else None,
        "kl": _kl(lines),
        "alarms": [line["alarm"] for line in lines if "alarm" in line],
        "wall_seconds": manifest["wall_seconds"],
        "peak_rss_bytes": manifest["peak_rss_bytes"],
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


def _kl(lines: Sequence[Line]) -> dict[str, Any] | None:
    line = next((line for line in reversed(lines) if "kl/per_token" in line), None)
    if line is None:
        return None
    return {
        "step": line["step"],
        "per_token": line["kl/per_token"],
        "se": line.get("kl/per_token_se"),  # a single answer has none
        "answers": int(line["kl/sequences"]),
        "cut_off": line["kl/cut_off"],
    }


def _accuracy(share: float, train: Path) -> Estimate:
    """The share of ordered pairs, with the interval of as many as there are prompts."""
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(train / "tokens" / "validation.parquet", columns=["id"])
    prompts = len(set(rows["id"].to_pylist()))
    interval = wilson(round(share * prompts), prompts)
    return Estimate(prompts, share, interval.low, interval.high)


def _logged(lines: Sequence[Line], key: str) -> list[float]:
    return [float(line[key]) for line in lines if key in line]


def _last(lines: Sequence[Line], key: str) -> float | None:
    return next((float(line[key]) for line in reversed(lines) if key in line), None)
