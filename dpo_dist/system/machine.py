"""What this machine has: GPUs, memory, disk. Nothing heavy is imported to find out."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

from pydantic import BaseModel

GIB = 2**30


class Gpu(BaseModel):
    """A GPU that this process may use; memory in bytes."""

    index: str
    name: str
    total: int
    free: int
    driver: str


def gpus() -> list[Gpu]:
    """The GPUs that `CUDA_VISIBLE_DEVICES` leaves, as the driver's own tool counts them."""
    return visible(_asked_driver(), os.environ.get("CUDA_VISIBLE_DEVICES"))


@cache
def _asked_driver() -> str:
    """Asked once: without its persistence mode the driver takes seconds for each answer."""
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
    """The GPUs in nvidia-smi's answer that are `allowed`: indices or UUIDs, all where None."""
    wanted = None if allowed is None else [word.strip() for word in allowed.split(",")]
    found = []
    for line in answer.strip().splitlines():
        index, uuid, name, total, free, driver = (part.strip() for part in line.split(","))
        if wanted is None or index in wanted or any(w and uuid.startswith(w) for w in wanted):
            found.append(
                Gpu(
                    index=index,
                    name=name,
                    total=int(total) * 2**20,
                    free=int(free) * 2**20,
                    driver=driver,
                )
            )
    return found


def visible_gpus() -> list[str]:
    """What CUDA would see, as `CUDA_VISIBLE_DEVICES` names it, without starting CUDA here."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    return [gpu.index for gpu in gpus()]


def has_cuda() -> bool:
    """Whether there is an NVIDIA driver on this machine."""
    # Asking torch would cost seconds of import in a process that only waits.
    return Path("/proc/driver/nvidia/version").exists()


def available_memory() -> int:
    """Bytes that can be allocated without swapping."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo has no MemAvailable line")


def free_disk(path: Path) -> int:
    """Bytes that can be written below a path that may not exist yet."""
    path = path.resolve()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
