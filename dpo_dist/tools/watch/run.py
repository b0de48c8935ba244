"""A run as its directory shows it: which phases are complete, which one is at work, and whether
anybody is.

Whether a lock is held cannot be found out from another machine without taking it. What shows work
is that files change; the clock that decides how long ago is the watcher's own, as soon as it has
seen a change itself.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from dpo_dist.config import Config
from dpo_dist.config.runfile import load_config
from dpo_dist.errors import DataError
from dpo_dist.runs.directories import PHASES, ROUND_PHASES, phases_of, round_folders, run_root
from dpo_dist.storage.artifacts import FINGERPRINT, MANIFEST
from dpo_dist.tools.watch.progress import Progress, TrainingFollower, follow, read_object

STALE_SECONDS = 300.0
RATE_SECONDS = 60.0
LEAST_SECONDS = 2.0  # a rate of less time than that is noise

State = Literal["done", "running", "quiet", "waiting"]


@dataclass(frozen=True)
class PhaseStatus:
    """A phase as one look finds it.

    `rate` is units per second, `average` where it is not the last minute's but that since the
    phase began. `quiet_seconds` is how long nothing has changed, `holder` who has signed the lock.
    """

    name: str
    state: State
    progress: Progress
    rate: float | None = None
    average: bool = False
    quiet_seconds: float = 0.0
    holder: str = ""
    manifest: dict[str, Any] | None = None

    @property
    def seconds_left(self) -> float | None:
        total = self.progress.total
        if not self.rate or total is None:
            return None
        return max(0, total - self.progress.done) / self.rate


class RateMeter:
    """Units per second over the last minute, or since the last but one change where that is longer
    ago: a training step may take minutes."""

    def __init__(self) -> None:
        self._changes: deque[tuple[float, int]] = deque()

    def add(self, now: float, done: int) -> None:
        if self._changes and done < self._changes[-1][1]:
            self._changes.clear()
        if not self._changes or done > self._changes[-1][1]:
            self._changes.append((now, done))
        while len(self._changes) > 2 and self._changes[1][0] < now - RATE_SECONDS:
            self._changes.popleft()

    def rate(self, now: float) -> float | None:
        if len(self._changes) < 2:
            return None
        (begun, before), (_, done) = self._changes[0], self._changes[-1]
        return (done - before) / (now - begun) if now - begun >= LEAST_SECONDS else None


class SignsOfLife:
    """When anything in a phase's directory, or a lock beside it, has last changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._newest = 0.0
        self._changed: float | None = None

    def quiet_seconds(self, now: float) -> float:
        newest = max(self._times(), default=0.0)
        if self._changed is None:
            self._changed = min(now, newest)
        elif newest != self._newest:
            self._changed = now
        self._newest = newest
        return now - self._changed

    def _times(self) -> Iterator[float]:
        folder = self._folder
        yield from _modified(folder, lambda name: True)
        for inner in ("checkpoints", "batches"):
            yield from _modified(folder / inner, lambda name: True)
        lock = f".{folder.name}."
        yield from _modified(folder.parent, lambda name: name.startswith(lock))


class WatchedPhase:
    """One phase's directory, looked at again and again."""

    def __init__(self, root: Path, name: str) -> None:
        self._name = name
        self._folder = root / name
        self._follower = follow(self._folder)
        self._pace = RateMeter()
        self._signs = SignsOfLife(self._folder)

    def look(self, now: float) -> PhaseStatus:
        if not self._folder.is_dir():
            return PhaseStatus(self._name, "waiting", Progress(0, None, ""))
        if manifest := read_object(self._folder / MANIFEST):
            return PhaseStatus(self._name, "done", self._end(), manifest=manifest)
        progress = self._follower.look()
        self._pace.add(now, progress.done)
        rate = self._pace.rate(now)
        quiet = self._signs.quiet_seconds(now)
        return PhaseStatus(
            self._name,
            "running" if quiet < STALE_SECONDS else "quiet",
            progress,
            rate=self._average(progress.done, now - quiet) if rate is None else rate,
            average=rate is None,
            quiet_seconds=quiet,
            holder=_holder(self._folder),
        )

    def _end(self) -> Progress:
        """Of a complete phase the manifest says all that a journal could, but for a training's."""
        training = isinstance(self._follower, TrainingFollower)
        return self._follower.look() if training else Progress(0, None, "")

    def _average(self, done: int, until: float) -> float | None:
        """What one look alone can tell: the rate from the phase's beginning to its last write."""
        try:
            seconds = until - (self._folder / FINGERPRINT).stat().st_mtime
        except OSError:
            return None
        return done / seconds if done and seconds > 0 else None


class WatchedRun:
    """A run's directory, and the phases in it or to come."""

    def __init__(self, root: Path, config: Config | None = None) -> None:
        self.root = root
        self._config = config
        self._phases: dict[str, WatchedPhase] = {}

    @classmethod
    def open(cls, path: Path, overrides: Sequence[str] = ()) -> WatchedRun:
        """From a run's directory or a run file. Raises `ConfigError` or `DataError`."""
        if path.is_dir():
            if not any(path.glob(f"*/{FINGERPRINT}")) and any(path.glob("*.yaml")):
                raise DataError(f"{path} contains run files but no run: name one of the files")
            return cls(path)
        config = load_config(path, overrides)
        return cls(run_root(config), config)

    def look(self, now: float | None = None) -> list[PhaseStatus]:
        """All phases in order as they are now (seconds since the epoch)."""
        now = time.time() if now is None else now
        names = self._names()
        for name in names:
            self._phases.setdefault(name, WatchedPhase(self.root, name))
        return [self._phases[name].look(now) for name in names]

    def _names(self) -> list[str]:
        """The phases' directories; those of rounds as they appear."""
        if self._config is None:
            self._config = _config_in(self.root)
        rounds = round_folders(self.root)
        if self._config is not None:
            wanted = phases_of(self._config)
        else:
            patterns = (f"*/{FINGERPRINT}", f"round-*/*/{FINGERPRINT}")
            found = {path.parent.name for pattern in patterns for path in self.root.glob(pattern)}
            wanted = [phase for phase in PHASES if phase in found]
        if not rounds:
            return wanted
        again = [phase for phase in wanted if phase in ROUND_PHASES]
        return [
            *(phase for phase in wanted if phase == "sft"),
            *(f"{path.name}/{phase}" for path in rounds for phase in again),
            *(phase for phase in wanted if phase == "report"),
        ]


def _config_in(root: Path) -> Config | None:
    """The run file as the first complete phase has kept it."""
    for pattern in (f"*/{MANIFEST}", f"round-*/*/{MANIFEST}"):
        for path in sorted(root.glob(pattern)):
            try:
                return Config.model_validate(read_object(path).get("config"))
            except ValidationError:
                continue  # of another version of this program
    return None


def _holder(folder: Path) -> str:
    """Who has signed the lock: a process, or how many shards the work is cut into."""
    try:
        text = folder.with_name(f".{folder.name}.lock").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return text[:200]


def _modified(folder: Path, wanted: Callable[[str], bool]) -> Iterator[float]:
    """When the folder's wanted entries were changed; what vanishes in between is left out."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if wanted(entry.name):
                    try:
                        yield entry.stat().st_mtime
                    except OSError:
                        continue
    except OSError:
        return
