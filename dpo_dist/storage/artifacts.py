"""A phase's directory on disk: journals that survive `kill -9`, a lock, a manifest written last.

<output_dir>/<run name>/<phase>/
    fingerprint.json   what the work depends on; written first
    *.jsonl            journals, one record per line
    manifest.json      counts, versions, times; written last: its presence means complete
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from dpo_dist.errors import DataError, FingerprintMismatch
from dpo_dist.storage import locks
from dpo_dist.storage.records import Record
from dpo_dist.system.console import counted, say
from dpo_dist.system.ranks import WHOLE, Shard

R = TypeVar("R", bound=Record)

MANIFEST = "manifest.json"
FINGERPRINT = "fingerprint.json"


class Journal(Generic[R]):
    """An append-only JSONL file of one record type.

    Opening it cuts off a torn last line, the mark of a write that a crash interrupted. A
    damaged line anywhere else is a `DataError` that names file and line.
    """

    def __init__(self, path: Path, record: type[R]) -> None:
        self.path = path
        self._record = record
        path.parent.mkdir(parents=True, exist_ok=True)
        self._cut_torn_tail()
        new = not path.exists()
        self._file = path.open("ab")
        if new:
            _sync_names(path.parent)

    def _cut_torn_tail(self) -> None:
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            say(
                f"{self.path}: removed an incomplete last line "
                f"({counted(len(content) - whole, 'byte')})"
            )
            with self.path.open("r+b") as file:
                file.truncate(whole)

    def append(self, records: Iterable[R]) -> None:
        """Write the records and return when they are on the disk (one fsync for all)."""
        lines = [record.model_dump_json().encode() + b"\n" for record in records]
        self._file.write(b"".join(lines))
        self._file.flush()
        os.fsync(self._file.fileno())

    def read(self) -> Iterator[R]:
        """The records written so far, oldest first."""
        return read_records(self.path, self._record)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Journal[R]:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def read_records(path: Path, record: type[R]) -> Iterator[R]:
    """Yield the records of a JSONL file. Raises `DataError` naming file and line."""
    return (found for _, found in read_places(path, record))


def read_places(path: Path, record: type[R], *, growing: bool = False) -> Iterator[tuple[int, R]]:
    """Yield (offset in bytes, record) of a JSONL file; of one that is `growing`, what comes before
    a last line that is not whole yet. Raises `DataError` naming file and line."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if growing and not line.endswith(b"\n"):
                return
            try:
                yield offset, record.model_validate_json(line)
            except ValidationError as error:
                problem = error.errors()[0]
                where = ".".join(str(part) for part in problem["loc"])
                raise DataError(
                    f"{path}:{number}: damaged record ({where} {problem['msg']}). Move the file "
                    "aside to start this phase over."
                ) from None
            offset += len(line)


def write_records(path: Path, records: Iterable[R]) -> None:
    """Write a whole JSONL file at once: either all of it is there or none."""
    _write(path, (record.model_dump_json() + "\n" for record in records))


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically and durably."""
    _write(path, [text])


def _write(path: Path, parts: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Shards write the same file, each through a temporary one of its own.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_names(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_names(folder: Path) -> None:
    """Return when a folder's names are on the disk: a file's own fsync leaves its name out."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that does this for files only
            raise
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically; keys keep their order."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object written by `write_json`."""
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def directory_digest(
    path: Path, pattern: str = "*", of: Callable[[Path], str] = file_digest
) -> str:
    """SHA-256 over the names and bytes of a directory's own files that match `pattern`; `of` tells
    a file's digest."""
    digest = hashlib.sha256()
    for file in sorted(path.glob(pattern)):
        if file.is_file():
            digest.update(f"{file.name}\0{of(file)}\n".encode())
    return digest.hexdigest()


class PhaseDirectory:
    """One phase's directory, locked by this process and bound to a fingerprint of its inputs.

    `shard` is the part of the work that this process has.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, Any], shard: Shard = WHOLE) -> None:
        self.path = path
        self.phase = path.name
        self.shard = shard
        self._fingerprint = json.loads(json.dumps(fingerprint))
        self._started = time.monotonic()

    @property
    def complete(self) -> bool:
        """Whether the phase has finished with exactly this fingerprint."""
        return (self.path / MANIFEST).exists()

    @property
    def manifest(self) -> dict[str, Any]:
        return read_json(self.path / MANIFEST)

    def journal(self, name: str, record: type[R]) -> Journal[R]:
        return Journal(self.path / name, record)

    def bind(self) -> None:
        """Record the fingerprint, or check it against the one that the directory was made with."""
        path = self.path / FINGERPRINT
        if not path.exists():
            write_json(path, self._fingerprint)
            return
        differences = _differences(read_json(path), self._fingerprint)
        if differences:
            lines = "\n".join(f"  {line}" for line in differences)
            raise FingerprintMismatch(
                f"{self.path} was made with other settings or inputs:\n{lines}\nUse another "
                "run.name, restore the old settings, or pass --force to move the old directory "
                "aside."
            )

    def write_manifest(self, counts: Mapping[str, Any], **more: Any) -> None:
        """Declare the phase complete. `counts` is how many records went in and came out."""
        write_json(
            self.path / MANIFEST,
            {
                "phase": self.phase,
                "counts": dict(counts),
                "wall_seconds": round(self._earlier_seconds() + self._elapsed(), 3),
                **more,
            },
        )
        (self.path / ".seconds").unlink(missing_ok=True)

    def add_seconds(self, seconds: float) -> None:
        """Count time that other processes have spent on this phase."""
        self._started -= seconds

    def keep_time(self) -> None:
        """Remember the time spent so far, so that a resumed phase reports the sum."""
        if self.shard.whole and not self.complete:
            write_text(self.path / ".seconds", str(self._earlier_seconds() + self._elapsed()))

    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def _earlier_seconds(self) -> float:
        path = self.path / ".seconds"
        return float(path.read_text()) if path.exists() else 0.0


@contextmanager
def phase_directory(
    path: Path, fingerprint: Mapping[str, Any], *, force: bool = False, shard: Shard = WHOLE
) -> Iterator[PhaseDirectory]:
    """Lock a phase's directory for this process, or a shard's part of it, and bind it to
    `fingerprint`.

    Raises `DirectoryLocked` when another process works in it, and `FingerprintMismatch` when
    it holds the work of other settings; `force` moves that work to `<phase>.old-<n>` instead
    (not for a shard, beside which others may be at work).
    """
    assert not (force and not shard.whole)
    path.mkdir(parents=True, exist_ok=True)
    with locks.sole(path) if shard.whole else locks.shared(path, shard):
        directory = PhaseDirectory(path, fingerprint, shard)
        with nullcontext() if shard.whole else locks.in_turn(path):
            try:
                directory.bind()
            except FingerprintMismatch:
                if not force:
                    raise
                say(f"moved the old {path.name} to {_move_aside(path)}")
                directory.bind()
        try:
            yield directory
        finally:
            directory.keep_time()


def _move_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    path.rename(aside)
    path.mkdir()
    return aside


def _differences(old: Any, new: Any, key: str = "") -> list[str]:
    """One line per leaf that differs: `sample.max_new_tokens: 96 -> 160`."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines: list[str] = []
        for name in sorted(old.keys() | new.keys()):
            path = f"{key}.{name}" if key else name
            lines += _differences(old.get(name), new.get(name), path)
        return lines
    return [] if old == new else [f"{key}: {json.dumps(old)} -> {json.dumps(new)}"]
