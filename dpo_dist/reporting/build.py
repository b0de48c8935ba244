"""From a run's directory to report.json, report.md and report.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dpo_dist.config import Config
from dpo_dist.reporting.answers import Answers, guarded_rows, read_answers
from dpo_dist.reporting.evaluation import cut_off_shares
from dpo_dist.reporting.funnel import funnel
from dpo_dist.reporting.gallery import Gallery, gallery
from dpo_dist.reporting.markdown import markdown
from dpo_dist.reporting.page import render_page
from dpo_dist.reporting.plots import round_plots, training_plots
from dpo_dist.reporting.reflection import reflect
from dpo_dist.reporting.rounds import round_figures
from dpo_dist.reporting.tables import comparison_table, decoding_name, to_text
from dpo_dist.reporting.training import Line, alarms, read_metrics, training_figures
from dpo_dist.storage.artifacts import (
    FINGERPRINT,
    MANIFEST,
    file_digest,
    read_json,
    write_json,
    write_text,
)

# Why a win rate has no interval, by its `note`.
NO_INTERVAL = {
    "one_prompt": "one prompt gives no interval",
    "all_ties": "all of them are ties, so that there is no interval",
    "all_inconsistent": "in all of them the judge contradicts itself, so that there is no interval",
    "no_preference": "none of them prefers either, so that there is no interval",
}
PHASES = ("sft", "sample", "judge", "train", "evaluate")


@dataclass(frozen=True)
class ReportContents:
    """What the report shows: its figures (the content of report.json), plots as (title, SVG), and
    the answers side by side."""

    figures: dict[str, Any]
    plots: list[tuple[str, str]]
    round_plots: list[tuple[str, str]]
    gallery: Gallery


def build(
    config: Config,
    root: Path,
    out: Path,
    *,
    rounds: Sequence[Path] = (),
    ranking: Mapping[str, Any] | None = None,
    shared: Path | None = None,
) -> ReportContents:
    """Read the phases' directories under `root` and write the report's files to `out`.

    With `rounds`, their directories in order, the phases of the last one are the run's, and each
    has its figures beside; `ranking` then has the arms of all rounds. `shared` is the directory of
    the phases that `root`, a point of a sweep, does not do itself.
    """
    last = rounds[-1] if rounds else root
    scores = read_json(last / "evaluate" / "scores.json")
    answers = read_answers(last / "evaluate", scores)
    metrics = read_metrics(last / "train" / "metrics.jsonl")
    figures = _figures(config, root, rounds, scores, answers, metrics, shared)
    figures["ranking"] = ranking or scores["ranking"]
    report = ReportContents(
        figures,
        training_plots(metrics, config.train.kl.budget if config.train else None),
        round_plots(figures["rounds"]),
        gallery(last / "evaluate", answers, config.report),
    )
    write_text(out / "table.txt", to_text(comparison_table(scores)))
    formats = config.report.formats
    if "json" in formats:
        write_json(out / "report.json", figures)
    if "md" in formats:
        write_text(out / "report.md", markdown(figures))
    if "html" in formats:
        page = render_page(
            figures,
            plots=report.plots,
            round_plots=report.round_plots,
            gallery=report.gallery,
        )
        write_text(out / "report.html", page)
    return report


def _figures(
    config: Config,
    root: Path,
    rounds: Sequence[Path],
    scores: dict[str, Any],
    answers: Answers,
    metrics: Sequence[Line],
    shared: Path | None,
) -> dict[str, Any]:
    by_round = [_manifests(folder) for folder in rounds]
    own = _manifests(root)  # of all phases, or of those before the rounds
    before = (_manifests(shared) if shared else {}) | own
    manifests = before | (by_round[-1] if rounds else {})
    last = rounds[-1] if rounds else root
    work = {
        phase: ((root if phase in own or shared is None else shared) / phase, manifest)
        for phase, manifest in before.items()
    } | {
        f"{folder.name}/{phase}": (folder / phase, manifest)
        for folder, found in zip(rounds, by_round, strict=True)
        for phase, manifest in found.items()
    }
    judge_scores = manifests["evaluate"].get("judge_scores", [])
    figures: dict[str, Any] = {
        "run": config.run.name,
        "outcome": scores["outcome"],
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
            round_figures(number, found, folder)
            for number, (found, folder) in enumerate(zip(by_round, rounds, strict=True), start=1)
        ],
        "training": training_figures(last / "train") if "train" in manifests else None,
        "cut_off": cut_off_shares(last / "evaluate"),
        "regressions": regressions(answers, scores, config.report.regressions),
        "phases": {phase: manifest["wall_seconds"] for phase, (_, manifest) in work.items()},
        "judges": {
            phase: manifests[phase].get("judge")
            for phase in ("judge", "evaluate")
            if phase in manifests
        },
        "spend": {
            phase: manifest["spend"]
            for phase, (_, manifest) in work.items()
            if manifest.get("spend") is not None
        }
        | {score["label"]: score["spend"] for score in judge_scores if score["spend"]},
        "judge_scores": judge_scores,
        "versions": manifests["evaluate"]["versions"],
        "git": manifests["evaluate"]["git"],
        "fingerprints": {
            phase: file_digest(folder / FINGERPRINT)
            for phase, (folder, _) in work.items()
            if (folder / FINGERPRINT).exists()
        },
        "config": config.model_dump(mode="json", exclude_none=True),
    }
    return {**figures, "reflection": [asdict(sentence) for sentence in reflect(figures)]}


def _manifests(root: Path) -> dict[str, dict[str, Any]]:
    return {
        phase: read_json(root / phase / MANIFEST)
        for phase in PHASES
        if (root / phase / MANIFEST).exists()
    }


def summary(scores: dict[str, Any]) -> list[str]:
    """The outcome in sentences, each from a figure of the table."""
    how, outcome = decoding_name(scores["decodings"][0]), scores["outcome"]
    word = outcome["outcome"].replace("_", " ")
    sentences = [f"Outcome: {word} ({'; '.join(outcome['reasons'])})."]
    preferred = scores["preferred"]
    if preferred is not None and preferred["mean"] is not None:
        rate = f"{100 * preferred['mean']:.0f} %"
        if preferred["low"] is None:
            verdict = NO_INTERVAL[preferred["note"]]
        elif preferred["low"] > 0.5:
            verdict = "better than chance at 95 % confidence"
            if preferred["worst"] <= 0.5:
                missing = sum(preferred["missing"].values())
                verdict += f", but not if all {missing} missing verdicts were losses"
        elif preferred["high"] < 0.5:
            verdict = "worse than chance at 95 % confidence"
        else:
            verdict = "not distinguishable from chance at this number of prompts"
        sentences.append(
            f"The judge prefers SFT+DPO to SFT in {rate} of {preferred['n']} comparisons "
            f"({how}; ties and inconsistent verdicts count half): {verdict}."
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
            if row["better"] == "lower":
                verdict = ", which is worse" if delta["mean"] > 0 else ", which is better"
            sentences.append(
                f"{row['label']} {direction} by {change.lstrip('+-')}{unit} over SFT{verdict}."
            )
        else:
            sentences.append(
                f"{row['label']}: no difference from SFT shown ({change}{unit}, interval includes "
                "zero)."
            )
    return sentences


def _percent(share: float) -> str:
    return f"{100 * share:+.1f}"


def regressions(answers: Answers, scores: dict[str, Any], most: int) -> dict[str, Any]:
    """On how many prompts each guarded metric fell, and the `most` prompts that lost most."""
    compared = [row for row in guarded_rows(scores) if row["delta"] and row["delta"]["n"]]
    fell = [
        {"label": label, "prompts": sum(label in found.fell for found in answers.regressions)}
        for label in (row["label"] for row in compared)
    ]
    return {"fell": fell, "worst": [found.figures for found in answers.regressions[:most]]}
