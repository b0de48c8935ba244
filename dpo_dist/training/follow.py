"""A follower node: it starts its ranks when the leader does."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event

from dpo_dist.storage.artifacts import write_text
from dpo_dist.system.console import say
from dpo_dist.system.processes import Process, handling_sigterm
from dpo_dist.system.ranks import Nodes
from dpo_dist.training.logs import stop_file
from dpo_dist.training.nodes import (
    GRACE_SECONDS,
    LEFT,
    POLL_SECONDS,
    START,
    STOPPED,
    Rendezvous,
)


def follow(nodes: Nodes, folder: Path, start: Callable[[Path], Process]) -> tuple[int, str]:
    """Take part in a phase until the leader ends it; returns its exit code and message. `start`
    starts this node's ranks, with the folder for their logs. On SIGTERM, even if only this node
    receives it, all nodes save and stop. Raises `ConfigError` if the leader does not join in the
    folder, and `NodeLost` if its heartbeat stops."""
    rendezvous = Rendezvous(folder, nodes)
    rendezvous.wait_for_leader()
    rendezvous.join()
    say(f"node {nodes.rank} of {nodes.count}: following {rendezvous.host(0)} ({folder})")
    stopped = Event()
    with rendezvous.heartbeat(), handling_sigterm(stopped.set):
        try:
            return _take_part(rendezvous, start, stopped)
        except BaseException as error:
            rendezvous.post(LEFT, str(error) or type(error).__name__)
            raise


def _take_part(
    rendezvous: Rendezvous, start: Callable[[Path], Process], stopped: Event
) -> tuple[int, str]:
    logs: Path | None = None
    process: Process | None = None
    try:
        while (ended := rendezvous.ended()) is None:
            rendezvous.check_alive(0)
            if logs is None and (posted := rendezvous.posted(START, 0)):
                logs = Path(posted)
                process = start(logs)
            elif process is not None and (status := process.poll()) is not None:
                process = None
                if status:
                    # The leader's ranks also fail, or save and stop: it decides what follows.
                    rendezvous.post(LEFT, f"its training processes exited with code {status}")
            if stopped.is_set():
                _stop_all(rendezvous, logs)
            time.sleep(POLL_SECONDS)
        if process is not None:
            with suppress(subprocess.TimeoutExpired):  # it may wait for nodes that are gone
                process.wait(timeout=GRACE_SECONDS)
        return ended
    finally:
        if process is not None:
            process.kill()
            process.wait()


def _stop_all(rendezvous: Rendezvous, logs: Path | None) -> None:
    """Let all nodes save and stop the training, or not start it."""
    nodes = rendezvous.nodes
    if rendezvous.posted(STOPPED, nodes.rank) is None:
        say(f"node {nodes.rank} of {nodes.count}: received SIGTERM; stopping all nodes")
        rendezvous.post(STOPPED, "")
    if logs is not None and not stop_file(logs).exists():
        write_text(stop_file(logs), "")
