"""A phase's directory on disk: journals that survive `kill -9`, a lock, and a manifest.

<output_dir>/<run name>/<phase>/
    fingerprint.json   what the work depends on; written first
    *.jsonl            journals, one record per line
    manifest.json      counts, versions, times; written last: it marks the phase as complete
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

from pydantic import JsonValue, ValidationError

from dpo_dist.errors import DataError, FingerprintMismatch
from dpo_dist.storage import locks
from dpo_dist.storage.records import Record
from dpo_dist.system.console import counted, say
from dpo_dist.system.ranks import WHOLE, Shard

R = TypeVar("R", bound=Record)

MANIFEST = "manifest.json"
FINGERPRINT = "fingerprint.json"


class Journal(Generic[R]):
    """An append-only JSONL file of one record type. Opening it removes an incomplete last line,
    which a crash during a write leaves. Reading raises `DataError` naming file and line for any
    other damaged line."""

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
            size = counted(len(content) - whole, "byte")
            say(f"{self.path}: removed an incomplete last line ({size})")
            with self.path.open("r+b") as file:
                file.truncate(whole)

    def append(self, records: Iterable[R]) -> None:
        """Write the records to the disk, with one fsync for all."""
        lines = (record.model_dump_json() + "\n" for record in records)
        self._file.write("".join(lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def read(self) -> Iterator[R]:
        """The records in the order in which they were written."""
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
    """Yield (offset in bytes, record) of a JSONL file. If the file is `growing`, an incomplete last
    line is skipped. Raises `DataError` naming file and line."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if growing and not line.endswith(b"\n"):
                return
            try:
                yield offset, record.model_validate_json(line)
            except ValidationError as error:
                problem = error.errors()[0]
                key = ".".join(map(str, problem["loc"]))
                raise DataError(
                    f"{path}:{number}: damaged record ({key} {problem['msg']}). Move the file "
                    "aside to start this phase over."
                ) from None
            offset += len(line)


def write_records(path: Path, records: Iterable[R]) -> None:
    """Replace a JSONL file atomically."""
    _write(path, (record.model_dump_json() + "\n" for record in records))


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically and durably."""
    _write(path, [text])


def _write(path: Path, parts: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several shards may write the same file, so each uses its own temporary file.
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
    """Write a folder's file names to the disk; the fsync of a file does not include its name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # this file system supports fsync for files only
            raise
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Mapping[str, object]) -> None:
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
    """SHA-256 over the names and bytes of the files in a directory, without subdirectories, that
    match `pattern`. `of` computes the digest of a file."""
    digest = hashlib.sha256()
    for file in sorted(path.glob(pattern)):
        if file.is_file():
            digest.update(f"{file.name}\0{of(file)}\n".encode())
    return digest.hexdigest()


class PhaseDirectory:
    """A phase's directory, locked by this process and bound to a fingerprint of its inputs. `shard`
    is this process's part of the work."""

    def __init__(
        self, path: Path, fingerprint: Mapping[str, JsonValue], shard: Shard = WHOLE
    ) -> None:
        self.path = path
        self.phase = path.name
        self.shard = shard
        self._fingerprint = dict(fingerprint)
        self._started = time.monotonic()

    @property
    def complete(self) -> bool:
        """Whether the phase is finished."""
        return (self.path / MANIFEST).exists()

    def journal(self, name: str, record: type[R]) -> Journal[R]:
        return Journal(self.path / name, record)

    def bind(self) -> None:
        """Write the fingerprint, or compare it with the one in the directory. Raises
        `FingerprintMismatch`."""
        path = self.path / FINGERPRINT
        if not path.exists():
            write_json(path, self._fingerprint)
            return
        if differences := changes(self.path, self._fingerprint):
            lines = "\n".join(f"  {line}" for line in differences)
            raise FingerprintMismatch(
                f"{self.path} was made with other settings or inputs:\n{lines}\nUse another "
                "run.name, restore the old settings, or pass --force to move the old directory "
                "aside."
            )

    @property
    def wall_seconds(self) -> float:
        """The time spent on this phase so far, in seconds, including interrupted runs."""
        path = self.path / ".seconds"
        earlier = float(path.read_text()) if path.exists() else 0.0
        return round(earlier + time.monotonic() - self._started, 3)

    def add_seconds(self, seconds: float) -> None:
        """Add the time that other processes spent on this phase."""
        self._started -= seconds

    def keep_time(self) -> None:
        """Save the time spent so far, so that a resumed phase reports the sum."""
        if self.shard.whole and not self.complete:
            write_text(self.path / ".seconds", str(self.wall_seconds))

    def forget_time(self) -> None:
        """Remove the time saved by `keep_time`; the manifest has the sum."""
        (self.path / ".seconds").unlink(missing_ok=True)


@contextmanager
def phase_directory(
    path: Path, fingerprint: Mapping[str, JsonValue], *, force: bool = False, shard: Shard = WHOLE
) -> Iterator[PhaseDirectory]:
    """Lock a phase's directory, or a shard's part of it, and bind it to `fingerprint`. Raises
    `DirectoryLocked` if another process uses it, and `FingerprintMismatch` if its content was made
    with other settings. `force`, which shards must not use, moves that content to `<phase>.old-<n>`
    instead."""
    assert not (force and not shard.whole)
    path.mkdir(parents=True, exist_ok=True)
    with locks.exclusive(path) if shard.whole else locks.shared(path, shard):
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


def changes(path: Path, fingerprint: Mapping[str, JsonValue]) -> list[str]:
    """What differs between the fingerprint in a phase's directory and this one, a line for each
    value; empty if there is none in the directory."""
    if not (path / FINGERPRINT).exists():
        return []
    return _differences(read_json(path / FINGERPRINT), json.loads(json.dumps(fingerprint)))


def _differences(old: JsonValue, new: JsonValue, key: str = "") -> list[str]:
    """A line for each value that differs: `sample.max_new_tokens: 96 -> 160`."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines: list[str] = []
        for name in sorted(old.keys() | new.keys()):
            path = f"{key}.{name}" if key else name
            lines += _differences(old.get(name), new.get(name), path)
        return lines
    return [] if old == new else [f"{key}: {json.dumps(old)} -> {json.dumps(new)}"]
