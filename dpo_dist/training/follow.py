"""A node that follows: it starts each training that the leader announces, with its own rank."""

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
from dpo_dist.training.nodes import GRACE_SECONDS, LEFT, POLL_SECONDS, STOPPED, Meeting


def follow(nodes: Nodes, folder: Path) -> tuple[int, str]:
    """Take part in a phase until the leader says that it has ended; its exit code and message.

    On SIGTERM, which may be meant for this node alone (one that is drained, or taken away), all
    nodes save and stop: the leader says when. Raises `ConfigError` when the leader is not to be
    seen in the folder, and `NodeLost` when it falls silent.
    """
    meeting = Meeting(folder, nodes)
    meeting.wait_for_leader()
    meeting.sign_in()
    say(f"node {nodes.rank} of {nodes.count}: following {meeting.host(0)} ({folder})")
    stopped = Event()
    with meeting.beating(), handling_sigterm(stopped.set):
        try:
            return _take_part(meeting, stopped)
        except BaseException as error:
            meeting.post(LEFT, str(error) or type(error).__name__)
            raise


def _take_part(meeting: Meeting, stopped: Event) -> tuple[int, str]:
    number = 0
    process: Process | None = None
    try:
        while (ended := meeting.ended()) is None:
            meeting.check_alive(0)
            if process is None and meeting.job(number + 1).exists():
                number += 1
                process = _start(meeting, number)
            elif process is not None and (status := process.poll()) is not None:
                process = None
                if status:
                    # The leader's processes fail as well, or save and stop: it will say which.
                    meeting.post(LEFT, f"its training processes exited with code {status}")
            if stopped.is_set():
                _stop_all(meeting, _job(meeting, number) if process is not None else None)
            time.sleep(POLL_SECONDS)
        if process is not None:
            with suppress(subprocess.TimeoutExpired):  # they wait for nodes that have gone
                process.wait(timeout=GRACE_SECONDS)
        return ended
    finally:
        if process is not None:
            process.kill()
            process.wait()


def _stop_all(meeting: Meeting, job: TrainingJob | None) -> None:
    """Let the training that is at work save and stop, if there is one, and no other begin."""
    if meeting.posted(STOPPED, meeting.nodes.rank) is None:
        say(f"node {meeting.nodes.rank} of {meeting.nodes.count}: SIGTERM; all nodes are to stop")
        meeting.post(STOPPED, "")
    # Whichever rank sees it first, all of them agree on the step after which they save.
    if job is not None and not (job.out / STOP).exists():
        write_text(job.out / STOP, "")


def _job(meeting: Meeting, number: int) -> TrainingJob:
    return TrainingJob.model_validate_json(meeting.job(number).read_text(encoding="utf-8"))


def _start(meeting: Meeting, number: int) -> Process:
    job = _job(meeting, number)
    config, nodes = job.settings.accelerate_config, meeting.nodes
    assert job.logs is not None
    say(f"node {nodes.rank} of {nodes.count}: joining training {number} of this phase ({job.out})")
    with node_log(job.logs, nodes.rank).open("ab") as file:
        return subprocess.Popen(
            launcher_command(meeting.job(number), config, nodes),
            env=launcher_environment(config, nodes),
            stdout=file,
            stderr=file,
        )
