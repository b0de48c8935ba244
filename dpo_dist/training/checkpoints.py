"""Which checkpoints are whole."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from dpo_dist.artifacts import write_text

COMPLETE = "COMPLETE"


def mark_complete(checkpoint: Path) -> None:
    """Declare a checkpoint whole, after all of its files are written."""
    write_text(checkpoint / COMPLETE, "")


def last_complete(folder: Path) -> Path | None:
    """The newest whole checkpoint; half-written ones, left by a crash, are removed.

    transformers' own choice is the highest number, whole or not.
    """
    found = {
        int(match[1]): path
        for path in folder.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    }
    for step in sorted(found, reverse=True):
        if (found[step] / COMPLETE).exists():
            return found[step]
        shutil.rmtree(found[step])
    return None
