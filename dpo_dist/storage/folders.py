"""Says what a directory is that a user has named: a run's, a phase's, one with run files."""

from __future__ import annotations

import difflib
from pathlib import Path

from dpo_dist.errors import DataError
from dpo_dist.storage.artifacts import FINGERPRINT, MANIFEST

EMPTY = "it is empty"
_MOST = 5  # names that a message lists
_PHASES = tuple(
    f"{place}/{name}"
    for name in (FINGERPRINT, MANIFEST)
    for place in ("*", "round-*/*", "sweep/*/*")
)


def is_run(folder: Path) -> bool:
    """Whether a phase has started in a run's directory."""
    return any(any(folder.glob(pattern)) for pattern in _PHASES)


def check_run(folder: Path) -> None:
    """Raise `DataError` for a directory that is not that of a run, saying what it is instead."""
    if not is_run(folder) or (folder / FINGERPRINT).exists():
        raise DataError(
            f"{folder} is not a run's directory: {describe(folder)}. Name a directory in which a "
            "phase has started, or a run file"
        )


def missing(path: Path) -> str:
    """That a path does not exist, with the nearest one that does."""
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    hint = f"; did you mean {path.parent / near[0]}?" if near else ""
    return f"{path}: no such file or directory{hint}"


def describe(folder: Path) -> str:
    """What a directory is, as a clause."""
    folder = folder.resolve()
    if (folder / FINGERPRINT).exists():
        return f"it is the phase `{folder.name}` of the run {folder.parent}"
    for parent in folder.parents:
        if (parent / FINGERPRINT).exists():
            return f"it is a part of the phase `{parent.name}` of the run {parent.parent}"
    if is_run(folder):
        return "it is the directory of a run"
    if runs := [path.name for path in sorted(folder.glob("*/")) if is_run(path)]:
        return f"it contains the runs {_listed(runs)}"
    if files := [path.name for path in sorted(folder.glob("*.y*ml"))]:
        return f"it contains the YAML files {_listed(files)}"
    return "it contains neither phases nor YAML files" if any(folder.iterdir()) else EMPTY


def _listed(names: list[str]) -> str:
    more = len(names) - _MOST
    return ", ".join(names[:_MOST]) + (f" and {more} more" if more > 0 else "")
