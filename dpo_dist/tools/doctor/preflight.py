"""Preflight: seconds on every node, before hours on all of them.

Every node writes down what it has; node 0 compares, lets all of them measure the network between
them, and prints one table. Nobody waits for ever: the nodes meet as for a training (nodes.py).
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict

from dpo_dist.config import Config
from dpo_dist.errors import ConfigError, NodeLost, PreflightFailed
from dpo_dist.runs.directories import run_root
from dpo_dist.system.console import say, warn
from dpo_dist.system.ranks import Nodes
from dpo_dist.tools.doctor.agreement import compare
from dpo_dist.tools.doctor.bandwidth import measure
from dpo_dist.tools.doctor.facts import Facts, gather
from dpo_dist.tools.doctor.findings import Finding, table
from dpo_dist.training.nodes import POLL_SECONDS, Leader, Meeting, leading, meeting_folder

_FACTS, _GO, _SPEED = "facts", "go", "speed"


def preflight(config: Config, nodes: Nodes | None) -> None:
    """Check this machine, or all nodes together, and print what was found.

    Raises `PreflightFailed`, on every node, when something is wrong on any of them, and
    `ConfigError` when a node does not come or falls silent; what is wrong on this one is said
    before it waits for the others, and again with the error.
    """
    facts = gather(config, nodes)
    alone = compare([facts])
    if nodes is None:
        if not _failures(alone) and (processes := _measuring(facts)) > 1:
            alone["all-reduce"] = [measure(None, processes)]
        _conclude([facts], alone)
        return
    own = _named([facts], alone)
    if own:
        say(f"preflight, before the other nodes are asked:\n{own}")
    folder = meeting_folder(run_root(config) / "preflight", nodes)
    try:
        if nodes.leads:
            with leading(nodes, folder) as leader:
                _lead(leader, facts)
        else:
            _follow(Meeting(folder, nodes), facts)
    except PreflightFailed:
        raise
    except (NodeLost, ConfigError) as error:
        raise ConfigError(f"{error}\n{own}".rstrip()) from None


def _measuring(facts: Facts) -> int:
    """How many processes measure on this node: one for each GPU that trains."""
    return facts.processes if facts.gpus else 1


def _lead(leader: Leader, own: Facts) -> None:
    meeting, nodes = leader.meeting, leader.nodes
    meeting.post(_FACTS, own.model_dump_json())
    leader.wait_for_all()
    found = [Facts.model_validate_json(_wait_for(meeting, _FACTS, r)) for r in range(nodes.count)]
    rows = compare(found)
    if not _failures(rows):
        meeting.post(_GO, "")
        meeting.post(_SPEED, json.dumps(asdict(measure(nodes, _measuring(own)))))
        speeds = [_wait_for(meeting, _SPEED, rank) for rank in range(nodes.count)]
        rows["all-reduce"] = [Finding(**json.loads(speed)) for speed in speeds]
    _conclude(found, rows)


def _follow(meeting: Meeting, own: Facts) -> None:
    meeting.wait_for_leader()
    meeting.sign_in()
    with meeting.beating():
        meeting.post(_FACTS, own.model_dump_json())
        measured = False
        while (ended := meeting.ended()) is None:
            meeting.check_alive(0)
            if not measured and meeting.posted(_GO, 0) is not None:
                measured = True
                meeting.post(_SPEED, json.dumps(asdict(measure(meeting.nodes, _measuring(own)))))
            time.sleep(POLL_SECONDS / 5)
    status, message = ended
    if status:
        raise PreflightFailed(message)
    say(f"preflight: node {meeting.nodes.rank} of {meeting.nodes.count}: {message}")


def _wait_for(meeting: Meeting, what: str, rank: int) -> str:
    while (text := meeting.posted(what, rank)) is None:
        if rank != meeting.nodes.rank:
            meeting.check_alive(rank)
        time.sleep(POLL_SECONDS / 5)
    return text


def _conclude(nodes: list[Facts], rows: dict[str, list[Finding]]) -> None:
    """Print the table. Raises `PreflightFailed` with what has failed on which node."""
    print(table([f"node {node.rank} ({node.host})" for node in nodes], rows), flush=True)
    for name, found in rows.items():
        for node, finding in zip(nodes, found, strict=True):
            if finding.state == "warning" and finding.advice:
                warn(f"{_name(node)}: {name}: {finding.text}. {finding.advice}")
    if lines := _named(nodes, rows):
        raise PreflightFailed(f"preflight failed:\n{lines}")


def _named(nodes: list[Facts], rows: dict[str, list[Finding]]) -> str:
    """A line for everything that has failed, with its node."""
    return "\n".join(
        f"  {_name(node)}: {name}: {finding.text}"
        for name, found in rows.items()
        for node, finding in zip(nodes, found, strict=True)
        if finding.state == "failed"
    )


def _name(node: Facts) -> str:
    return f"node {node.rank} ({node.host})"


def _failures(rows: dict[str, list[Finding]]) -> bool:
    return any(finding.state == "failed" for found in rows.values() for finding in found)
