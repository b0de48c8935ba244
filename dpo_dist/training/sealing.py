"""When checkpoints are written, and their sealing in the background."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from dpo_dist.config import Optimization
from dpo_dist.storage.digests import MAX_THREADS
from dpo_dist.training.checkpoints import Checkpoint, rotate, seal

# Without `save_steps`: the part of the run between two checkpoints, and the largest share of the
# time that writing them may take.
PARTS = 4
WRITING_SHARE = 0.05


@dataclass
class SaveSchedule:
    """Decides when a checkpoint is due, by `save_steps` and `save_minutes`. Times are in seconds of
    a clock that only runs forward."""

    settings: Optimization
    _max_steps: int = 0
    _step: int = 0  # of the last checkpoint, or where training began
    _moment: float = 0.0  # when that was
    _seconds: float = 0.0  # how long training waited for the last checkpoint

    def begin(self, step: int, max_steps: int, now: float) -> None:
        """Training begins at, or resumes from, `step`."""
        self._step, self._max_steps, self._moment = step, max_steps, now

    def saved(self, step: int, now: float, seconds: float) -> None:
        """A checkpoint was written, for which training waited `seconds`."""
        self._step, self._moment, self._seconds = step, now, seconds

    def due(self, step: int, now: float) -> bool:
        """Whether to write a checkpoint at the end of `step`."""
        steps, waited = step - self._step, now - self._moment
        minutes = self.settings.save_minutes
        if minutes is not None and waited >= 60 * minutes:
            return True
        if self.settings.save_steps is not None:
            return steps >= self.settings.save_steps
        part = math.ceil(self._max_steps / PARTS)
        return steps >= part and waited >= self._seconds / WRITING_SHARE


class BackgroundSeal:
    """Seals checkpoints in a thread while training goes on: the files are on disk, mostly still in
    the page cache, and hashing needs neither the GPU nor Python's lock. Until it is done, the
    checkpoint counts as incomplete, and the one before it is kept."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._thread = ThreadPoolExecutor(1, "seal")
        self._running: Future[None] | None = None

    def start(self, checkpoint: Checkpoint, written: Mapping[str, int], best: int | None) -> None:
        """Seal a checkpoint with the `written` files of all ranks, then remove older ones."""
        self.wait()
        self._running = self._thread.submit(self._seal, checkpoint, written, best)

    def wait(self) -> None:
        """Wait for the checkpoint that is being sealed, and raise the error if that failed."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def _seal(self, checkpoint: Checkpoint, written: Mapping[str, int], best: int | None) -> None:
        # Training needs the other cores.
        threads = min(max(len(os.sched_getaffinity(0)) // 2, 1), MAX_THREADS)
        seal(checkpoint, written, threads)
        # After sealing: the last complete checkpoint must not be removed before there is a new one.
        rotate(checkpoint.path.parent, self._keep, best)
