"""How fast the nodes add up a tensor together, measured by a process on each of them:

    python -m dpo_dist.checks.bandwidth ADDRESS PORT RANK NODES

prints megabytes a second: the bus bandwidth, which is comparable between numbers of nodes, and
what a network card is rated in (https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import timedelta

from dpo_dist import ranks
from dpo_dist.checks.findings import Finding
from dpo_dist.ranks import Nodes
from dpo_dist.training.accelerate_command import interface_to
from dpo_dist.training.worker import end_process

MEGABYTES = 32
REPEATS = 5
LIMIT_SECONDS = 60
SLOW = 100.0  # MB/s: the 8 GB of an 8 B model's gradients would take minutes a step


def measure_with_others(nodes: Nodes) -> Finding:
    """Measure in a process of its own, that can be ended where the others do not answer."""
    ranks.strip_launcher_variables()
    environment = dict(os.environ)
    if interface := interface_to(nodes.address):
        environment.setdefault("GLOO_SOCKET_IFNAME", interface)
    words = [nodes.address, str(nodes.port), str(nodes.rank), str(nodes.count)]
    command = [sys.executable, "-m", "dpo_dist.checks.bandwidth", *words]
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS * 2,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finding("failed", f"the nodes do not reach each other within {LIMIT_SECONDS * 2} s")
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        return Finding("failed", f"the nodes cannot add up a tensor together: {last}")
    backend, speed = done.stdout.split()
    return judged(backend, float(speed))


def judged(backend: str, speed: float) -> Finding:
    """The finding for a speed in MB/s."""
    text = f"{speed:.0f} MB/s ({backend})"
    if speed < SLOW:
        return Finding(
            "warning", text, "Slow: is it the right network? (NCCL_SOCKET_IFNAME, NCCL_IB_HCA)"
        )
    return Finding("ok", text)


def main(address: str, port: str, rank: str, nodes: str) -> None:
    import torch
    import torch.distributed

    cuda = torch.cuda.is_available()
    backend = "nccl" if cuda else "gloo"
    count = int(nodes)
    torch.distributed.init_process_group(
        backend,
        init_method=f"tcp://{address}:{port}",
        rank=int(rank),
        world_size=count,
        timeout=timedelta(seconds=LIMIT_SECONDS),
    )
    tensor = torch.ones(MEGABYTES * 250_000, device="cuda" if cuda else "cpu")
    best = float("inf")
    for _ in range(1 + REPEATS):  # the first makes the connections
        started = time.perf_counter()
        torch.distributed.all_reduce(tensor)
        if cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    print(backend, 2 * (count - 1) / count * MEGABYTES / best, flush=True)
    torch.distributed.barrier()
    end_process(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
