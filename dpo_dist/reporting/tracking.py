"""The report's tables, samples and plots as Weights & Biases shows them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpo_dist.reporting.build import ReportContents
from dpo_dist.reporting.gallery import GalleryEntry
from dpo_dist.reporting.tables import HEADERS, comparison_table, decoding_name

FILES = ("report.html", "report.md", "report.json", "table.txt")


def log_report(
    run: Any,
    report: ReportContents,
    folder: Path,
) -> None:
    """Log what the page shows to a `wandb.Run`, and the report's files in `folder` as an
    artifact."""
    import wandb

    scores = report.figures["comparison"]
    shown: dict[str, Any] = {
        "report/comparison": wandb.Table(*_comparison(scores)),
        "report/figures": wandb.Table(*_figures(scores)),
        "report/samples": wandb.Table(*_samples(report.gallery.samples)),
    }
    for title, svg in [*report.plots, *report.round_plots]:
        shown[f"report/{title}"] = wandb.Html(svg, inject=False)
    run.log(shown)
    run.summary.update(_headline(scores))
    artifact = wandb.Artifact(f"{report.figures['run']}-report", type="report")
    for name in FILES:
        if (folder / name).exists():
            artifact.add_file(str(folder / name))
    run.log_artifact(artifact)


def _comparison(scores: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The report's own table, cell by cell with interval and n; all decodings below each other."""
    columns = ["Decoding", *comparison_table(scores).headers]
    rows = [
        [decoding_name(decoding), label, *(str(cell) for cell in cells)]
        for number, decoding in enumerate(scores["decodings"])
        for label, cells in comparison_table(scores, number).rows
    ]
    return columns, rows


def _figures(scores: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """The same in numbers, to be sorted and plotted; a row for each metric and arm."""
    columns = ["Decoding", "Metric", "Unit", "Arm", "Mean", "Low", "High", "n"]
    rows: list[list[Any]] = []

    def add(number: int, label: str, unit: str, arm: str, estimate: Mapping[str, Any]) -> None:
        values = [estimate[key] for key in ("mean", "low", "high", "n")]
        rows.append([decoding_name(scores["decodings"][number]), label, unit, arm, *values])

    for row in scores["metrics"]:
        for arm in scores["arms"]:
            add(row["decoding"], row["label"], row["unit"], HEADERS[arm], row["arms"][arm])
        if row["delta"] is not None:
            add(row["decoding"], row["label"], row["unit"], "DPO over SFT", row["delta"])
    if scores["preferred"] is not None:
        preferred = scores["preferred"]
        add(preferred["decoding"], "Preferred over SFT", "share", HEADERS["dpo"], preferred)
    return columns, rows


def _samples(samples: Sequence[GalleryEntry]) -> tuple[list[str], list[list[str]]]:
    arms = [answer.arm for answer in samples[0].answers] if samples else []
    columns = ["Id", "Prompt", *(HEADERS[arm] for arm in arms), "Verdict", "Reference"]
    rows = [
        [
            *(sample.id, sample.prompt.plain),
            *(answer.text.plain for answer in sample.answers),
            *(sample.verdict, sample.reference),
        ]
        for sample in samples
    ]
    return columns, rows


def _headline(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The first decoding's figures, by which runs are compared."""
    found = {
        f"evaluation/{_plain(row['label'])}/{arm}": row["arms"][arm]["mean"]
        for row in scores["metrics"]
        if row["decoding"] == 0
        for arm in scores["arms"]
    }
    if scores["preferred"] is not None:
        for key in ("mean", "low", "high", "n"):
            found[f"evaluation/preferred/{key}"] = scores["preferred"][key]
    return found


def _plain(label: str) -> str:
    """A label as part of a key: a dot or slash would nest it."""
    return re.sub(r"[^\w()-]+", "_", label).strip("_")
