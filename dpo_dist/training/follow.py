"""A follower node: it starts each training that the leader announces, with its own rank."""

from __future__ import annotations

import subprocess
import time
from contextlib import suppress
from pathlib import Path
from threading import Event

from dpo_dist.storage.artifacts import write_text
from dpo_dist.system.console import say
from dpo_dist.system.processes import Process, handling_sigterm
from dpo_dist.system.ranks import Nodes
from dpo_dist.training.accelerate_command import launcher_command, launcher_environment
from dpo_dist.training.job import STOP, TrainingJob
from dpo_dist.training.logs import node_log
from dpo_dist.training.nodes import GRACE_SECONDS, LEFT, POLL_SECONDS, STOPPED, Rendezvous


def follow(nodes: Nodes, folder: Path) -> tuple[int, str]:
    """Take part in a phase until the leader ends it; returns its exit code and message. On SIGTERM,
    even if only this node receives it, all nodes save and stop. Raises `ConfigError` if the leader
    does not join in the folder, and `NodeLost` if its heartbeat stops."""
    rendezvous = Rendezvous(folder, nodes)
    rendezvous.wait_for_leader()
    rendezvous.join()
    say(f"node {nodes.rank} of {nodes.count}: following {rendezvous.host(0)} ({folder})")
    stopped = Event()
    with rendezvous.heartbeat(), handling_sigterm(stopped.set):
        try:
            return _take_part(rendezvous, stopped)
        except BaseException as error:
            rendezvous.post(LEFT, str(error) or type(error).__name__)
            raise


def _take_part(rendezvous: Rendezvous, stopped: Event) -> tuple[int, str]:
    number = 0
    job: TrainingJob | None = None
    process: Process | None = None
    try:
        while (ended := rendezvous.ended()) is None:
            rendezvous.check_alive(0)
            if process is None and rendezvous.job(number + 1).exists():
                number += 1
                job = TrainingJob.model_validate_json(rendezvous.job(number).read_text("utf-8"))
                process = _start(rendezvous, number, job)
            elif process is not None and (status := process.poll()) is not None:
                process = None
                if status:
                    # The leader's processes also fail, or save and stop: it decides what follows.
                    rendezvous.post(LEFT, f"its training processes exited with code {status}")
            if stopped.is_set():
                _stop_all(rendezvous, job if process is not None else None)
            time.sleep(POLL_SECONDS)
        if process is not None:
            with suppress(subprocess.TimeoutExpired):  # it may wait for nodes that are gone
                process.wait(timeout=GRACE_SECONDS)
        return ended
    finally:
        if process is not None:
            process.kill()
            process.wait()


def _stop_all(rendezvous: Rendezvous, job: TrainingJob | None) -> None:
    """Let all nodes save and stop the running training, if any, and start no other."""
    nodes = rendezvous.nodes
    if rendezvous.posted(STOPPED, nodes.rank) is None:
        say(f"node {nodes.rank} of {nodes.count}: received SIGTERM; stopping all nodes")
        rendezvous.post(STOPPED, "")
    # All ranks agree on the step after which they save, whichever rank sees the file first.
    if job is not None and not (job.out / STOP).exists():
        write_text(job.out / STOP, "")


def _start(rendezvous: Rendezvous, number: int, job: TrainingJob) -> Process:
    nodes, config = rendezvous.nodes, job.settings.accelerate_config
    assert job.logs is not None
    say(f"node {nodes.rank} of {nodes.count}: joining training {number} of this phase ({job.out})")
    with node_log(job.logs, nodes.rank).open("ab") as file:
        return subprocess.Popen(
            launcher_command(rendezvous.job(number), config, nodes),
            env=launcher_environment(),
            stdout=file,
            stderr=file,
        )
