"""Runs several engine processes (workers) on one machine, each with its own GPUs and a shard.

A worker is the same command with `--shard`, as in an array job on a cluster. Its output goes to
`<phase>/worker-<shard>.log`; the user sees one progress bar for all journals.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dpo_dist.config import EngineConfig
from dpo_dist.errors import ConfigError, PhaseFailed, Preempted, UserError
from dpo_dist.storage.tails import Watched, last_lines
from dpo_dist.system.console import INNER, LOG, counted, progress, say, warn
from dpo_dist.system.machine import visible_gpus
from dpo_dist.system.processes import Process, end_all, handling_sigterm
from dpo_dist.system.ranks import Shard

POLL_SECONDS = 0.5
TAIL = 20  # lines of a failed worker's log that are shown


@dataclass(frozen=True)
class Place:
    """The GPUs of a worker, or its CPU cores if there are no GPUs."""

    gpus: tuple[str, ...] = ()
    cores: frozenset[int] = frozenset()


def places(engine: EngineConfig) -> list[Place]:
    """The places of all workers; a single one if the phase's own process does the work. Raises
    `ConfigError` if there are too few GPUs."""
    if not engine.needs_gpu:  # servers generate the answers
        return [Place()]
    each = engine.gpus_per_worker
    gpus = visible_gpus()
    count = engine.fixed_workers or max(1, len(gpus) // each)
    if gpus and count * each > len(gpus):
        raise ConfigError(
            f"engine.workers: {counted(count, 'worker')} with {counted(each, 'GPU')} each "
            f"need {count * each}, but {len(gpus)} are visible"
        )
    if count == 1:
        return [Place()]
    if gpus:
        return [Place(gpus=tuple(gpus[n * each : (n + 1) * each])) for n in range(count)]
    cores = sorted(os.sched_getaffinity(0))
    return [Place(cores=frozenset(cores[n::count] or cores)) for n in range(count)]


@dataclass
class Worker:
    """A shard and the process that works on it, which may be restarted."""

    shard: Shard
    place: Place
    command: Sequence[str]
    journal: Path
    log: Path
    process: Process | None = None
    size_at_start: int = 0

    def start(self) -> None:
        self.size_at_start = self._size()
        environment = {**os.environ, INNER: "1"}
        environment.pop(LOG, None)  # the run's log has the bar of all workers
        if self.place.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self.place.gpus)
        own = os.sched_getaffinity(0)
        with self.log.open("ab") as log:
            # The child inherits the cores, and its libraries start as many threads.
            os.sched_setaffinity(0, self.place.cores or own)
            try:
                self.process = subprocess.Popen(
                    [*self.command, "--shard", str(self.shard)],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            finally:
                os.sched_setaffinity(0, own)

    @property
    def has_progressed(self) -> bool:
        """Whether the journal has grown since the last start."""
        return self._size() > self.size_at_start

    def _size(self) -> int:
        return self.journal.stat().st_size if self.journal.exists() else 0


def run_workers(
    workers: Sequence[Worker], *, name: str, total: int, journals: Sequence[str]
) -> None:
    """Run all workers to their end; `total` records are expected in the `journals` (patterns).

    A worker that dies is restarted if it has made progress since its last start; otherwise it has
    failed. Once the others are done, raises `PhaseFailed` with the end of the first failed worker's
    log. Raises `UserError` at once if a worker reports one.
    """
    folder = workers[0].log.parent
    say(f"{name}: {counted(len(workers), 'worker')}; logs: {folder}/worker-*.log")
    watched = Watched(folder, journals)
    done = watched.look()
    failed: list[Worker] = []
    with _started(workers) as stopped, progress(name, total, done) as advance:
        running = list(workers)
        while running:
            time.sleep(POLL_SECONDS)
            advance(watched.look(), watched.note)
            if stopped.is_set():
                raise Preempted("the workers were stopped")
            running = [worker for worker in running if _is_running(worker, failed)]
        advance(watched.look(), watched.note)
    if failed:
        raise PhaseFailed(
            f"{len(failed)} of {len(workers)} workers failed; generated answers are kept. The log "
            f"of the first one, {failed[0].shard}, ends with:\n{last_lines(failed[0].log, TAIL)}"
        )


def _is_running(worker: Worker, failed: list[Worker]) -> bool:
    """Whether a worker is running, after a restart if necessary. Adds it to `failed` if it made no
    progress."""
    assert worker.process is not None
    status = worker.process.poll()
    if status == UserError.exit_code:
        raise UserError(last_lines(worker.log, TAIL))
    if not status:
        return status is None
    if worker.has_progressed:
        warn(f"worker {worker.shard} exited with {status}; restarting it")
        worker.start()
        return True
    failed.append(worker)
    return False


@contextmanager
def _started(workers: Sequence[Worker]) -> Iterator[threading.Event]:
    """Start the workers, and end them all when the context ends. SIGTERM sets the event and
    interrupts the workers, which then complete their journals."""
    stopped = threading.Event()

    def stop() -> None:
        stopped.set()
        for worker in workers:
            if worker.process is not None:
                worker.process.send_signal(signal.SIGINT)

    with handling_sigterm(stop):
        try:
            for worker in workers:
                worker.start()
            yield stopped
        finally:
            end_all([worker.process for worker in workers if worker.process is not None])
