"""Locks on a phase's directory: one process uses it alone, or one process per shard.

The lock files are next to the directory, so that they survive when it is moved aside. A process
that works alone holds `.<phase>.lock` exclusively; shards share it, and each also holds a lock of
its own. The kernel releases a `flock` when the process ends. On a file system that several nodes
share, `flock` must work across nodes (NFS 4 does this, Lustre needs the mount option `flock`).
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dpo_dist.errors import DirectoryLocked, NoFileLocks
from dpo_dist.system.ranks import Shard


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Lock a directory for this process alone. Raises `DirectoryLocked` naming the process that
    uses it; like all functions here, it raises `NoFileLocks` on a file system without locks."""
    with _open(path, "") as file:
        if not _try_lock(file, fcntl.LOCK_EX):
            raise _in_use(path, file)
        _set_owner(file, _this_process())
        yield


@contextmanager
def shared(path: Path, shard: Shard) -> Iterator[None]:
    """Lock one shard; other processes may hold the other shards. Raises `DirectoryLocked` if
    another process holds the shard or the whole directory, or if processes with another number of
    shards are running: shards of different numbers overlap."""
    owner = f"{shard.count} shards"
    with _open(path, "") as common:
        with in_turn(path):
            if _try_lock(common, fcntl.LOCK_EX):  # no other shard: the number may change
                _set_owner(common, owner)
            if not _try_lock(common, fcntl.LOCK_SH) or _owner(common) != owner:
                raise _in_use(path, common)
        with _open(path, f".{shard.index}-of-{shard.count}") as own:
            if not _try_lock(own, fcntl.LOCK_EX):
                raise _in_use(path, own)
            _set_owner(own, f"shard {shard}, {_this_process()}")
            yield


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Hold the lock that shards take in turn, to bind the directory or to write its manifest."""
    with _open(path, ".turn") as file:
        _lock(file, fcntl.LOCK_EX)
        yield


def _open(path: Path, suffix: str) -> IO[str]:
    return path.with_name(f".{path.name}{suffix}.lock").open("a+")


def _try_lock(file: IO[str], kind: int) -> bool:
    """Take a lock without waiting; False if another process holds it. Raises `NoFileLocks`."""
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
            f"{file.name}: the file system does not support locks ({error.strerror}). Without "
            "locks, two processes could work in the same directory. Set run.output_dir to a folder "
            "on another file system, or mount this one with locks (Lustre: the option `flock`; "
            "NFS: version 4). `dpo-dist doctor RUN.yaml` checks whether they work."
        ) from None


def _set_owner(file: IO[str], owner: str) -> None:
    file.truncate(0)
    file.write(owner)
    file.flush()


def _owner(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip()


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _in_use(path: Path, file: IO[str]) -> DirectoryLocked:
    return DirectoryLocked(
        f"{path} is in use by {_owner(file) or 'another process'}. "
        "Wait for it, or stop it, and run the same command again."
    )
