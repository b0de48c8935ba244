"""Weights & Biases: all phases of a run log to one W&B run.

The id of the W&B run is kept in the run's directory, so every phase continues the same one, on any
machine. Logs and staged artifacts are first written to `<run>/wandb/`.
"""

from __future__ import annotations

import os
import secrets
import shlex
from pathlib import Path
from typing import Any, Literal

from dpo_dist.config import Section, Wandb
from dpo_dist.errors import MissingDependency
from dpo_dist.storage.artifacts import read_json, write_json
from dpo_dist.system.console import scrub, warn

RUN_FILE = "wandb.json"
FINISH_SECONDS = 300.0  # how long a phase waits at its end for data that is not yet uploaded


class TrackedRun(Section):
    """What a process needs to log to the W&B run of the run directory `folder`. `prefix/` precedes
    every metric name; it is empty for the train phase, so that its metrics have the usual names."""

    settings: Wandb
    id: str
    name: str
    folder: Path
    prefix: str = ""


def tracked_run(settings: Wandb, name: str, root: Path, out: Path) -> TrackedRun:
    """The W&B run of the run directory `root`, for the phase whose directory is `out`."""
    path = root / RUN_FILE
    if not path.exists():
        write_json(path, {"id": secrets.token_hex(4)})
    phase = out.relative_to(root).as_posix()
    return TrackedRun(
        settings=settings,
        id=read_json(path)["id"],
        name=name,
        folder=root,
        prefix="" if phase == "train" else phase,
    )


def start(tracked: TrackedRun) -> Any:
    """Start or resume the W&B run, and return wandb's run object. If the service is unreachable,
    this phase is logged to an offline run. Raises `MissingDependency`."""
    try:
        import wandb
    except ImportError:
        raise MissingDependency("wandb", "wandb") from None
    # By default artifacts are staged in the home directory, outside the run's directory.
    os.environ["WANDB_DATA_DIR"] = str((tracked.folder / "wandb").resolve())
    os.environ.setdefault("WANDB_INIT_TIMEOUT", "30")

    def init(mode: Literal["online", "offline"]) -> Any:
        return wandb.init(
            project=tracked.settings.project,
            mode=mode,
            id=tracked.id,
            name=tracked.name,
            resume="allow",
            dir=tracked.folder,
            # Console output may contain data that must not leave the machine.
            settings=wandb.Settings(console="off", quiet=True, finish_timeout=FINISH_SECONDS),
        )

    try:
        return init(tracked.settings.mode)
    except wandb.errors.Error as error:
        reason = scrub(str(error)).strip().partition("\n")[0]
        warn(
            f"Weights & Biases: {reason}. The logs of this phase are kept; upload them later "
            f"with\n  {sync_command(tracked)}"
        )
        wandb.teardown()  # its service process still considers the failed run active
        return init("offline")


def sync_command(tracked: TrackedRun) -> str:
    """The command that uploads the offline logs of all phases, in order."""
    return f"wandb sync {shlex.quote(str(tracked.folder / 'wandb'))}/offline-run-*"
