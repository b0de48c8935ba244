"""From a run's directory to report.json, report.md and report.html."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpo_dist.artifacts import read_json, read_records, write_json, write_text
from dpo_dist.config import Config
from dpo_dist.records import Generation, Prompt, Score, Verdict
from dpo_dist.reporting.funnel import funnel, funnel_line
from dpo_dist.reporting.page import render_page
from dpo_dist.reporting.plots import round_plots, training_plots
from dpo_dist.reporting.rounds import read_metrics, round_figures
from dpo_dist.reporting.tables import (
    CARD_NOTE,
    NO_CARD,
    ROUNDS_NOTE,
    audit_table,
    canary_table,
    comparison_table,
    decoding_name,
    moment,
    rounds_table,
    to_markdown,
    to_text,
)
from dpo_dist.reporting.text import plain_markdown, visible

PHASES = ("sft", "sample", "judge", "train", "evaluate")


def build(config: Config, root: Path, out: Path, *, rounds: Sequence[Path] = ()) -> dict[str, Any]:
    """Read the phases' directories under `root` and write the report's files to `out`.

    With `rounds`, their directories in order, the phases of the last one are the run's, and each
    has its figures beside. Returns the report's figures, the content of report.json.
    """
    by_round = [_manifests(folder) for folder in rounds]
    before = _manifests(root)  # of all phases, or of those before the rounds
    manifests = before | (by_round[-1] if rounds else {})
    last = rounds[-1] if rounds else root
    work = before | {
        f"{folder.name}/{phase}": manifest
        for folder, found in zip(rounds, by_round, strict=True)
        for phase, manifest in found.items()
    }
    scores = read_json(last / "evaluate" / "scores.json")
    metrics = read_metrics(last / "train" / "metrics.jsonl")
    judge_scores = manifests["evaluate"].get("judge_scores", [])
    report: dict[str, Any] = {
        "run": config.run.name,
        "outcome": scores.get("outcome"),  # absent from evaluations before there was one
        "summary": summary(scores),
        "comparison": scores,
        "funnel": funnel(manifests),
        "audit": manifests.get("judge", {}).get("audit", []),
        "canaries": manifests.get("judge", {}).get("canaries", []),
        "alarms": [
            {"round": number, **alarm}
            for number, folder in enumerate(rounds, start=1)
            for alarm in alarms(read_metrics(folder / "train" / "metrics.jsonl"))
        ]
        or alarms(metrics),
        "rounds": [
            round_figures(number, found, folder, config)
            for number, (found, folder) in enumerate(zip(by_round, rounds, strict=True), start=1)
        ],
        "phases": {phase: manifest["wall_seconds"] for phase, manifest in work.items()},
        "judges": {
            phase: manifests[phase].get("judge")
            for phase in ("judge", "evaluate")
            if phase in manifests
        },
        "spend": _spend(work),
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
            round_plots=round_plots(report["rounds"]),
            samples=samples(last / "evaluate", config.report.samples),
        )
        write_text(out / "report.html", page)
    return report


def _manifests(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        phase: read_json(folder / phase / "manifest.json")
        for phase in PHASES
        if (folder / phase / "manifest.json").exists()
    }


def _spend(work: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the judges of a phase cost, and those of single answers under their labels."""
    spend: dict[str, Any] = {}
    for name, manifest in work.items():
        if manifest.get("spend") is not None:
            spend[name] = manifest["spend"]
    for name, manifest in work.items():
        folder = name.rpartition("/")[0]
        for score in manifest.get("judge_scores", []):
            if score["spend"]:
                spend[f"{folder}/{score['label']}" if folder else score["label"]] = score["spend"]
    return spend


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
        given = read_records(evaluate / "verdicts.jsonl", Verdict)
        verdicts = {v.prompt_id: v for v in given if v.between in (None, ("dpo", "sft"))}
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


def _markdown(report: dict[str, Any]) -> str:
    scores = report["comparison"]
    parts = [f"# {report['run']}\n", *(f"- {sentence}" for sentence in report["summary"])]
    for number, decoding in enumerate(scores["decodings"]):
        parts += [f"\n## Held-out prompts, {decoding_name(decoding)}\n"]
        parts += [to_markdown(comparison_table(scores, number))]
    parts += ["Cells: mean, 95 % interval over prompts, number of prompts.\n"]
    if report["rounds"]:
        parts += ["## Rounds\n", to_markdown(rounds_table(report["rounds"])), f"{ROUNDS_NOTE}\n"]
    parts.append("## Data\n")
    for figures in report["rounds"]:
        parts += [f"Round {figures['round']}:\n", *map(funnel_line, figures["funnel"]), ""]
    if not report["rounds"]:
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
            f"- {moment(a)}, {plain_markdown(a['kind'])}: {plain_markdown(a['message'])}"
            for a in report["alarms"]
        ]
    return "\n".join(parts) + "\n"
