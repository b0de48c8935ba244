"""report: everything that the run proves, on one page."""

from __future__ import annotations

from typing import Any

from dpo_dist.artifacts import MANIFEST, PhaseDirectory, file_digest
from dpo_dist.config import Config
from dpo_dist.console import say
from dpo_dist.errors import DataError
from dpo_dist.phases.runs import phase_dir, run_root, steps_of
from dpo_dist.reporting.build import build
from dpo_dist.reporting.tracking import log_report
from dpo_dist.tracking import start, sync_command, tracked_run

SECTIONS = ("report",)


def inputs(config: Config) -> dict[str, Any]:
    """What the phase reads: the manifests of all phases before it."""
    manifests = {}
    for step in steps_of(config):
        if step.phase == "report":
            continue
        path = phase_dir(config.at_round(step.round), step.phase) / MANIFEST
        if not path.exists():
            raise DataError(f"{path.parent} is not complete: run the phase `{step.phase}` first")
        manifests[str(step)] = file_digest(path)
    return {"manifests": manifests}


def run(config: Config, out: PhaseDirectory) -> dict[str, Any]:
    """Write the report in the formats asked for, and log it where the run is tracked."""
    root = run_root(config)
    count = config.rounds.count if config.rounds is not None else 0
    rounds = [phase_dir(config.at_round(n + 1), "evaluate").parent for n in range(count)]
    report = build(config, root, out.path, rounds=rounds)
    if tracked := tracked_run(config, root, out.path):
        with start(tracked) as logged:
            log_report(logged, report, out.path)
        if tracked.settings.mode == "offline":
            say(f"Weights & Biases: logged offline; to upload it: {sync_command(tracked)}")
    return {"counts": {"in": 1, "kept": 1, "dropped": {}}}
