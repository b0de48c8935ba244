"""Weights & Biases: each training is a W&B run, and the report is added to that of DPO.

transformers' callback logs to the W&B run that is active. It is started here, because a resumed
phase has to continue its run, and a training must not end if the service cannot be reached. The id
is kept in the run's directory. Logs and staged artifacts are first written to `<run>/wandb/`.
"""

from __future__ import annotations

import os
import secrets
import shlex
from pathlib import Path
from typing import Any, Literal

from dpo_dist.config import Section
from dpo_dist.errors import MissingDependency
from dpo_dist.storage.artifacts import read_json, write_json
from dpo_dist.system.console import scrub, warn

RUN_FILE = "wandb.json"
PROJECT = "dpo-dist"  # unless `args.project` names another
FINISH_SECONDS = 300.0  # how long a phase waits at its end for data that is not yet uploaded


class TrackedRun(Section):
    """The W&B run of a training; `folder` is the directory of the run, whose W&B runs are a
    group."""

    project: str
    id: str
    name: str
    group: str
    folder: Path


def tracked_run(name: str, root: Path, phase: str, project: str) -> TrackedRun:
    """The W&B run of a training whose directory in the run directory `root` is `phase`."""
    path = root / RUN_FILE
    if not path.exists():
        write_json(path, {"id": secrets.token_hex(4)})
    phase = phase.replace("/", "-")
    return TrackedRun(
        project=os.environ.get("WANDB_PROJECT") or project,
        id=f"{read_json(path)['id']}-{phase}",
        name=f"{name}-{phase}",
        group=name,
        folder=root,
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

    def init(mode: Literal["offline"] | None = None) -> Any:
        return wandb.init(
            project=tracked.project,
            mode=mode,  # None: that of WANDB_MODE
            id=tracked.id,
            name=tracked.name,
            group=tracked.group,
            resume="allow",
            dir=tracked.folder,
            # Console output may contain data that must not leave the machine.
            settings=wandb.Settings(console="off", quiet=True, finish_timeout=FINISH_SECONDS),
        )

    try:
        return init()
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
