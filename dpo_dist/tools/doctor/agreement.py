"""The facts of all nodes side by side: what differs, and what a node lacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dpo_dist.system.console import counted
from dpo_dist.system.machine import GIB
from dpo_dist.tools.doctor.facts import Facts
from dpo_dist.tools.doctor.findings import Finding

_OTHERS_MAY_USE = 0.1  # of a GPU's memory, before somebody else is said to be on it


def compare(nodes: Sequence[Facts]) -> dict[str, list[Finding]]:
    """What each check has found on each node; node 0 is what the others are measured by."""
    first = nodes[0]
    checks: dict[str, Callable[[Facts], Finding]] = {
        "configuration": _configuration,
        "versions": lambda node: _versions(node, first),
        "run file": lambda node: _same(
            node.run, first.run, "the run file or a --set option differs from node 0's"
        ),
        "model": lambda node: _same_model(node.model, first.model, "base model"),
        "SFT model": lambda node: _same_model(node.sft, first.sft, "SFT model"),
        "devices": lambda node: _devices(node, first),
        "memory": _memory,
        "disk": _disk,
    }
    if not any(node.sft for node in nodes):
        del checks["SFT model"]
    return {name: [check(node) for node in nodes] for name, check in checks.items()}


def _configuration(node: Facts) -> Finding:
    return Finding("failed", "; ".join(node.problems)) if node.problems else Finding("ok", "ok")


def _versions(node: Facts, first: Facts) -> Finding:
    differ = [
        f"{name} {node.versions.get(name, 'is missing')} (node 0: {first.versions.get(name, '-')})"
        for name in sorted(node.versions.keys() | first.versions.keys())
        if node.versions.get(name) != first.versions.get(name)
    ]
    if differ:
        return Finding("failed", ", ".join(differ))
    return Finding("ok", f"torch {node.versions.get('torch', '-')}")


def _same(own: str, wanted: str, otherwise: str) -> Finding:
    return Finding("ok", own[:12]) if own == wanted else Finding("failed", otherwise)


def _same_model(own: str, wanted: str, which: str) -> Finding:
    """Of Hub ids the commit is shown, of files their digest."""
    if own == wanted:
        return Finding("ok", own.rpartition(" ")[2][:12])
    hub = own.startswith("hub:") and wanted.startswith("hub:")
    what = f"{own} (node 0: {wanted})" if hub else "its files are others than node 0's"
    return Finding("failed", f"the {which}: {what}")


def _devices(node: Facts, first: Facts) -> Finding:
    found = len(node.gpus)
    what = f"{found} x {node.gpus[0].name}" if node.gpus else "no GPU"
    processes = counted(node.processes, "process", "processes")
    if found < node.processes and (found or node.wants_gpus or first.gpus):
        return Finding("failed", f"{what} for {processes}")
    if node.gpus and first.gpus and node.gpus[0].name != first.gpus[0].name:
        return Finding("warning", f"{what}; node 0 has {first.gpus[0].name}")
    return Finding("ok", f"{what}, {processes}")


def _memory(node: Facts) -> Finding:
    needed = f"{node.memory_needed / GIB:.1f} GiB planned per process"
    if not node.gpus:
        free = node.memory
        text = f"{free / GIB:.1f} GiB free, {needed}"
        short = free < node.memory_needed * node.processes
        return Finding("failed" if short else "ok", text)
    least = min(node.gpus, key=lambda gpu: gpu.free)
    text = (
        f"GPU {least.index}: {least.free / GIB:.1f} of {least.total / GIB:.1f} GiB free, {needed}"
    )
    if least.free < node.memory_needed:
        return Finding("failed", text)
    if least.free < (1 - _OTHERS_MAY_USE) * least.total:
        return Finding("warning", f"{text}; in use by another process")
    return Finding("ok", text)


def _disk(node: Facts) -> Finding:
    text = f"{node.disk / GIB:.0f} GiB free, {node.disk_needed / GIB:.0f} GiB needed"
    return Finding("ok" if node.disk >= node.disk_needed else "failed", text)
