"""Comparison of all nodes' facts: differences between nodes, and missing resources."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dpo_dist.system.console import counted
from dpo_dist.system.machine import GIB
from dpo_dist.tools.doctor.facts import Facts
from dpo_dist.tools.doctor.findings import Finding

_IDLE_SHARE = 0.1  # of a GPU's memory: more in use means that another process uses the GPU


def compare(nodes: Sequence[Facts]) -> dict[str, list[Finding]]:
    """Every check's findings, one per node. The other nodes are compared with node 0."""
    first = nodes[0]
    checks: dict[str, Callable[[Facts], Finding]] = {
        "configuration": lambda node: (
            Finding("failed", "; ".join(node.problems)) if node.problems else Finding("ok", "ok")
        ),
        "versions": lambda node: _versions(node, first),
        "run file": lambda node: _run_file(node, first),
        "model": lambda node: _same_model(node.model, first.model, "base model"),
        "SFT model": lambda node: _same_model(node.sft, first.sft, "SFT model"),
        "devices": lambda node: _devices(node, first),
        "memory": _memory,
        "CPU memory": _host_memory,
        "disk": _disk,
        "RDMA": lambda node: node.rdma,
    }
    if not any(node.sft for node in nodes):
        del checks["SFT model"]
    if not any(node.gpus for node in nodes):
        del checks["CPU memory"]  # `memory` is the CPU's
    return {name: [check(node) for node in nodes] for name, check in checks.items()}


def _versions(node: Facts, first: Facts) -> Finding:
    differ = [
        f"{name} {node.versions.get(name, 'is missing')} (node 0: {first.versions.get(name, '-')})"
        for name in sorted(node.versions.keys() | first.versions.keys())
        if node.versions.get(name) != first.versions.get(name)
    ]
    if differ:
        return Finding("failed", ", ".join(differ))
    return Finding("ok", f"torch {node.versions.get('torch', '-')}")


def _run_file(node: Facts, first: Facts) -> Finding:
    if node.run == first.run:
        return Finding("ok", node.run[:12])
    return Finding("failed", "the run file or a --set option differs from node 0's")


def _same_model(own: str, first: str, name: str) -> Finding:
    """Shows the commit of a Hub id, or the digest of local files."""
    if own == first:
        return Finding("ok", own.rpartition(" ")[2][:12])
    hub = own.startswith("hub:") and first.startswith("hub:")
    difference = f"{own} (node 0: {first})" if hub else "its files differ from node 0's"
    return Finding("failed", f"the {name}: {difference}")


def _devices(node: Facts, first: Facts) -> Finding:
    count = len(node.gpus)
    devices = f"{count} x {node.gpus[0].name}" if node.gpus else "no GPU"
    processes = counted(node.processes, "process", "processes")
    if count < node.processes and (count or node.wants_gpus or first.gpus):
        return Finding("failed", f"{devices} for {processes}")
    if node.gpus and first.gpus and node.gpus[0].name != first.gpus[0].name:
        return Finding("warning", f"{devices}; node 0 has {first.gpus[0].name}")
    return Finding("ok", f"{devices}, {processes}")


def _memory(node: Facts) -> Finding:
    needed = f"{node.memory_needed / GIB:.1f} GiB planned per process"
    if not node.gpus:
        text = f"{node.memory / GIB:.1f} GiB free, {needed}"
        enough = node.memory >= node.memory_needed * node.processes
        return Finding("ok" if enough else "failed", text)
    gpu = min(node.gpus, key=lambda gpu: gpu.free)
    text = f"GPU {gpu.index}: {gpu.free / GIB:.1f} of {gpu.total / GIB:.1f} GiB free, {needed}"
    if gpu.free < node.memory_needed:
        return Finding("failed", f"{text}; {_alternatives(node)}")
    if gpu.free < (1 - _IDLE_SHARE) * gpu.total:
        return Finding("warning", f"{text}; in use by another process")
    return Finding("ok", text)


def _host_memory(node: Facts) -> Finding:
    text = f"{node.memory / GIB:.0f} GiB free, {node.host_needed / GIB:.0f} GiB planned"
    if not node.gpus or node.memory >= node.host_needed:
        return Finding("ok", text)
    return Finding("failed", f"{text} to load, train and save; {_alternatives(node)}")


def _alternatives(node: Facts) -> str:
    if not node.alternatives:
        return "neither more sharding, nor another method, nor more nodes would fit"
    return f"this would fit: {'; or '.join(node.alternatives)}"


def _disk(node: Facts) -> Finding:
    text = f"{node.disk / GIB:.0f} GiB free, {node.disk_needed / GIB:.0f} GiB needed"
    return Finding("ok" if node.disk >= node.disk_needed else "failed", text)
