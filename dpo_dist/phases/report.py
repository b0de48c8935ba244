"""report: everything that the run proves, on one page."""

from __future__ import annotations

from typing import Any

from dpo_dist.artifacts import MANIFEST, PhaseDirectory, file_digest
from dpo_dist.config import Config
from dpo_dist.errors import DataError
from dpo_dist.phases.runs import phases_of, run_root
from dpo_dist.reporting.build import build

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
    """Write the report in the formats asked for."""
    build(config, run_root(config), out.path)
    return {"counts": {"in": 1, "kept": 1, "dropped": {}}}
