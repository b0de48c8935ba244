"""Weights & Biases: one run there for all phases of a run here.

The run's id is kept in its directory, so that every phase, on whatever machine, goes on with the
same one. All that is logged lies first in `<run>/wandb/`, staged artifacts too.
"""

from __future__ import annotations

import os
import secrets
import shlex
from pathlib import Path
from typing import Any, Literal

from dpo_dist.config import Config, Section, Wandb
from dpo_dist.errors import MissingDependency
from dpo_dist.storage.artifacts import read_json, write_json
from dpo_dist.system.console import scrub, warn

RUN_FILE = "wandb.json"
FINISH_SECONDS = 300.0  # at a phase's end, for what a slow or broken line has not sent yet


class TrackedRun(Section):
    """What a process needs to go on with the run whose directory is `folder`. `prefix` is put
    before its metrics; of the train phase, whose names everybody expects as they are, it is empty.
    """

    settings: Wandb
    id: str
    name: str
    folder: Path
    prefix: str = ""


def tracked_run(config: Config, root: Path, out: Path) -> TrackedRun | None:
    """The run that the phase in `out` logs to, of the run whose directory is `root`; None where
    the run file asks for none."""
    if config.tracking.wandb is None:
        return None
    path = root / RUN_FILE
    if not path.exists():
        write_json(path, {"id": secrets.token_hex(4)})
    phase = out.relative_to(root).as_posix()
    return TrackedRun(
        settings=config.tracking.wandb,
        id=read_json(path)["id"],
        name=config.run.name,
        folder=root,
        prefix="" if phase == "train" else phase,
    )


def start(tracked: TrackedRun) -> Any:
    """Begin the run, or go on with it, and return wandb's own object.

    Where the service cannot be reached, nothing is lost: this phase is kept as an offline run.
    Raises `MissingDependency`.
    """
    try:
        import wandb
    except ImportError:
        raise MissingDependency("wandb", "wandb") from None
    # Artifacts would be staged in the home directory, which the run does not take along.
    os.environ["WANDB_DATA_DIR"] = str((tracked.folder / "wandb").resolve())
    os.environ.setdefault("WANDB_INIT_TIMEOUT", "30")

    def begin(mode: Literal["online", "offline"]) -> Any:
        return wandb.init(
            project=tracked.settings.project,
            mode=mode,
            id=tracked.id,
            name=tracked.name,
            resume="allow",
            dir=tracked.folder,
            # What a phase prints may hold what should not leave the machine.
            settings=wandb.Settings(console="off", quiet=True, finish_timeout=FINISH_SECONDS),
        )

    try:
        return begin(tracked.settings.mode)
    except wandb.errors.Error as error:
        reason = scrub(str(error)).strip().partition("\n")[0]
        warn(
            f"Weights & Biases: {reason}. The logs of this phase are kept; upload them later "
            f"with\n  {sync_command(tracked)}"
        )
        wandb.teardown()  # its service still believes that the run is at work
        return begin("offline")


def sync_command(tracked: TrackedRun) -> str:
    """The command that sends what all phases have kept offline, in their order."""
    return f"wandb sync {shlex.quote(str(tracked.folder / 'wandb'))}/offline-run-*"
