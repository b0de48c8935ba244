"""A check of all nodes within seconds, before a training of hours.

Every node posts its facts. Node 0 compares them, lets all nodes measure the network between them,
and prints one table. The nodes exchange messages as in a training (training/nodes.py), with the
same time limits.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict

from dpo_dist.errors import ConfigError, NodeLost, PreflightFailed
from dpo_dist.estimates.hardware import Cluster
from dpo_dist.runs.run import Run
from dpo_dist.system.console import say, warn
from dpo_dist.system.ranks import Nodes
from dpo_dist.tools.doctor.agreement import compare
from dpo_dist.tools.doctor.bandwidth import measure
from dpo_dist.tools.doctor.facts import Facts, gather
from dpo_dist.tools.doctor.findings import Finding, table
from dpo_dist.training.nodes import POLL_SECONDS, Leader, Rendezvous, leading, rendezvous_folder

_FACTS, _GO, _SPEED = "facts", "go", "speed"


def preflight(run: Run, nodes: Nodes | None, planned: Cluster | None = None) -> None:
    """Check this machine, or all nodes together, and print the findings. `planned` are the GPUs
    that a node should have.

    Raises `PreflightFailed` on every node if a check fails on any node, and `ConfigError` if a node
    does not join or stops responding. This node's own failures are printed before it waits for the
    others, and repeated in that error.
    """
    facts = gather(run, nodes, planned)
    rows = compare([facts])
    failures = _failures([facts], rows)
    if nodes is None:
        if not failures and (processes := _processes(facts)) > 1:
            rows["all-reduce"] = [measure(None, processes)]
        _report([facts], rows)
        return
    if failures:
        say(f"preflight of this node, before the comparison with the others:\n{failures}")
    folder = rendezvous_folder(run.root / "preflight", nodes)
    try:
        if nodes.leads:
            with leading(nodes, folder) as leader:
                _lead(leader, facts)
        else:
            _follow(Rendezvous(folder, nodes), facts)
    except PreflightFailed:
        raise
    except (NodeLost, ConfigError) as error:
        raise ConfigError(f"{error}\n{failures}".rstrip()) from None


def _processes(facts: Facts) -> int:
    """How many processes measure the network on this node: one per GPU that trains."""
    return facts.processes if facts.gpus else 1


def _lead(leader: Leader, own: Facts) -> None:
    rendezvous, nodes = leader.rendezvous, leader.nodes
    rendezvous.post(_FACTS, own.model_dump_json())
    leader.wait_for_all()
    found = [
        Facts.model_validate_json(_wait_for(rendezvous, _FACTS, r)) for r in range(nodes.count)
    ]
    rows = compare(found)
    if not _failures(found, rows):
        rendezvous.post(_GO, "")
        _post_speed(rendezvous, own)
        speeds = [_wait_for(rendezvous, _SPEED, rank) for rank in range(nodes.count)]
        rows["all-reduce"] = [Finding(**json.loads(speed)) for speed in speeds]
    _report(found, rows)


def _follow(rendezvous: Rendezvous, own: Facts) -> None:
    rendezvous.wait_for_leader()
    rendezvous.join()
    with rendezvous.heartbeat():
        rendezvous.post(_FACTS, own.model_dump_json())
        measured = False
        while (ended := rendezvous.ended()) is None:
            rendezvous.check_alive(0)
            if not measured and rendezvous.posted(_GO, 0) is not None:
                measured = True
                _post_speed(rendezvous, own)
            time.sleep(POLL_SECONDS / 5)
    status, message = ended
    if status:
        raise PreflightFailed(message)
    say(f"preflight: node {rendezvous.nodes.rank} of {rendezvous.nodes.count}: {message}")


def _post_speed(rendezvous: Rendezvous, own: Facts) -> None:
    finding = measure(rendezvous.nodes, _processes(own))
    rendezvous.post(_SPEED, json.dumps(asdict(finding)))


def _wait_for(rendezvous: Rendezvous, what: str, rank: int) -> str:
    while (text := rendezvous.posted(what, rank)) is None:
        if rank != rendezvous.nodes.rank:
            rendezvous.check_alive(rank)
        time.sleep(POLL_SECONDS / 5)
    return text


def _report(nodes: list[Facts], rows: dict[str, list[Finding]]) -> None:
    """Print the table. Raises `PreflightFailed` with the failures of all nodes."""
    print(table([_name(node) for node in nodes], rows), flush=True)
    for name, found in rows.items():
        for node, finding in zip(nodes, found, strict=True):
            if finding.state == "warning" and finding.advice:
                warn(f"{_name(node)}: {name}: {finding.text}. {finding.advice}")
    if failures := _failures(nodes, rows):
        raise PreflightFailed(f"preflight failed:\n{failures}")


def _failures(nodes: list[Facts], rows: dict[str, list[Finding]]) -> str:
    """A line per failed check, with its node."""
    return "\n".join(
        f"  {_name(node)}: {name}: {finding.text}"
        for name, found in rows.items()
        for node, finding in zip(nodes, found, strict=True)
        if finding.state == "failed"
    )


def _name(node: Facts) -> str:
    return f"node {node.rank} ({node.host})"
