"""The GPUs, memory and disk of this machine, found without importing heavy packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from pydantic import BaseModel

GIB = 2**30
_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")


class Gpu(BaseModel):
    """A GPU that this process may use; memory in bytes."""

    index: str
    name: str
    total: int
    free: int
    driver: str


def gpus() -> list[Gpu]:
    """The GPUs that `CUDA_VISIBLE_DEVICES` allows, as nvidia-smi numbers them."""
    return visible(_nvidia_smi(), os.environ.get("CUDA_VISIBLE_DEVICES"))


@cache
def _nvidia_smi() -> str:
    """The output of nvidia-smi. It is cached, since a driver without persistence mode takes seconds
    for each call."""
    query = "--query-gpu=index,uuid,name,memory.total,memory.free,driver_version"
    try:
        answer = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout


def visible(answer: str, allowed: str | None) -> list[Gpu]:
    """The GPUs in the output of nvidia-smi that are `allowed` (indices or UUIDs; None: all)."""
    wanted = None if allowed is None else [word.strip() for word in allowed.split(",")]
    found = []
    for line in answer.strip().splitlines():
        index, uuid, name, total, free, driver = (part.strip() for part in line.split(","))
        if wanted is None or index in wanted or any(w and uuid.startswith(w) for w in wanted):
            total_bytes, free_bytes = int(total) * 2**20, int(free) * 2**20
            found.append(
                Gpu(index=index, name=name, total=total_bytes, free=free_bytes, driver=driver)
            )
    return found


def visible_gpus() -> list[str]:
    """The GPUs that CUDA would see, by index or UUID, without initialising CUDA."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    return [gpu.index for gpu in gpus()]


def has_cuda() -> bool:
    """Whether this machine has an NVIDIA driver. Importing torch to find out would take seconds."""
    return Path("/proc/driver/nvidia/version").exists()


def wait_passively() -> None:
    """Let waiting OpenMP threads sleep, unless the user has set something else. Spinning ones take
    cores from the threads that they wait for if the machine is busy. Call this before torch is
    imported: libgomp reads the first two variables when it is loaded, libiomp5 the third."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("KMP_BLOCKTIME", "0")


def usable_cores() -> int:
    """The CPU cores that this process may use: those that it is bound to, or fewer if its container
    has a limit (https://docs.kernel.org/admin-guide/cgroup-v2.html, `cpu.max`)."""
    bound = len(os.sched_getaffinity(0))
    try:
        quota, period = _CPU_LIMIT.read_text(encoding="ascii").split()
        return min(bound, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no control groups; the quota is `max`
        return bound


def available_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that can be allocated without swapping: the machine's, or less in a container with a
    limit (cgroup version 2)."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return min(int(line.split()[1]) * 1024, _container_memory(cgroup))
    raise RuntimeError("/proc/meminfo has no MemAvailable line")


def _container_memory(cgroup: Path) -> int:
    """Bytes below the limit of this process's container; its file cache can be dropped."""
    try:
        limit = int((cgroup / "memory.max").read_text(encoding="ascii"))
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
        lines = (cgroup / "memory.stat").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):  # no container, or `max`: no limit
        return sys.maxsize
    cache = next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
    return max(0, limit - used + cache)


def free_disk(path: Path) -> int:
    """Free bytes of the file system of a path, which need not exist yet."""
    path = path.resolve()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
