"""Several machines, one training: what they tell each other through the directory that they share.

<run>/.<phase>.nodes/<launch id>/
    node-<rank>.json    here I am; written once by every node
    node-<rank>.beat    a number that grows for as long as the node is alive
    node-<rank>.left    a follower has gone before the end, and why
    node-<rank>.stop    a follower has got SIGTERM: all of them save and stop
    job-<n>.json        the n-th training that all of them start, written by the leader
    ended.json          how the phase has ended, written by the leader, last

It lies beside the phase's directory, like its lock, because `--force` moves that one aside. Nodes
die without a word (power, a kernel, a network), and a collective that waits for one waits for very
long: whoever is silent is given up by all the others. Clocks are never compared: a node is alive
while its number changes.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread

from dpo_dist.errors import INTERRUPTED, ConfigError, DpoDistError, NodeLost, Preempted
from dpo_dist.storage.artifacts import read_json, write_json, write_text
from dpo_dist.system.console import warn
from dpo_dist.system.ranks import Nodes
from dpo_dist.training.job import TrainingJob

BEAT_SECONDS = 2.0
POLL_SECONDS = 0.5
LEFT = "left"
STOPPED = "stop"
# A node whose training has failed is left alone for so long: the others fail by themselves, and
# their own last words say more.
GRACE_SECONDS = 30.0


def meeting_folder(phase: Path, nodes: Nodes) -> Path:
    """Where the nodes of one start meet."""
    return phase.with_name(f".{phase.name}.nodes") / nodes.launch_id


@dataclass
class Meeting:
    """The folder of one start, seen by one of its nodes."""

    folder: Path
    nodes: Nodes
    _beats: dict[int, tuple[str | None, float]] = field(default_factory=dict)

    def sign_in(self) -> None:
        """Say that this node is here. Raises `ConfigError` where somebody else has its rank, or
        had it in an earlier start of the same name."""
        path = self._file(self.nodes.rank, "json")
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(f'{{"host": "{socket.gethostname()}", "process": {os.getpid()}}}\n')
        except FileExistsError:
            raise ConfigError(
                f"--launch-id {self.nodes.launch_id}: node {self.nodes.rank} of this launch is "
                f"already {self.host(self.nodes.rank)} ({path}). Give every launch a new id, and "
                "every machine its own rank."
            ) from None

    def host(self, rank: int) -> str:
        """The name of a node that has signed in."""
        try:
            return str(read_json(self._file(rank, "json"))["host"])
        except (OSError, ValueError, KeyError):
            return f"node {rank}"

    def present(self, rank: int) -> bool:
        return self._file(rank, "json").exists()

    def check_alive(self, rank: int) -> None:
        """Raise `NodeLost` when a node has been silent for too long."""
        beat = self.posted("beat", rank)  # None: not yet, or a file system that has just lost it
        now = time.monotonic()
        known, since = self._beats.setdefault(rank, (beat, now))
        if beat and beat != known:
            self._beats[rank] = (beat, now)
        elif now - since > self.nodes.silent_seconds:
            raise NodeLost(
                f"node {rank} ({self.host(rank)}) has given no sign of life for "
                f"{self.nodes.silent_seconds:.0f} s ({self.folder})"
            )

    def post(self, what: str, text: str) -> None:
        """Tell the others something."""
        write_text(self._file(self.nodes.rank, what), text)

    def posted(self, what: str, rank: int) -> str | None:
        """What a node has told; None while it has not."""
        try:
            return self._file(rank, what).read_text(encoding="utf-8")
        except OSError:
            return None

    def wait_for_leader(self) -> None:
        """Return when node 0 is here. Raises `ConfigError` when it does not come."""
        deadline = time.monotonic() + self.nodes.join_seconds
        while not self.present(0):
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"node 0 did not join via {self.folder} within {self.nodes.join_seconds:.0f} "
                    "s. Is the directory on a file system that all nodes share, and was node 0 "
                    f"started with --launch-id {self.nodes.launch_id}?"
                )
            time.sleep(POLL_SECONDS)

    def job(self, number: int) -> Path:
        return self.folder / f"job-{number}.json"

    def end(self, status: int, message: str) -> None:
        write_json(self.folder / "ended.json", {"status": status, "message": message})

    def ended(self) -> tuple[int, str] | None:
        """(exit code, message) of the leader's phase, once it has ended."""
        try:
            found = read_json(self.folder / "ended.json")
        except OSError:
            return None
        return int(found["status"]), str(found["message"])

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Be alive, as the others see it."""
        stop = Event()
        path = self._file(self.nodes.rank, "beat")

        def beat() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                try:
                    # In place: a reader that meets half of it sees a change, which is all it asks.
                    path.write_text(str(number), encoding="ascii")
                except OSError as error:
                    warn(f"{path}: {error}")
                stop.wait(BEAT_SECONDS)

        thread = Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _file(self, rank: int, ending: str) -> Path:
        return self.folder / f"node-{rank}.{ending}"


class Leader:
    """Node 0: it does the phase, and lets the others join each training that the phase starts."""

    def __init__(self, meeting: Meeting) -> None:
        self.nodes = meeting.nodes
        self.meeting = meeting
        self._announced = 0
        self._missed: float | None = None
        self._deadline = time.monotonic() + meeting.nodes.join_seconds

    def announce(self, job: TrainingJob) -> Path:
        """Let all nodes start a training, once they are here; returns the job's file.

        A file of its own for every training: a node may remember what was in one that has changed.
        Raises `NodeLost` when a node does not come, and `Preempted` when one was told to stop.
        """
        self.wait_for_all()
        self._announced += 1
        self._missed = None
        path = self.meeting.job(self._announced)
        write_text(path, job.model_dump_json(indent=2) + "\n")
        return path

    def check(self, stopping: bool) -> None:
        """Raise `NodeLost` when a follower is silent, or has left and is not `stopping`."""
        for rank in range(1, self.nodes.count):
            self.meeting.check_alive(rank)
            reason = self.meeting.posted(LEFT, rank)
            if reason is None or stopping:
                continue
            self._missed = self._missed or time.monotonic()
            if time.monotonic() - self._missed > GRACE_SECONDS:
                raise NodeLost(f"node {rank} ({self.meeting.host(rank)}) has stopped: {reason}")

    def wait_for_all(self) -> None:
        """Return when all nodes are here. Raises `NodeLost` when one does not come, and
        `Preempted` when one was told to stop."""
        followers = range(1, self.nodes.count)
        while missing := [rank for rank in followers if not self.meeting.present(rank)]:
            self._check_stopped()
            if time.monotonic() > self._deadline:
                raise NodeLost(
                    f"node {', '.join(map(str, missing))} of {self.nodes.count} did not join via "
                    f"{self.meeting.folder} within {self.nodes.join_seconds:.0f} s. Is the "
                    "directory on a file system that all nodes share, and does every node have "
                    f"--launch-id {self.nodes.launch_id}?"
                )
            time.sleep(POLL_SECONDS)
        self._check_stopped()

    def _check_stopped(self) -> None:
        for rank in range(1, self.nodes.count):
            if self.meeting.posted(STOPPED, rank) is not None:
                host = self.meeting.host(rank)
                raise Preempted(f"node {rank} ({host}) was stopped while nothing was being trained")


@contextmanager
def leading(nodes: Nodes, folder: Path) -> Iterator[Leader]:
    """Lead the nodes through a phase, and tell them how it has ended, however it has."""
    folder.mkdir(parents=True, exist_ok=True)
    meeting = Meeting(folder, nodes)
    meeting.sign_in()
    status, message = 1, "the leader ended unexpectedly"
    with meeting.beating():
        try:
            yield Leader(meeting)
            status, message = 0, "done"
        except DpoDistError as error:
            status, message = error.exit_code, str(error)
            raise
        except KeyboardInterrupt:
            status, message = INTERRUPTED, "interrupted"
            raise
        finally:
            meeting.end(status, message)
