"""Following files that others append to, on this machine or on another one that shares them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CUT_OFF = b'"finish_reason":"length"'  # quotes within a JSON text are escaped: no answer says this


class Tail:
    """The whole lines of a growing file, each handed out once; only new bytes are read.

    A file that was replaced, cut short or moved away is another one: what was known of it is
    forgotten, and it is read from its start.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._inode: int | None = None

    def look(self, take: Callable[[bytes], None], forget: Callable[[], None]) -> None:
        """Give `take` the lines that have come. A last line without its end is left for later."""
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
            return  # a network file system that has just lost it; the next look finds out

    def _start_again(self, forget: Callable[[], None]) -> None:
        self._offset, self._inode = 0, None
        forget()


class LineCount:
    """How many lines a growing file has, and how many of them are answers that were cut off."""

    def __init__(self, path: Path) -> None:
        self._tail = Tail(path)
        self._forget()

    def look(self) -> int:
        """The lines by now."""
        self._tail.look(self._take, self._forget)
        return self.lines

    def _take(self, line: bytes) -> None:
        self.lines += 1
        self.cut_off += CUT_OFF in line

    def _forget(self) -> None:
        self.lines = self.cut_off = 0


@dataclass
class Watched:
    """Counts the records of journals that others write, by the bytes that are new."""

    folder: Path
    patterns: Sequence[str]
    counts: dict[Path, LineCount] = field(default_factory=dict)

    def look(self) -> int:
        """How many records have come."""
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
    """The end of a log; "" where there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    return "\n".join(lines[-count:])
