"""The digest of a model's weights. Reading them takes minutes for a large model, and every phase
and every worker asks: what was read once is remembered, for as long as the files are the same.

A file is the same while its place, size, times of change and inode are. The inode's own time
cannot be set back, so that a copy with an old date is another file, too.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

from dpo_dist.storage.artifacts import directory_digest, read_json, write_json
from dpo_dist.system.console import say

KEPT_BYTES = 64 * 2**20  # of a file whose digest other processes may use: smaller ones are quick
SAID_BYTES = 2 * 10**9  # of weights whose reading is announced: some seconds
# What has changed less long ago may change again within the same tick of the file system's clock.
SETTLED_NANOSECONDS = 2 * 10**9

Stamp = tuple[int, int, int, int]

_read: dict[tuple[Path, Stamp], str] = {}


def weights_digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of a directory's safetensors: `directory_digest` of them."""
    unread = sum(
        stamp[0]
        for path in folder.glob("*.safetensors")
        if path.is_file() and _known(path.resolve(), stamp := _stamp(path.stat())) is None
    )
    if unread >= SAID_BYTES:
        say(f"{folder}: reading {unread / 1e9:.0f} GB of weights for their digest")
    return directory_digest(folder, "*.safetensors", _digest)


def _digest(path: Path) -> str:
    path = path.resolve()
    with path.open("rb") as file:
        stamp = _stamp(os.fstat(file.fileno()))
        if (known := _known(path, stamp)) is not None:
            return known
        settled = time.time_ns() - max(stamp[1:3]) > SETTLED_NANOSECONDS
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if settled and _stamp(os.fstat(file.fileno())) == stamp:
            _keep(path, stamp, found)
    return found


def _stamp(stat: os.stat_result) -> Stamp:
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _known(path: Path, stamp: Stamp) -> str | None:
    if (path, stamp) in _read:
        return _read[path, stamp]
    if stamp[0] < KEPT_BYTES:
        return None
    try:
        entry = read_json(_place(path))
        same = entry["path"] == str(path) and entry["stamp"] == list(stamp)
        return str(entry["sha256"]) if same else None
    except (OSError, ValueError, LookupError, TypeError):
        return None  # none was kept, or what was is damaged: it is read again


def _keep(path: Path, stamp: Stamp, digest: str) -> None:
    _read[path, stamp] = digest
    if stamp[0] >= KEPT_BYTES:
        with suppress(OSError):  # a home that cannot be written to
            write_json(_place(path), {"path": str(path), "stamp": list(stamp), "sha256": digest})


def _place(path: Path) -> Path:
    """Where the digest of a file is kept: in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME")
    cache = Path(home) if home else Path("~/.cache").expanduser()
    name = hashlib.sha256(str(path).encode()).hexdigest()[:32]
    return cache / "dpo_dist" / "digests" / f"{name}.json"
