"""The figures of finished phases that runs and the points of a sweep are compared by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dpo_dist.artifacts import MANIFEST, read_json, read_records
from dpo_dist.evaluation.differences import points_difference
from dpo_dist.evaluation.statistics import Estimate, points_mean, wilson
from dpo_dist.records import Generation
from dpo_dist.reporting.training import last_value
from dpo_dist.training.metrics_log import MetricsLog


def training_figures(train: Path) -> dict[str, Any]:
    """Where a complete train phase has ended: the figures of the step that became its model.

    Each of them is the last one logged up to that step, with the step in "measured_at"; None where
    it was never measured. The KL is in nats per token, from the reference named beside it. The
    interval of "accuracy" counts prompts, since pairs of one prompt are not independent.
    """
    manifest = read_json(train / MANIFEST)
    steps = manifest["steps"]
    selected = manifest.get("selected_step", steps)
    lines = MetricsLog(train / "metrics.jsonl").until(selected)
    accuracy = last_value(lines, "eval_rewards/accuracies")
    kl = next((line for line in reversed(lines) if "kl/per_token" in line), None)
    return {
        "steps": steps,
        "selected_step": selected,
        "measured_at": None if kl is None else kl["step"],
        "pairs": manifest["pairs"],
        "loss": last_value(lines, "loss"),
        "validation_loss": last_value(lines, "eval_loss"),
        "accuracy": None if accuracy is None else asdict(_accuracy(accuracy, train)),
        "margin": last_value(lines, "eval_rewards/margins"),
        "kl": None
        if kl is None
        else {
            "per_token": kl["kl/per_token"],
            "se": kl.get("kl/per_token_se"),
            "answers": int(kl["kl/sequences"]),
            "cut_off": kl["kl/cut_off"],
            "reference": _reference(manifest["config"], train),
        },
        "alarms": [line["alarm"] for line in lines if "alarm" in line],
        "wall_seconds": manifest["wall_seconds"],
        "peak_rss_bytes": manifest.get("peak_rss_bytes"),
    }


def _reference(config: Mapping[str, Any], train: Path) -> str:
    rounds = config.get("rounds")
    if rounds and rounds["reference"] == "previous" and train.parent.name != "round-1":
        return "the round before"
    return "SFT" if config["model"]["sft"] else "base"


def evaluation_figures(evaluate: Path) -> dict[str, Any]:
    """What a complete evaluate phase says of dpo at the first decoding.

    "preferred" is the judge's, None without one. "length" is the mean difference dpo - sft in
    tokens, paired by prompt, and "sft_length" the mean of sft; both None without that arm.
    """
    scores = read_json(evaluate / "scores.json")
    seed = read_json(evaluate / MANIFEST)["seed"]
    answers = [
        answer
        for answer in read_records(evaluate / "generations.jsonl", Generation)
        if answer.decoding == 0
    ]
    lengths = {
        arm: {a.prompt_id: float(len(a.token_ids)) for a in answers if a.arm == arm}
        for arm in ("sft", "dpo")
    }
    difference = points_difference(lengths["dpo"], lengths["sft"], seed)
    dpo = [answer for answer in answers if answer.arm == "dpo"]
    cut_off = wilson(sum(answer.finish_reason == "length" for answer in dpo), len(dpo))
    return {
        "decoding": scores["decodings"][0],
        "preferred": scores["preferred"],
        "length": asdict(difference) if difference.n else None,
        "sft_length": points_mean(lengths["sft"], seed).mean,
        "cut_off": asdict(cut_off),
    }


def _accuracy(share: float, train: Path) -> Estimate:
    """The share of ordered pairs, with the interval of as many as there are prompts."""
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(train / "tokens" / "validation.parquet", columns=["id"])
    prompts = len(set(rows["id"].to_pylist()))
    interval = wilson(round(share * prompts), prompts)
    return Estimate(prompts, share, interval.low, interval.high)
