"""The bandwidth of an all-reduce with one process per GPU (or one per node without GPUs).

    python -m dpo_dist.tools.doctor.bandwidth ADDRESS PORT RANK WORLD_SIZE LOCAL_RANK

prints the bus bandwidth in MB/s. It does not depend on the number of processes, and network cards
are rated in it (https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from dpo_dist.estimates.hardware import Cluster, read_gpus
from dpo_dist.system import ranks
from dpo_dist.system.processes import Process
from dpo_dist.system.ranks import Nodes
from dpo_dist.tools.doctor.findings import Finding
from dpo_dist.training.accelerate_command import interface_to
from dpo_dist.training.worker import end_process

MEGABYTES = {"nccl": 256, "gloo": 32}
REPEATS = 5
LIMIT_SECONDS = 60
SLOW = 0.1  # of the bandwidth that `dpo-dist plan` assumes


def measure(nodes: Nodes | None, here: int) -> Finding:
    """Measure with `here` processes on this machine and on each other node. They are child
    processes, so that they can be killed if another node does not answer."""
    ranks.strip_launcher_variables()
    environment = dict(os.environ)
    if nodes is None:
        address, port, first, count = "127.0.0.1", _free_port(), 0, here
    else:
        address, port = nodes.address, nodes.port
        first, count = nodes.rank * here, nodes.count * here
        if interface := interface_to(address):
            environment.setdefault("GLOO_SOCKET_IFNAME", interface)
    command = [sys.executable, "-m", "dpo_dist.tools.doctor.bandwidth", address, str(port)]
    with TemporaryDirectory() as folder:
        files = [Path(folder) / str(local_rank) for local_rank in range(here)]
        processes = []
        for rank, file in enumerate(files):
            words = [*command, str(first + rank), str(count), str(rank)]
            with file.open("wb") as log:
                processes.append(
                    subprocess.Popen(words, env=environment, stdout=log, stderr=subprocess.STDOUT)
                )
        in_time = _wait(processes)
        texts = [file.read_text(encoding="utf-8", errors="replace").strip() for file in files]
    members = "the nodes" if nodes else "the GPUs"
    if not in_time:
        limit = LIMIT_SECONDS * 2
        return Finding("failed", f"{members} could not reach each other within {limit} s")
    if any(process.returncode for process in processes):
        # Killed processes have a negative exit code: they only waited for the one that failed.
        failed = (t for p, t in zip(processes, texts, strict=True) if t and (p.returncode or 0) > 0)
        last = next(failed, "no message").splitlines()[-1]
        return Finding("failed", f"an all-reduce between {members} failed: {last}")
    answer = next(line for line in texts[0].splitlines() if line.startswith(tuple(MEGABYTES)))
    backend, speed = answer.split()
    return assess(backend, float(speed), one_node=nodes is None)


def assess(backend: str, speed: float, *, one_node: bool = False) -> Finding:
    """The finding for a bandwidth in MB/s. On GPUs it is compared with the bandwidth that
    `dpo-dist plan` assumes: the network's between nodes, the slowest known GPU link's in one node.
    """
    text = f"{speed:.0f} MB/s ({backend})"
    gpus = read_gpus().values()
    planned = min(gpu.link for gpu in gpus) if one_node else Cluster.network
    if backend != "nccl" or speed >= SLOW * planned / 1e6:
        return Finding("ok", text)
    advice = (
        "Do the GPUs reach each other directly? (nvidia-smi topo -m, NCCL_P2P_DISABLE)"
        if one_node
        else "Is this the right network? (NCCL_SOCKET_IFNAME, NCCL_IB_HCA)"
    )
    text += f"; dpo-dist plan assumes {planned / 1e6:.0f} MB/s"
    return Finding("warning", text, f"Slow. {advice}")


def _wait(processes: list[Process]) -> bool:
    """Whether the processes ended in time. Kills the rest after a failure or the time limit."""
    deadline = time.monotonic() + LIMIT_SECONDS * 2
    try:
        while any(process.poll() is None for process in processes):
            if any(process.returncode for process in processes):
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(address: str, port: str, rank: str, world_size: str, local_rank: str) -> None:
    import torch
    import torch.distributed

    cuda = torch.cuda.is_available()
    backend = "nccl" if cuda else "gloo"
    count = int(world_size)
    if cuda:
        torch.cuda.set_device(int(local_rank))
    torch.distributed.init_process_group(
        backend,
        init_method=f"tcp://{address}:{port}",
        rank=int(rank),
        world_size=count,
        timeout=timedelta(seconds=LIMIT_SECONDS),
    )
    megabytes = MEGABYTES[backend]
    tensor = torch.ones(megabytes * 250_000, device="cuda" if cuda else "cpu")
    best = float("inf")
    for _ in range(1 + REPEATS):  # the first one also connects the processes
        started = time.perf_counter()
        torch.distributed.all_reduce(tensor)
        if cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    print(backend, 2 * (count - 1) / count * megabytes / best, flush=True)
    torch.distributed.barrier()
    end_process(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
