"""The state of a run from its directory: complete phases, the running phase, and its activity.

Another machine cannot see whether a lock is held without taking it. So a phase counts as active
while its files change. Once the watcher has seen a change, it measures the time by its own clock.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dpo_dist.config import Config
from dpo_dist.config.runfile import load_config
from dpo_dist.errors import DataError
from dpo_dist.runs.manifests import config_of, read_manifest
from dpo_dist.runs.run import PHASES, ROUND_PHASES, Run, round_folders
from dpo_dist.storage.artifacts import FINGERPRINT, MANIFEST
from dpo_dist.storage.folders import EMPTY, check_run, describe
from dpo_dist.storage.manifest import Manifest
from dpo_dist.tools.watch.progress import UNMEASURED, Progress, follow

STALE_SECONDS = 300.0
RATE_SECONDS = 60.0
LEAST_SECONDS = 2.0  # a rate over a shorter time is noise

State = Literal["done", "running", "quiet", "waiting"]


@dataclass(frozen=True)
class PhaseStatus:
    """The state of a phase at one look. `rate` is in units per second over the last minute, or with
    `average` since the phase started. `quiet_seconds` is the time since the last change, `holder`
    the text in the lock file."""

    name: str
    state: State
    progress: Progress
    rate: float | None = None
    average: bool = False
    quiet_seconds: float = 0.0
    holder: str = ""
    manifest: Manifest | None = None

    @property
    def seconds_left(self) -> float | None:
        total = self.progress.total
        if not self.rate or total is None:
            return None
        return max(0, total - self.progress.done) / self.rate


class RateMeter:
    """Units per second over the last minute, or since the second last change if that is earlier,
    because a training step may take minutes."""

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
        (started, before), (_, done) = self._changes[0], self._changes[-1]
        return (done - before) / (now - started) if now - started >= LEAST_SECONDS else None


class Activity:
    """The time of the last change in a phase's directory or in its locks."""

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
        for inner in (folder, folder / "checkpoints", folder / "batches"):
            yield from _modified(inner)
        yield from _modified(folder.parent, prefix=f".{folder.name}.")


class WatchedPhase:
    """Follows one phase's directory."""

    def __init__(self, root: Path, name: str, config: Config | None) -> None:
        self._name = name
        self._folder = root / name
        self._progress = follow(self._folder, config)
        self._rate = RateMeter()
        self._activity = Activity(self._folder)

    def look(self, now: float) -> PhaseStatus:
        if not self._folder.is_dir():
            return PhaseStatus(self._name, "waiting", UNMEASURED)
        if (self._folder / MANIFEST).exists():
            # Only a training shows more than its manifest.
            progress = self._progress() if self._folder.name in ("sft", "train") else UNMEASURED
            return PhaseStatus(self._name, "done", progress, manifest=_manifest(self._folder))
        progress = self._progress()
        self._rate.add(now, progress.done)
        rate = self._rate.rate(now)
        quiet = self._activity.quiet_seconds(now)
        return PhaseStatus(
            self._name,
            "running" if quiet < STALE_SECONDS else "quiet",
            progress,
            rate=self._average(progress.done, now - quiet) if rate is None else rate,
            average=rate is None,
            quiet_seconds=quiet,
            holder=_holder(self._folder),
        )

    def _average(self, done: int, until: float) -> float | None:
        """Units per second from the phase's start to its last change."""
        try:
            seconds = until - (self._folder / FINGERPRINT).stat().st_mtime
        except OSError:
            return None
        return done / seconds if done and seconds > 0 else None


class WatchedRun:
    """A run's directory, with its phases and those that have not started."""

    def __init__(self, root: Path, config: Config | None = None) -> None:
        self.root = root
        self._config = config
        self._phases: dict[str, WatchedPhase] = {}

    @classmethod
    def open(cls, path: Path, overrides: Sequence[str] = ()) -> WatchedRun:
        """Open a run's directory, which may be empty still, or a run file. Raises `ConfigError` or
        `DataError`."""
        if path.is_dir():
            if describe(path) != EMPTY:
                check_run(path)
            return cls(path)
        config = load_config(path, overrides)
        return cls(Run(config).root, config)

    def look(self, now: float | None = None) -> list[PhaseStatus]:
        """The status of all phases in order; `now` is in seconds since the epoch."""
        now = time.time() if now is None else now
        names = self._names()
        for name in names:
            self._phases.setdefault(name, WatchedPhase(self.root, name, self._config))
        return [self._phases[name].look(now) for name in names]

    def _names(self) -> list[str]:
        """The phases' directories, with those of the rounds that exist."""
        if self._config is None:
            self._config = _config_in(self.root)
        rounds = round_folders(self.root)
        if self._config is not None:
            wanted = Run(self._config).phases
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
    """The run file from the manifest of a complete phase; None if there is none."""
    for pattern in (f"*/{MANIFEST}", f"round-*/*/{MANIFEST}"):
        for path in sorted(root.glob(pattern)):
            manifest = _manifest(path.parent)
            try:
                return config_of(manifest) if manifest is not None else None
            except DataError:
                continue  # written by another version of dpo_dist
    return None


def _manifest(folder: Path) -> Manifest | None:
    """The manifest of a phase; None if it is damaged or of another version."""
    try:
        return read_manifest(folder)
    except (OSError, DataError):
        return None


def _holder(folder: Path) -> str:
    """The text in the lock file: a process, or the number of shards."""
    try:
        text = folder.with_name(f".{folder.name}.lock").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return text[:200]


def _modified(folder: Path, prefix: str = "") -> Iterator[float]:
    """When the entries with this prefix changed, without those that disappear meanwhile."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(prefix):
                with suppress(OSError):
                    yield entry.stat().st_mtime
