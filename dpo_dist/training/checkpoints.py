"""Which checkpoints are whole: a marker with checksums, written last.

transformers' own choice of a checkpoint to resume from is the highest number, whole or not.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from dpo_dist.artifacts import file_digest, read_json, write_json
from dpo_dist.console import say

COMPLETE = "COMPLETE"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint, and how many processes wrote it."""

    path: Path
    step: int
    world_size: int


def mark_complete(checkpoint: Path, world_size: int) -> None:
    """Declare a checkpoint whole, after all of its files are written by all ranks."""
    files = {
        str(path.relative_to(checkpoint)): {
            "bytes": path.stat().st_size,
            "sha256": file_digest(path),
        }
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != COMPLETE
    }
    write_json(checkpoint / COMPLETE, {"world_size": world_size, "files": files})


def last_complete(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint. Half-written and damaged ones are removed, with a message:
    training goes on from the one before."""
    found = {
        int(match[1]): path
        for path in folder.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    }
    for step in sorted(found, reverse=True):
        problem = _damage(found[step])
        if problem is None:
            marker = read_json(found[step] / COMPLETE)
            return Checkpoint(found[step], step, int(marker["world_size"]))
        say(f"{found[step]} is not whole ({problem}): removed")
        shutil.rmtree(found[step])
    return None


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        files = read_json(checkpoint / COMPLETE)["files"]
    except FileNotFoundError:
        return "its writing was interrupted"
    except (ValueError, KeyError, TypeError):
        return f"{COMPLETE} is damaged"
    for name, known in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != known["bytes"] or file_digest(path) != known["sha256"]:
            return f"{name} has changed"
    return None
