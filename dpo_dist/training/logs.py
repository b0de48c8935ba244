"""What the training processes say, a file each, and what of it is shown.

<phase>/logs/<attempt>/
    rank-<k>.log          all that a training process writes, C++ included
    rank-<k>.error.json   what it failed of (failures.py)
    node-<r>.log          what `accelerate launch` and torch's agent write on a machine

Rank 0's log is shown while it grows. The others would say the same, and where one fails, all of
them do in a moment: who was first is told at the end.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def new_attempt(folder: Path) -> Path:
    """A directory for the logs of one start, numbered from 1."""
    taken = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    attempt = folder / str(max(taken, default=0) + 1)
    attempt.mkdir(parents=True)
    return attempt


def rank_log(attempt: Path, rank: int) -> Path:
    return attempt / f"rank-{rank}.log"


def node_log(attempt: Path, rank: int) -> Path:
    return attempt / f"node-{rank}.log"


def write_to(path: Path) -> None:
    """Let all that this process writes go to a file, also what no Python code writes."""
    with path.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())


class Echo:
    """Shows what is appended to a file, byte by byte: progress bars end no lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._shown = 0

    def look(self) -> None:
        """Show what has come."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._shown)
                new = file.read()
        except FileNotFoundError:
            return
        if new:
            self._shown += len(new)
            sys.stderr.write(new.decode(errors="replace"))
            sys.stderr.flush()
