"""A training phase on several machines: node 0 does it, the others take part."""

from __future__ import annotations

from dpo_dist.config import Config
from dpo_dist.errors import Preempted, UserError
from dpo_dist.phases.pipeline import run_phase
from dpo_dist.runs.directories import phase_dir
from dpo_dist.system.console import say
from dpo_dist.system.processes import handling_sigterm
from dpo_dist.system.ranks import Nodes
from dpo_dist.training.accelerate_command import check_address, check_launch
from dpo_dist.training.follow import follow
from dpo_dist.training.nodes import leading, meeting_folder


def run_on_nodes(phase: str, config: Config, nodes: Nodes, *, force: bool = False) -> int:
    """Do a training phase together with the other nodes, and return the exit code, which is the
    leader's on all of them."""
    settings = config.sft if phase == "sft" else config.train
    if settings is None:
        raise UserError(f"the run file does not configure the phase `{phase}`")
    check_launch(settings, nodes)
    check_address(nodes)
    folder = meeting_folder(phase_dir(config, phase), nodes)
    if not nodes.leads:
        status, message = follow(nodes, folder)
        say(f"node {nodes.rank} of {nodes.count}: {phase} ended on node 0: {message}")
        return status
    # While processes train, SIGTERM lets them save; before and after, the others have to be told.
    with leading(nodes, folder) as leader, handling_sigterm(_stop):
        run_phase(phase, config, force=force, leader=leader)
    return 0


def _stop() -> None:
    raise Preempted("stopped while no training was running")
