"""Which checkpoints are whole: a marker with checksums, written last.

checkpoints/checkpoint-<step>/
    ...         what transformers and DeepSpeed wrote
    COMPLETE    who wrote it, and sha256 and size of every file; written last

transformers' own choice of a checkpoint to resume from is the highest number, whole or not.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_dist.storage.artifacts import file_digest, read_json, write_json
from dpo_dist.system.console import say, warn

COMPLETE = "COMPLETE"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint, by how many processes it was written and under which ZeRO stage (0:
    without ZeRO)."""

    path: Path
    step: int
    world_size: int
    zero_stage: int = 0


def seal_files(checkpoint: Path, part: int = 0, parts: int = 1) -> dict[str, Any]:
    """Digest and size of every `parts`-th file from `part` on, by the path in the checkpoint.

    The processes share the hashing: the states of a large model are hundreds of gigabytes.
    """
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    return {
        path.relative_to(checkpoint).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": file_digest(path),
        }
        for path in files[part::parts]
        if path.name != COMPLETE
    }


def mark_complete(checkpoint: Checkpoint, files: Mapping[str, Any]) -> None:
    """Declare a checkpoint whole, after all of its files are written by all ranks."""
    write_json(
        checkpoint.path / COMPLETE,
        {
            "step": checkpoint.step,
            "world_size": checkpoint.world_size,
            "zero_stage": checkpoint.zero_stage,
            "files": dict(sorted(files.items())),
        },
    )


def last_complete(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint. Half-written and damaged ones are removed, with a message:
    training goes on from the one before.

    Only the process that holds the phase's lock may ask.
    """
    found = {
        int(match[1]): path
        for path in folder.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    }
    for step in sorted(found, reverse=True):
        problem = damage(found[step])
        if problem is None:
            marker = read_json(found[step] / COMPLETE)
            return Checkpoint(
                found[step], step, int(marker["world_size"]), int(marker["zero_stage"])
            )
        warn(f"{found[step]} is incomplete ({problem}): removed")
        shutil.rmtree(found[step])
    if found:
        say("no complete checkpoint is left: training starts from the beginning")
    return None


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None when every file is as it was written."""
    try:
        marker = read_json(checkpoint / COMPLETE)
        int(marker["world_size"]), int(marker["zero_stage"])
        files = [(name, known["bytes"], known["sha256"]) for name, known in marker["files"].items()]
    except FileNotFoundError:
        return "writing it was interrupted"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{COMPLETE} is damaged"
    for name, size, sha256 in files:
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        # The size first: it costs nothing, and a torn write usually shows in it.
        if path.stat().st_size != size or file_digest(path) != sha256:
            return f"{name} has changed"
    return None
