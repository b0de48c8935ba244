"""The rounds of iterative DPO: what went into each, and where it led."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo_dist.artifacts import read_json, read_records
from dpo_dist.config import Config
from dpo_dist.records import Generation
from dpo_dist.reporting.funnel import funnel
from dpo_dist.reporting.training import last_value, logged, read_metrics


def round_figures(
    number: int, manifests: Mapping[str, Mapping[str, Any]], folder: Path, config: Config
) -> dict[str, Any]:
    """The figures of one round, from its directory; None is what was not measured."""
    metrics = read_metrics(folder / "train" / "metrics.jsonl")
    preferred = read_json(folder / "evaluate" / "scores.json")["preferred"]
    return {
        "round": number,
        "reference": _reference_name(number, config),
        "prompts": manifests["sample"]["counts"]["kept"],
        "pairs": manifests["judge"]["counts"]["kept"],
        "first_loss": next(iter(logged(metrics, "loss")), None),
        "preferred": preferred,
        "kl_per_token": last_value(metrics, "kl/per_token"),
        "kl_per_token_se": last_value(metrics, "kl/per_token_se"),
        "reward_accuracy": last_value(metrics, "eval_rewards/accuracies", "rewards/accuracies"),
        "reward_margin": last_value(metrics, "eval_rewards/margins", "rewards/margins"),
        "cut_off": _cut_off(folder / "evaluate" / "generations.jsonl"),
        "funnel": funnel(manifests),
        "taken_over": manifests["evaluate"].get("taken_over", 0),
        "wall_seconds": sum(manifest["wall_seconds"] for manifest in manifests.values()),
    }


def _reference_name(number: int, config: Config) -> str:
    assert config.rounds is not None
    previous = number > 1 and config.rounds.reference == "previous"
    return f"round {number - 1}" if previous else "SFT"


def _cut_off(generations: Path) -> float | None:
    """The share of the policy's answers that were cut off."""
    reasons = [g.finish_reason for g in read_records(generations, Generation) if g.arm == "dpo"]
    return sum(reason == "length" for reason in reasons) / len(reasons) if reasons else None
