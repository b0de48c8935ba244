"""Finds finished runs on disk, by directory or run file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import JsonValue

from dpo_dist.config import Config
from dpo_dist.config.runfile import load_config
from dpo_dist.errors import DataError
from dpo_dist.runs.manifests import Manifests, config_of, read_manifest
from dpo_dist.runs.run import PHASES, POINT_PHASES, ROUND_PHASES, SWEEP, Run, round_folders
from dpo_dist.storage.artifacts import FINGERPRINT, MANIFEST
from dpo_dist.storage.folders import describe, missing
from dpo_dist.storage.manifest import Manifest, read_fingerprint

WORK = tuple(phase for phase in PHASES if phase != "report")
# The phase whose manifest has the settings of a section; manifests of other phases may be older
# than the section's last change.
OWNERS = {"preferences": "train", **{phase: phase for phase in WORK}}


@dataclass(frozen=True)
class FinishedRun:
    """A run, or a point of a sweep, whose phases are all complete."""

    root: Path
    folders: Mapping[str, Path]

    @cached_property
    def manifests(self) -> Manifests:
        return Manifests.read(self.folders.values())

    @property
    def last(self) -> Manifest:
        """The manifest of the last phase."""
        *_, last = self.manifests
        return last

    @cached_property
    def config(self) -> Config:
        """The run file with the settings that the phases ran with."""
        configs = {manifest.phase: config_of(manifest) for manifest in self.manifests}
        owned = {
            section: getattr(configs[phase], section)
            for section, phase in OWNERS.items()
            if phase in configs
        }
        return configs[self.last.phase].model_copy(update=owned)

    def inputs(self, phase: str) -> dict[str, JsonValue]:
        """The digests of a phase's inputs, from its fingerprint."""
        return read_fingerprint(self.folders[phase]).inputs


def find_run(given: Path) -> FinishedRun:
    """The run of a directory or run file. Raises `DataError` naming what is missing."""
    root = Run(load_config(given)).root if given.suffix in (".yaml", ".yml") else given
    if not root.is_dir():
        origin = "" if given == root else f" (the run of {given})"
        raise DataError(f"{missing(root)}{origin}")
    folders = {phase: _folder(root, phase) for phase in WORK}
    started = {phase for phase, path in folders.items() if (path / FINGERPRINT).exists()}
    if not started:
        raise DataError(
            f"{root} is not a run: it has none of the phases {', '.join(WORK)}; {describe(root)}"
        )
    complete = {phase: folders[phase] for phase in WORK if (folders[phase] / MANIFEST).exists()}
    expected = started | {
        phase for path in complete.values() for phase in Run(config_of(read_manifest(path))).phases
    }
    if undone := [phase for phase in WORK if phase in expected and phase not in complete]:
        state = {p: "was interrupted" if p in started else "was not run" for p in undone}
        listed = "; ".join(f"{folders[p]} ({state[p]})" for p in undone)
        raise DataError(f"{root} is not finished: no {MANIFEST} in {listed}")
    if not {"train", "evaluate"} & complete.keys():
        raise DataError(f"{root} has no training and no evaluation: nothing can be compared")
    return FinishedRun(root, complete)


def _folder(root: Path, phase: str) -> Path:
    """A phase's directory. A point of a sweep shares phases with its run; in a run with rounds, the
    last round counts."""
    if root.parent.name == SWEEP and phase not in POINT_PHASES:
        return root.parent.parent / phase
    rounds = round_folders(root)
    return (rounds[-1] if rounds and phase in ROUND_PHASES else root) / phase
