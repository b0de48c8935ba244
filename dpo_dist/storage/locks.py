"""Who may work in a phase's directory: one process alone, or one for each shard.

The locks lie beside the directory, because they have to survive its being moved aside.
`.<phase>.lock` is held by a process that works alone, and shared by shards, each of which holds
one of its own. `flock` goes with the process, however it ends; on a file system that nodes share
it has to reach them all (NFS 4 does, Lustre needs the mount option `flock`).
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from dpo_dist.errors import DirectoryLocked, NoFileLocks
from dpo_dist.system.ranks import Shard


@contextmanager
def sole(path: Path) -> Iterator[None]:
    """Work in a directory alone. Raises `DirectoryLocked`, naming who is at work there, and
    `NoFileLocks`, like everything here."""
    with _beside(path, "").open("a+") as file:
        if not _take(file, fcntl.LOCK_EX):
            raise _in_use(path, file)
        _sign(file, _name())
        yield


@contextmanager
def shared(path: Path, shard: Shard) -> Iterator[None]:
    """Work on one shard beside those that work on others, cut in as many.

    Raises `DirectoryLocked` where the shard is taken, where somebody works alone, or where the
    work is cut otherwise: what is in two shards would be done twice.
    """
    with ExitStack() as held:
        common = held.enter_context(_beside(path, "").open("a+"))
        with in_turn(path):
            if _take(common, fcntl.LOCK_EX):  # nobody is at work: the cut may be another
                _sign(common, f"{shard.count} shards")
            if not _take(common, fcntl.LOCK_SH) or _signed(common) != f"{shard.count} shards":
                raise _in_use(path, common)
        own = held.enter_context(_beside(path, f".{shard.index}-of-{shard.count}").open("a+"))
        if not _take(own, fcntl.LOCK_EX):
            raise _in_use(path, own)
        _sign(own, f"shard {shard}, {_name()}")
        yield


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Wait for a moment alone among the shards: to bind the directory, to declare it complete."""
    with _beside(path, ".turn").open("a+") as file:
        _lock(file, fcntl.LOCK_EX)
        yield


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}{suffix}.lock")


def _take(file: IO[str], kind: int) -> bool:
    """Whether the lock is ours; somebody else has it otherwise. Raises `NoFileLocks`."""
    try:
        _lock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock(file: IO[str], kind: int) -> None:
    try:
        fcntl.flock(file, kind)
    except BlockingIOError:
        raise
    except OSError as error:
        raise NoFileLocks(
            f"{file.name}: the file system gives no lock ({error.strerror}), and without one two "
            "processes could work in the same directory. Set run.output_dir to a folder on another "
            "file system, or mount this one with locks (Lustre: the option `flock`; NFS: version "
            "4); `dpo-dist doctor RUN.yaml` tells whether they work."
        ) from None


def _sign(file: IO[str], words: str) -> None:
    file.truncate(0)
    file.write(words)
    file.flush()


def _signed(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip()


def _name() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _in_use(path: Path, file: IO[str]) -> DirectoryLocked:
    return DirectoryLocked(
        f"{path} is in use by {_signed(file) or 'another process'}. "
        "Wait for it, or stop it, and run the same command again."
    )
