"""Several engine processes on one machine, one for each GPU (or group of them), each with a shard.

A worker is the same command with `--shard`, as an array job on a cluster would start it. Its
messages go to `<phase>/worker-<shard>.log`; what the user sees is one bar over all journals.
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

from dpo_dist.config import EngineConfig, HfEngine, VllmEngine
from dpo_dist.errors import ConfigError, PhaseFailed, Preempted, UserError
from dpo_dist.storage.tails import Watched, last_lines
from dpo_dist.system.console import INNER, counted, progress, say, warn
from dpo_dist.system.machine import visible_gpus
from dpo_dist.system.processes import Process, end_all, handling_sigterm
from dpo_dist.system.ranks import Shard

LOOK_SECONDS = 0.5
TAIL = 20  # lines of a failed worker's log that are shown


@dataclass(frozen=True)
class Place:
    """Where a worker runs: the GPUs it sees, or else the processor cores."""

    gpus: tuple[str, ...] = ()
    cores: frozenset[int] = frozenset()


def places(engine: EngineConfig) -> list[Place]:
    """One for each worker; a single one where the phase's own process does the work.

    Raises `ConfigError` where the GPUs do not suffice.
    """
    if not isinstance(engine, VllmEngine | HfEngine):
        return [Place()]
    each = engine.tensor_parallel_size if isinstance(engine, VllmEngine) else 1
    gpus = visible_gpus()
    count = engine.workers or max(1, len(gpus) // each)
    if gpus and count * each > len(gpus):
        raise ConfigError(
            f"engine.workers: {counted(count, 'worker')} with {counted(each, 'GPU')} each "
            f"need {count * each}, but "
            f"{len(gpus)} are visible"
        )
    if count == 1:
        return [Place()]
    if gpus:
        return [Place(gpus=tuple(gpus[n * each : (n + 1) * each])) for n in range(count)]
    cores = sorted(os.sched_getaffinity(0))
    return [Place(cores=frozenset(cores[n::count] or cores)) for n in range(count)]


@dataclass
class Worker:
    """One process after the other that works on a shard."""

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
        if self.place.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self.place.gpus)
        own = os.sched_getaffinity(0)
        with self.log.open("ab") as log:
            # A child inherits the cores; its libraries start as many threads.
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
        """Whether anything was written since the last start: then another may get further."""
        return self._size() > self.size_at_start

    def _size(self) -> int:
        return self.journal.stat().st_size if self.journal.exists() else 0


def run_workers(
    workers: Sequence[Worker], *, name: str, total: int, journals: Sequence[str]
) -> None:
    """Run all workers to their end; `total` records are expected in the `journals` (patterns).

    A worker that dies is started again, unless it has done nothing since its last start. Raises
    `PhaseFailed` with what the first such worker said last, once the others are done, and
    `UserError` at once where the input is what is wrong.
    """
    folder = workers[0].log.parent
    say(f"{name}: {counted(len(workers), 'worker')}; logs: {folder}/worker-*.log")
    watched = Watched(folder, journals)
    done = watched.look()
    failed: list[Worker] = []
    with _started(workers) as stopped, progress(name, total, done) as advance:
        at_work = list(workers)
        while at_work:
            time.sleep(LOOK_SECONDS)
            advance(watched.look(), watched.note)
            if stopped.is_set():
                raise Preempted("the workers were stopped")
            at_work = [worker for worker in at_work if _goes_on(worker, failed)]
        advance(watched.look(), watched.note)
    if failed:
        raise PhaseFailed(
            f"{len(failed)} of {len(workers)} workers failed; what was generated is kept. The "
            f"first of them, {failed[0].shard}, said last:\n{last_lines(failed[0].log, TAIL)}"
        )


def _goes_on(worker: Worker, failed: list[Worker]) -> bool:
    """Whether a worker is at work, or at work again; one that cannot go on joins the `failed`."""
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
    """The workers at work, none of which is left behind; the event tells of a SIGTERM, which is
    passed on as an interrupt: then they put their journals in order."""
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
