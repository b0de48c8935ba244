"""Follows files to which other processes append, on this machine or on another node."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CUT_OFF = b'"finish_reason":"length"'  # not in an answer: JSON escapes quotes within texts


class Tail:
    """The complete lines of a growing file, each passed on once; only new bytes are read. If the
    file is replaced, truncated or removed, `forget` is called and reading starts again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._inode: int | None = None

    def look(self, take: Callable[[bytes], None], forget: Callable[[], None]) -> None:
        """Call `take` with each new line. An incomplete last line is left for the next call."""
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                if self._inode is not None and (
                    status.st_ino != self._inode or status.st_size < self._offset
                ):
                    self._start_again(forget)
                self._inode = status.st_ino
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        return
                    self._offset += len(line)
                    take(line)
        except FileNotFoundError:
            self._start_again(forget)
        except OSError:
            return  # a temporary failure of a network file system; the next call tries again

    def _start_again(self, forget: Callable[[], None]) -> None:
        self._offset, self._inode = 0, None
        forget()


class LineCount:
    """Counts the lines of a growing file, and those that are answers that were cut off."""

    def __init__(self, path: Path) -> None:
        self._tail = Tail(path)
        self._forget()

    def look(self) -> int:
        """Read the new lines and return the number of all lines."""
        self._tail.look(self._take, self._forget)
        return self.lines

    def _take(self, line: bytes) -> None:
        self.lines += 1
        self.cut_off += CUT_OFF in line

    def _forget(self) -> None:
        self.lines = self.cut_off = 0


@dataclass
class Watched:
    """Counts the records in journals that other processes write; only new bytes are read."""

    folder: Path
    patterns: Sequence[str]
    counts: dict[Path, LineCount] = field(default_factory=dict)

    def look(self) -> int:
        """Read the new records and return their number."""
        before = self.records
        for path in (path for pattern in self.patterns for path in self.folder.glob(pattern)):
            self.counts.setdefault(path, LineCount(path))
        for count in self.counts.values():
            count.look()
        return self.records - before

    @property
    def records(self) -> int:
        return sum(count.lines for count in self.counts.values())

    @property
    def cut_off(self) -> int:
        return sum(count.cut_off for count in self.counts.values())

    @property
    def note(self) -> str:
        return f"{100 * self.cut_off / self.records:.0f} % cut off" if self.records else ""


def last_lines(path: Path, count: int) -> str:
    """The last lines of a log; "" if the file does not exist."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    return "\n".join(lines[-count:])
