"""report: everything that the run proves, on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpo_dist.artifacts import MANIFEST, PhaseDirectory, file_digest
from dpo_dist.config import Config
from dpo_dist.console import say
from dpo_dist.errors import DataError
from dpo_dist.phases.runs import phases_of, run_root
from dpo_dist.reporting.build import build, read_metrics, samples
from dpo_dist.reporting.plots import training_plots
from dpo_dist.reporting.tracking import log_report
from dpo_dist.tracking import TrackedRun, start, sync_command, tracked_run

SECTIONS = ("report",)


def inputs(config: Config) -> dict[str, Any]:
    """What the phase reads: the manifests of all phases before it."""
    manifests = {}
    for phase in phases_of(config):
        path = run_root(config) / phase / MANIFEST
        if phase == "report":
            continue
        if not path.exists():
            raise DataError(f"{path.parent} is not complete: run the phase `{phase}` first")
        manifests[phase] = file_digest(path)
    return {"manifests": manifests}


def run(config: Config, out: PhaseDirectory) -> dict[str, Any]:
    """Write the report in the formats asked for, and log it where the run is tracked."""
    root = run_root(config)
    report = build(config, root, out.path)
    if tracked := tracked_run(config, root, out.path):
        _log(tracked, config, root, report, out.path)
    return {"counts": {"in": 1, "kept": 1, "dropped": {}}}


def _log(
    tracked: TrackedRun, config: Config, root: Path, report: dict[str, Any], out: Path
) -> None:
    """Log the report to the run that training has logged to."""
    metrics = read_metrics(root / "train" / "metrics.jsonl")
    with start(tracked) as run:
        log_report(
            run,
            report,
            plots=training_plots(metrics, config.train.kl.budget if config.train else None),
            samples=samples(root / "evaluate", config.report.samples),
            folder=out,
        )
    if tracked.settings.mode == "offline":
        say(f"Weights & Biases: kept offline; to send it: {sync_command(tracked)}")
