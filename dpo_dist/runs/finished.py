"""Finding runs on disk, by their directories or run files, and checking that they are finished."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dpo_dist.config.runfile import load_config
from dpo_dist.errors import DataError
from dpo_dist.runs.directories import (
    PHASES,
    POINT_PHASES,
    ROUND_PHASES,
    SWEEP,
    phase_dir,
    round_folders,
    run_root,
)
from dpo_dist.storage.artifacts import FINGERPRINT, MANIFEST, read_json

WORK = tuple(phase for phase in PHASES if phase != "report")
RUN_FILES = (".yaml", ".yml")
# Which phase's manifest tells the settings of a section: others may be older than the section's
# last change.
OWNERS = {
    **{"sft": "sft", "sample": "sample", "judge": "judge"},
    **{"preferences": "train", "train": "train", "evaluate": "evaluate"},
}


@dataclass(frozen=True)
class FinishedRun:
    """A run, or a point of a sweep, whose phases are all complete."""

    root: Path
    folders: Mapping[str, Path]

    @cached_property
    def manifests(self) -> dict[str, dict[str, Any]]:
        """By phase."""
        return {phase: read_json(path / MANIFEST) for phase, path in self.folders.items()}

    @property
    def last(self) -> dict[str, Any]:
        """The manifest of the last phase."""
        return self.manifests[next(phase for phase in reversed(WORK) if phase in self.folders)]

    @cached_property
    def config(self) -> dict[str, Any]:
        """The run file, defaults filled in, as the phases were run with it."""
        owned = {
            section: self.manifests[phase]["config"][section]
            for section, phase in OWNERS.items()
            if phase in self.folders
        }
        return {**self.last["config"], **owned}

    def inputs(self, phase: str) -> dict[str, Any]:
        """What a phase read, as its fingerprint has it."""
        found: dict[str, Any] = read_json(self.folders[phase] / FINGERPRINT)["inputs"]
        return found


def find_run(given: Path) -> FinishedRun:
    """The run of a directory or a run file. Raises `DataError` naming what is missing."""
    root = _root(given)
    if not root.is_dir():
        raise DataError(f"{root}: no such directory" + _of(given, root))
    folders = {phase: _folder(root, phase) for phase in WORK}
    started = {phase for phase, path in folders.items() if (path / FINGERPRINT).exists()}
    if not started:
        raise DataError(f"{root} is not a run: it has none of the phases {', '.join(WORK)}")
    complete = {phase: folders[phase] for phase in WORK if (folders[phase] / MANIFEST).exists()}
    asked = started | {p for path in complete.values() for p in _asked_for(path)}
    if missing := [phase for phase in WORK if phase in asked and phase not in complete]:
        state = {p: "was interrupted" if p in started else "was not run" for p in missing}
        said = "; ".join(f"{folders[p]} ({state[p]})" for p in missing)
        raise DataError(f"{root} is not finished: no {MANIFEST} in {said}")
    if not {"train", "evaluate"} & complete.keys():
        raise DataError(
            f"{root} has neither a training nor an evaluation: there is nothing to compare"
        )
    return FinishedRun(root, complete)


def _root(given: Path) -> Path:
    if given.suffix not in RUN_FILES:
        return given
    config = load_config(given)
    return run_root(config) if config.run.point is None else phase_dir(config, "train").parent


def _of(given: Path, root: Path) -> str:
    return "" if given == root else f" (the run of {given})"


def _folder(root: Path, phase: str) -> Path:
    """A phase's directory; the points of a sweep have theirs of the base run, and where there are
    rounds, the last one counts."""
    if root.parent.name == SWEEP and phase not in POINT_PHASES:
        return root.parent.parent / phase
    rounds = round_folders(root)
    return (rounds[-1] if rounds and phase in ROUND_PHASES else root) / phase


def _asked_for(folder: Path) -> list[str]:
    """The phases of the run file that a complete phase was run with. Not `phases_of`: this
    version's schema may not read it."""
    config = read_json(folder / MANIFEST)["config"]
    judged = ("sample", "judge") if config["preferences"]["source"] == "judged" else ()
    return [phase for phase in ("sft", *judged, "train", "evaluate") if config.get(phase)]
