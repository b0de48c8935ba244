"""Coordinates the machines that train together, through a directory that they share.

<run>/.<phase>.nodes/<launch id>/
    node-<rank>.json    host and process id; written once, when the node joins
    node-<rank>.beat    heartbeat: a number that grows while the node is alive
    node-<rank>.left    why a follower left before the end
    node-<rank>.stop    a follower received SIGTERM: all nodes save and stop
    node-0.start        the log directory of the training that all nodes start now
    ended.json          how the phase ended; written last, by the leader

The directory is beside the phase's directory, like its lock, because `--force` moves that one. A
node may die silently (power, kernel, network), and collectives wait very long for it, so every node
gives up on a node without a heartbeat. Clocks are never compared.
"""

from __future__ import annotations

import itertools
import json
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

BEAT_SECONDS = 2.0
POLL_SECONDS = 0.5
START = "start"
LEFT = "left"
STOPPED = "stop"
# After a training process fails, the others get this long to fail by themselves and write their own
# errors.
GRACE_SECONDS = 30.0


def rendezvous_folder(phase: Path, nodes: Nodes) -> Path:
    """The directory through which the nodes of one launch communicate."""
    return phase.with_name(f".{phase.name}.nodes") / nodes.launch_id


@dataclass
class Rendezvous:
    """The shared directory of one launch, as one of its nodes uses it."""

    folder: Path
    nodes: Nodes
    _beats: dict[int, tuple[str | None, float]] = field(default_factory=dict)

    def join(self) -> None:
        """Announce this node. Raises `ConfigError` if its rank was taken, now or earlier."""
        path = self._file(self.nodes.rank, "json")
        try:
            with path.open("x", encoding="utf-8") as file:
                entry = {"host": socket.gethostname(), "process": os.getpid()}
                file.write(json.dumps(entry) + "\n")
        except FileExistsError:
            raise ConfigError(
                f"--launch-id {self.nodes.launch_id}: node {self.nodes.rank} of this launch is "
                f"already {self.host(self.nodes.rank)} ({path}). Give every launch a new id, and "
                "every machine its own rank."
            ) from None

    def host(self, rank: int) -> str:
        """The host name of a node, or its rank if it has not joined."""
        try:
            return str(read_json(self._file(rank, "json"))["host"])
        except (OSError, ValueError, KeyError):
            return f"node {rank}"

    def present(self, rank: int) -> bool:
        return self._file(rank, "json").exists()

    def check_alive(self, rank: int) -> None:
        """Raise `NodeLost` if a node's heartbeat has stopped."""
        beat = self.posted("beat", rank)  # None: not yet written, or a file system error
        now = time.monotonic()
        known, since = self._beats.setdefault(rank, (beat, now))
        if beat and beat != known:
            self._beats[rank] = (beat, now)
        elif now - since > self.nodes.silent_seconds:
            raise NodeLost(
                f"node {rank} ({self.host(rank)}) has given no sign of life for "
                f"{self.nodes.silent_seconds:.0f} s ({self.folder})"
            )

    def post(self, name: str, text: str) -> None:
        """Publish a text to the other nodes."""
        write_text(self._file(self.nodes.rank, name), text)

    def posted(self, name: str, rank: int) -> str | None:
        """The text that a node has posted under a name, or None."""
        try:
            return self._file(rank, name).read_text(encoding="utf-8")
        except OSError:
            return None

    def wait_for_leader(self) -> None:
        """Return when node 0 has joined. Raises `ConfigError` if it does not join in time."""
        deadline = time.monotonic() + self.nodes.join_seconds
        while not self.present(0):
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"node 0 did not join via {self.folder} within {self.nodes.join_seconds:.0f} "
                    "s. Is the directory on a file system that all nodes share, and was node 0 "
                    f"started with --launch-id {self.nodes.launch_id}?"
                )
            time.sleep(POLL_SECONDS)

    def end(self, status: int, message: str) -> None:
        write_json(self.folder / "ended.json", {"status": status, "message": message})

    def ended(self) -> tuple[int, str] | None:
        """(exit code, message) of the leader's phase, or None while it runs."""
        try:
            result = read_json(self.folder / "ended.json")
        except OSError:
            return None
        return int(result["status"]), str(result["message"])

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Write this node's heartbeat from a thread."""
        stop = Event()
        path = self._file(self.nodes.rank, "beat")

        def beat() -> None:
            for number in itertools.count(1):
                try:
                    # Not atomic: a reader that sees half a number still sees a change.
                    path.write_text(str(number), encoding="ascii")
                except OSError as error:
                    warn(f"{path}: {error}")
                if stop.wait(BEAT_SECONDS):
                    return

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
    """Node 0: its rank 0 runs the phase."""

    def __init__(self, rendezvous: Rendezvous) -> None:
        self.nodes = rendezvous.nodes
        self.rendezvous = rendezvous
        self._left_at: float | None = None
        self._deadline = time.monotonic() + rendezvous.nodes.join_seconds

    def start_all(self, logs: Path) -> None:
        """Let all nodes start their ranks, once they have joined. Raises what `wait_for_all`
        raises."""
        self.wait_for_all()
        self.rendezvous.post(START, str(logs))

    def check(self, stopping: bool) -> None:
        """Raise `NodeLost` if a follower is silent, or if it left and is not `stopping`."""
        for rank in range(1, self.nodes.count):
            self.rendezvous.check_alive(rank)
            reason = self.rendezvous.posted(LEFT, rank)
            if reason is None or stopping:
                continue
            self._left_at = self._left_at or time.monotonic()
            if time.monotonic() - self._left_at > GRACE_SECONDS:
                raise NodeLost(f"node {rank} ({self.rendezvous.host(rank)}) has stopped: {reason}")

    def wait_for_all(self) -> None:
        """Return when all nodes have joined. Raises `NodeLost` if one does not join in time, and
        `Preempted` if one received SIGTERM."""
        followers = range(1, self.nodes.count)
        while True:
            missing = [rank for rank in followers if not self.rendezvous.present(rank)]
            for rank in followers:
                if self.rendezvous.posted(STOPPED, rank) is not None:
                    host = self.rendezvous.host(rank)
                    raise Preempted(
                        f"node {rank} ({host}) was stopped while no training was running"
                    )
            if not missing:
                return
            if time.monotonic() > self._deadline:
                raise NodeLost(
                    f"node {', '.join(map(str, missing))} of {self.nodes.count} did not join via "
                    f"{self.rendezvous.folder} within {self.nodes.join_seconds:.0f} s. Is the "
                    "directory on a file system that all nodes share, and does every node have "
                    f"--launch-id {self.nodes.launch_id}?"
                )
            time.sleep(POLL_SECONDS)


@contextmanager
def leading(nodes: Nodes, folder: Path) -> Iterator[Leader]:
    """Lead the nodes through a phase, and publish how it ended, even after an error."""
    folder.mkdir(parents=True, exist_ok=True)
    rendezvous = Rendezvous(folder, nodes)
    rendezvous.join()
    status, message = 1, "the leader ended unexpectedly"
    with rendezvous.heartbeat():
        try:
            yield Leader(rendezvous)
            status, message = 0, "done"
        except DpoDistError as error:
            status, message = error.exit_code, str(error)
            raise
        except KeyboardInterrupt:
            status, message = INTERRUPTED, "interrupted"
            raise
        finally:
            rendezvous.end(status, message)
