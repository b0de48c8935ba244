"""Logs the report's tables, samples and plots to Weights & Biases."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dpo_dist.evaluation.scores import Scores
from dpo_dist.intervals import Estimate
from dpo_dist.reporting.build import ReportContents
from dpo_dist.reporting.gallery import GalleryEntry
from dpo_dist.reporting.tables import comparison_table, decoding_name

if TYPE_CHECKING:
    import wandb

FILES = ("report.html", "report.md", "report.json", "table.txt")


def log_report(run: wandb.Run, report: ReportContents, folder: Path) -> None:
    """Log the content of the page, and the report's files in `folder` as an artifact."""
    import wandb

    scores = report.figures.comparison
    shown: dict[str, wandb.Table | wandb.Html] = {
        "report/comparison": wandb.Table(*_comparison(scores)),
        "report/figures": wandb.Table(*_figures(scores)),
        "report/samples": wandb.Table(*_samples(report.gallery.samples, scores)),
    }
    for title, svg in [*report.plots, *report.round_plots]:
        shown[f"report/{title}"] = wandb.Html(svg, inject=False)
    run.log(shown)
    run.summary.update(_headline(scores))
    artifact = wandb.Artifact(f"{report.figures.run}-report", type="report")
    for name in FILES:
        if (folder / name).exists():
            artifact.add_file(str(folder / name))
    run.log_artifact(artifact)


def _comparison(scores: Scores) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of the comparison tables of all decodings, with intervals and n."""
    columns = ["Decoding", *comparison_table(scores).headers]
    rows = [
        [decoding_name(decoding), label, *(str(cell) for cell in cells)]
        for number, decoding in enumerate(scores.decodings)
        for label, cells in comparison_table(scores, number).rows
    ]
    return columns, rows


def _figures(scores: Scores) -> tuple[list[str], list[list[object]]]:
    """(columns, rows) of the same figures as numbers, with a row for each metric and arm."""
    columns = ["Decoding", "Metric", "Unit", "Arm", "Mean", "Low", "High", "n"]
    rows: list[list[object]] = []

    def add(number: int, label: str, unit: str, arm: str, estimate: Estimate) -> None:
        values = [estimate.mean, estimate.low, estimate.high, estimate.n]
        rows.append([decoding_name(scores.decodings[number]), label, unit, arm, *values])

    for row in scores.metrics:
        for arm in scores.arms:
            add(row.decoding, row.label, row.unit, scores.label(arm), row.arms[arm])
        if row.delta is not None:
            add(row.decoding, row.label, row.unit, "DPO over SFT", row.delta)
    if scores.preferred is not None:
        preferred = scores.preferred
        add(preferred.decoding, "Preferred over SFT", "share", scores.label("dpo"), preferred)
    return columns, rows


def _samples(samples: Sequence[GalleryEntry], scores: Scores) -> tuple[list[str], list[list[str]]]:
    arms = [answer.arm for answer in samples[0].answers] if samples else []
    columns = ["Id", "Prompt", *(scores.label(arm) for arm in arms), "Verdict", "Reference"]
    rows = [
        [
            sample.id,
            sample.prompt.plain,
            *(answer.text.plain for answer in sample.answers),
            sample.verdict,
            sample.reference,
        ]
        for sample in samples
    ]
    return columns, rows


def _headline(scores: Scores) -> dict[str, float | None]:
    """The figures at the first decoding, for the comparison of runs."""
    found = {
        f"evaluation/{_plain(row.label)}/{arm}": row.arms[arm].mean
        for row in scores.metrics
        if row.decoding == 0
        for arm in scores.arms
    }
    if (rate := scores.preferred) is not None:
        values = {"mean": rate.mean, "low": rate.low, "high": rate.high, "n": rate.n}
        found |= {f"evaluation/preferred/{key}": value for key, value in values.items()}
    return found


def _plain(label: str) -> str:
    """A label as part of a key, without dots and slashes, which would nest it."""
    return re.sub(r"[^\w()-]+", "_", label).strip("_")
