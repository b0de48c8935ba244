"""A node that follows: it starts each training that the leader announces, with its own rank."""

from __future__ import annotations

import subprocess
import time
from contextlib import suppress
from pathlib import Path

from dpo_dist.console import say
from dpo_dist.processes import Process, handling_sigterm
from dpo_dist.ranks import Nodes
from dpo_dist.training.accelerate_command import launcher_command, launcher_environment
from dpo_dist.training.job import TrainingJob
from dpo_dist.training.logs import node_log
from dpo_dist.training.nodes import GRACE_SECONDS, LEFT, POLL_SECONDS, Meeting


def follow(nodes: Nodes, folder: Path) -> tuple[int, str]:
    """Take part in a phase until the leader says that it has ended; its exit code and message.

    SIGTERM is the leader's business: it saves, and says when. Raises `ConfigError` when the leader
    is not to be seen in the folder, and `NodeLost` when it falls silent.
    """
    meeting = Meeting(folder, nodes)
    meeting.wait_for_leader()
    meeting.sign_in()
    say(f"node {nodes.rank} of {nodes.count}: follows {meeting.host(0)} ({folder})")
    with meeting.beating(), handling_sigterm(lambda: None):
        try:
            return _take_part(meeting)
        except BaseException as error:
            meeting.post(LEFT, str(error) or type(error).__name__)
            raise


def _take_part(meeting: Meeting) -> tuple[int, str]:
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
                    meeting.post(LEFT, f"its training processes ended with exit code {status}")
            time.sleep(POLL_SECONDS)
        if process is not None:
            with suppress(subprocess.TimeoutExpired):  # they wait for nodes that have gone
                process.wait(timeout=GRACE_SECONDS)
        return ended
    finally:
        if process is not None:
            process.kill()
            process.wait()


def _start(meeting: Meeting, number: int) -> Process:
    path = meeting.job(number)
    job = TrainingJob.model_validate_json(path.read_text(encoding="utf-8"))
    config, nodes = job.settings.accelerate_config, meeting.nodes
    assert job.logs is not None
    say(f"node {nodes.rank} of {nodes.count}: joins training {number} of this phase ({job.out})")
    with node_log(job.logs, nodes.rank).open("ab") as file:
        return subprocess.Popen(
            launcher_command(path, config, nodes),
            env=launcher_environment(config, nodes),
            stdout=file,
            stderr=file,
        )
