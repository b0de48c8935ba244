"""From a run's directory to report.json, report.md and report.html."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dpo_dist.artifacts import FINGERPRINT, file_digest, read_json, write_json, write_text
from dpo_dist.config import Config
from dpo_dist.reporting.answers import Answers, guarded_rows, read_answers
from dpo_dist.reporting.gallery import gallery
from dpo_dist.reporting.markdown import markdown
from dpo_dist.reporting.page import render_page
from dpo_dist.reporting.plots import training_plots
from dpo_dist.reporting.reflection import reflect
from dpo_dist.reporting.tables import comparison_table, decoding_name, to_text
from dpo_dist.reporting.training import alarms, training_figures

PHASES = ("sft", "sample", "judge", "train", "evaluate")


def build(config: Config, root: Path, out: Path) -> dict[str, Any]:
    """Read the phases' directories under `root` and write the report's files to `out`.

    Returns the report's figures, the content of report.json.
    """
    manifests = {
        phase: read_json(root / phase / "manifest.json")
        for phase in PHASES
        if (root / phase / "manifest.json").exists()
    }
    scores = read_json(root / "evaluate" / "scores.json")
    metrics = _metrics(root / "train" / "metrics.jsonl")
    answers = read_answers(root / "evaluate", scores)
    judge_scores = manifests["evaluate"].get("judge_scores", [])
    report: dict[str, Any] = {
        "run": config.run.name,
        "outcome": scores.get("outcome"),  # absent from evaluations before there was one
        "summary": summary(scores),
        "comparison": scores,
        "funnel": funnel(manifests),
        "audit": manifests.get("judge", {}).get("audit", []),
        "canaries": manifests.get("judge", {}).get("canaries", []),
        "alarms": alarms(metrics),
        "training": training_figures(metrics, config.train, _selected_step(root / "train")),
        "answers": answers.figures(),
        "regressions": regressions(answers, scores, config.report.regressions),
        "phases": {phase: manifest["wall_seconds"] for phase, manifest in manifests.items()},
        "judges": {
            phase: manifests[phase].get("judge")
            for phase in ("judge", "evaluate")
            if phase in manifests
        },
        "spend": {
            phase: manifest["spend"]
            for phase, manifest in manifests.items()
            if manifest.get("spend") is not None
        }
        | {score["label"]: score["spend"] for score in judge_scores if score["spend"]},
        "judge_scores": judge_scores,
        "versions": manifests["evaluate"]["versions"],
        "git": manifests["evaluate"]["git"],
        "fingerprints": {
            phase: file_digest(root / phase / FINGERPRINT)
            for phase in manifests
            if (root / phase / FINGERPRINT).exists()
        },
        "config": config.model_dump(mode="json", exclude_none=True),
    }
    report["reflection"] = [asdict(sentence) for sentence in reflect(report)]
    headline = comparison_table(scores)
    write_text(out / "table.txt", to_text(headline))
    formats = config.report.formats
    if "json" in formats:
        write_json(out / "report.json", report)
    if "md" in formats:
        write_text(out / "report.md", markdown(report))
    if "html" in formats:
        page = render_page(
            report,
            plots=training_plots(metrics, config.train.kl.budget if config.train else None),
            gallery=gallery(root / "evaluate", answers, config.report),
        )
        write_text(out / "report.html", page)
    return report


def summary(scores: dict[str, Any]) -> list[str]:
    """The outcome in sentences, each from a figure of the table."""
    how = decoding_name(scores["decodings"][0])
    sentences = []
    if outcome := scores.get("outcome"):
        word = outcome["outcome"].replace("_", " ")
        sentences.append(f"Outcome: {word} ({'; '.join(outcome['reasons'])}).")
    preferred = scores["preferred"]
    if preferred is not None and preferred["mean"] is not None:
        rate = f"{100 * preferred['mean']:.0f} %"
        if preferred["low"] is None:
            verdict = "too few prompts for an interval"
        elif preferred["low"] > 0.5:
            verdict = "better than chance at 95 % confidence"
        elif preferred["high"] < 0.5:
            verdict = "worse than chance at 95 % confidence"
        else:
            verdict = "not distinguishable from chance at this number of prompts"
        sentences.append(
            f"The judge prefers SFT+DPO to SFT in {rate} of {preferred['n']} comparisons "
            f"({how}; ties and contradictions count half): {verdict}."
        )
    for row in scores["metrics"]:
        delta = row["delta"]
        if row["decoding"] or delta is None or delta["low"] is None:
            continue
        change = _percent(delta["mean"]) if row["unit"] == "share" else f"{delta['mean']:+.2f}"
        unit = {"share": " points", "kappa": ""}.get(row["unit"], f" {row['unit']}")
        if delta["low"] > 0 or delta["high"] < 0:
            direction = "rises" if delta["mean"] > 0 else "falls"
            verdict = ""
            if row.get("better") == "lower":
                verdict = ", which is worse" if delta["mean"] > 0 else ", which is better"
            sentences.append(
                f"{row['label']} {direction} by {change.lstrip('+-')}{unit} over SFT{verdict}."
            )
        else:
            sentences.append(
                f"{row['label']}: no difference from SFT is shown "
                f"({change}{unit}, interval includes zero)."
            )
    return sentences


def _percent(share: float) -> str:
    return f"{100 * share:+.1f}"


def funnel(manifests: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What went into the preference data and what became of it, phase by phase."""
    steps = []
    for phase, unit in (("sample", "prompts"), ("judge", "comparisons"), ("train", "pairs")):
        if phase in manifests:
            counts = manifests[phase]["counts"]
            dropped = {reason: n for reason, n in counts["dropped"].items() if n}
            assert counts["in"] == counts["kept"] + sum(dropped.values()), f"{phase} leaks"
            steps.append({"phase": phase, "unit": unit, **counts, "dropped": dropped})
    return steps


def regressions(answers: Answers, scores: dict[str, Any], most: int) -> dict[str, Any]:
    """On how many prompts each guarded metric fell, and the `most` prompts that lost most."""
    labels = [row["label"] for row in guarded_rows(scores)]
    fell = [
        {"label": label, "prompts": sum(label in found.fell for found in answers.regressions)}
        for label in labels
    ]
    return {"fell": fell, "worst": [found.figures for found in answers.regressions[:most]]}


def _selected_step(train: Path) -> int | None:
    path = train / "outcome.json"
    return read_json(path).get("selected_step") if path.exists() else None


def _metrics(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
