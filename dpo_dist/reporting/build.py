"""From a run's directory to report.json, report.md and report.html."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpo_dist.artifacts import read_json, read_records, write_json, write_text
from dpo_dist.config import Config
from dpo_dist.records import Generation, Prompt, Score, Verdict
from dpo_dist.reporting.page import render_page
from dpo_dist.reporting.plots import training_plots
from dpo_dist.reporting.tables import (
    CARD_NOTE,
    NO_CARD,
    audit_table,
    canary_table,
    comparison_table,
    decoding_name,
    to_markdown,
    to_text,
)
from dpo_dist.reporting.text import plain_markdown, visible

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
    metrics = read_metrics(root / "train" / "metrics.jsonl")
    judge_scores = manifests["evaluate"].get("judge_scores", [])
    report: dict[str, Any] = {
        "run": config.run.name,
        "summary": summary(scores),
        "comparison": scores,
        "funnel": funnel(manifests),
        "audit": manifests.get("judge", {}).get("audit", []),
        "canaries": manifests.get("judge", {}).get("canaries", []),
        "alarms": alarms(metrics),
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
        "config": config.model_dump(mode="json", exclude_none=True),
    }
    headline = comparison_table(scores)
    write_text(out / "table.txt", to_text(headline))
    formats = config.report.formats
    if "json" in formats:
        write_json(out / "report.json", report)
    if "md" in formats:
        write_text(out / "report.md", _markdown(report))
    if "html" in formats:
        page = render_page(
            report,
            plots=training_plots(metrics, config.train.kl.budget if config.train else None),
            samples=samples(root / "evaluate", config.report.samples),
        )
        write_text(out / "report.html", page)
    return report


def summary(scores: dict[str, Any]) -> list[str]:
    """The outcome in sentences, each from a figure of the table."""
    how = decoding_name(scores["decodings"][0])
    sentences = []
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
        change = f"{delta['mean']:+.2f}" if row["unit"] == "points" else _percent(delta["mean"])
        if delta["low"] > 0 or delta["high"] < 0:
            direction = "rises" if delta["mean"] > 0 else "falls"
            sentences.append(
                f"{row['label']} {direction} by {change.lstrip('+-')} points over SFT."
            )
        else:
            sentences.append(
                f"{row['label']}: no difference from SFT is shown "
                f"({change} points, interval includes zero)."
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


def funnel_line(step: Mapping[str, Any]) -> str:
    """A step of the funnel as an item of a Markdown list."""
    dropped = ", ".join(f"{n} {reason}" for reason, n in step["dropped"].items()) or "none"
    kept = f"{step['kept']} kept"
    if "kept_inconsistent" in step:
        kept += f" ({step['kept_inconsistent']} inconsistent)"
    return f"- {step['phase']}: {step['in']} {step['unit']} in, {kept}; dropped: {dropped}"


def alarms(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
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


def samples(evaluate: Path, limit: int) -> list[dict[str, Any]]:
    """Side-by-side answers of the arms at the first decoding.

    Prompts are spread evenly over the held-out set, not chosen.
    """
    prompts = list(read_records(evaluate / "prompts.jsonl", Prompt))
    answers: dict[tuple[str, str], Generation] = {
        (g.prompt_id, g.arm): g
        for g in read_records(evaluate / "generations.jsonl", Generation)
        if g.decoding == 0
    }
    scores: dict[tuple[str, str], dict[str, float]] = {}
    for score in read_records(evaluate / "scores.jsonl", Score):
        if score.decoding == 0:
            scores.setdefault((score.prompt_id, score.arm), {})[score.metric] = score.value
    verdicts = {}
    if (evaluate / "verdicts.jsonl").exists():
        verdicts = {v.prompt_id: v for v in read_records(evaluate / "verdicts.jsonl", Verdict)}
    arms = list(dict.fromkeys(arm for _, arm in answers))
    stride = max(1, len(prompts) // limit)
    return [
        {
            "id": visible(prompt.id),
            "prompt": visible(
                "\n\n".join(m.content for m in prompt.messages if m.role != "system")
            ),
            "reference": visible(json.dumps(prompt.reference)) if prompt.reference else "",
            "verdict": _verdict_name(verdicts.get(prompt.id)),
            "answers": [
                {
                    "arm": arm,
                    "text": visible(answers[prompt.id, arm].text),
                    "cut_off": answers[prompt.id, arm].finish_reason == "length",
                    "scores": scores.get((prompt.id, arm), {}),
                }
                for arm in arms
            ],
        }
        for prompt in prompts[::stride][:limit]
    ]


def _verdict_name(verdict: Verdict | None) -> str:
    if verdict is None:
        return ""
    if verdict.outcome != "preferred":
        return verdict.outcome
    return "judge prefers SFT+DPO" if verdict.preferred == "dpo" else "judge prefers SFT"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a training's metrics.jsonl; none where there was no training."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _markdown(report: dict[str, Any]) -> str:
    scores = report["comparison"]
    parts = [f"# {report['run']}\n", *(f"- {sentence}" for sentence in report["summary"])]
    for number, decoding in enumerate(scores["decodings"]):
        parts += [f"\n## Held-out prompts, {decoding_name(decoding)}\n"]
        parts += [to_markdown(comparison_table(scores, number))]
    parts += ["Cells: mean, 95 % interval over prompts, number of prompts.\n", "## Data\n"]
    parts += map(funnel_line, report["funnel"])
    if report["audit"]:
        parts.append("\n## Labels\n")
        parts.append(to_markdown(audit_table(report["audit"])))
        parts += [
            f"- {plain_markdown(s['label'])}: {s['remedy']}."
            for s in report["audit"]
            if s["remedy"]
        ]
    if report["canaries"]:
        parts.append("\n## The judge's card\n")
        parts += [to_markdown(canary_table(report["canaries"])), CARD_NOTE]
    elif report["judges"].get("judge"):
        parts.append(f"\n{NO_CARD}")
    if report["alarms"]:
        parts.append("\n## Alarms during training\n")
        parts += [
            f"- Step {a['step']}, {plain_markdown(a['kind'])}: {plain_markdown(a['message'])}"
            for a in report["alarms"]
        ]
    return "\n".join(parts) + "\n"
