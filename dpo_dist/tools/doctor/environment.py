"""Checks of the environment: hardware, limits, directories, variables. Keys are never shown."""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from dpo_dist.system import ranks
from dpo_dist.system.console import counted
from dpo_dist.system.machine import GIB, available_memory, free_disk, gpus, has_cuda
from dpo_dist.tools.doctor.findings import Finding

_LONGEST_TMPDIR = 70  # of at most 107 bytes of a socket's path, vLLM's own name takes 37
_STALE_SECONDS = 600


def devices() -> Finding:
    names = [f"{g.name} ({g.free / GIB:.0f} of {g.total / GIB:.0f} GiB free)" for g in gpus()]
    if not names:
        return Finding("ok", "no GPU: everything runs on the CPU")
    return Finding("ok", f"{len(names)}: {', '.join(names)}")


def memory() -> Finding:
    cores = counted(os.cpu_count() or 1, "core")
    return Finding("ok", f"{available_memory() / GIB:.1f} GiB available, {cores}")


def shared_memory() -> Finding:
    """`/dev/shm`, where the processes of one machine exchange tensors."""
    path = Path("/dev/shm")
    size = shutil.disk_usage(path).total if path.is_dir() else 0
    if size >= GIB:
        return Finding("ok", f"{size / GIB:.1f} GiB")
    return Finding(
        "failed" if len(gpus()) > 1 else "warning",
        f"{size / 2**20:.0f} MiB: too little for several processes",
        "In a container: --shm-size=16g, or a memory volume at /dev/shm",
    )


def disk(folder: Path) -> Finding:
    free = free_disk(folder)
    text = f"{free / GIB:.0f} GiB free in {folder.resolve()}"
    if free >= 10 * GIB:
        return Finding("ok", text)
    return Finding("warning", text, "Models and checkpoints need more")


def model_cache() -> Finding:
    folder = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    offline = ", offline" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
    return Finding("ok", f"{folder}{offline}, {free_disk(folder) / GIB:.0f} GiB free")


def key_variables(names: Sequence[str]) -> Finding:
    states = [f"{name} {'set' if os.environ.get(name) else 'not set'}" for name in names]
    return Finding("ok", ", ".join(states))


def open_files() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= 4096:
        return Finding("ok", "unlimited" if soft == resource.RLIM_INFINITY else str(soft))
    return Finding("warning", f"{soft}: too few for data loaders and servers", "ulimit -n 65536")


def locked_memory() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY or not gpus():
        return Finding("ok", "unlimited" if soft == resource.RLIM_INFINITY else f"{soft} bytes")
    return Finding("warning", f"{soft} bytes: InfiniBand needs more", "ulimit -l unlimited")


def launcher_variables() -> Finding:
    found = ranks.launcher_variables()
    if not found:
        return Finding("ok", "none")
    return Finding(
        "failed" if os.environ.get("RANK", "0") != "0" else "warning",
        f"set by another launcher: {', '.join(found)}",
        "Start `dpo-dist` outside torchrun and accelerate (it starts them itself), and unset these",
    )


def deepspeed_accelerator() -> Finding:
    value = os.environ.get("DS_ACCELERATOR")
    if value == "cpu" and gpus():
        return Finding("failed", "DS_ACCELERATOR is cpu on a machine with GPUs", "Unset it")
    return Finding("ok", value or "not set")


def visible_devices() -> Finding:
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value == "" and has_cuda():
        return Finding("failed", "is empty: no GPU will be used", "Unset it")
    return Finding("ok", "not set" if value is None else value or "empty")


def temporary_folder() -> Finding:
    folder = tempfile.gettempdir()
    if not os.access(folder, os.W_OK):
        return Finding("failed", f"{folder} is not writable", "Set TMPDIR")
    if len(folder) > _LONGEST_TMPDIR:
        text = f"{folder}: the path is too long for a socket"
        return Finding("failed", text, "Set a shorter TMPDIR")
    return Finding("ok", f"{folder}, {free_disk(Path(folder)) / GIB:.0f} GiB free")


def extension_locks() -> Finding:
    """Locks left by killed compilations. Later compilations would wait for them forever."""
    default = Path("~/.cache/torch_extensions").expanduser()
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR", default))
    stale = [
        str(path)
        for path in folder.glob("**/lock")
        if time.time() - path.stat().st_mtime > _STALE_SECONDS
    ]
    if not stale:
        return Finding("ok", "none")
    advice = "If no compilation is running, remove it: training would wait for it forever"
    return Finding("failed", ", ".join(stale), advice)


def compiler() -> Finding:
    found = shutil.which("g++") or shutil.which("c++")
    if found:
        return Finding("ok", found)
    advice = "Install g++: DeepSpeed and vLLM compile extensions"
    return Finding("warning", "no C++ compiler", advice)


def file_locks(folder: Path) -> Finding:
    """Whether the folder's file system supports the locks that keep two runs apart."""
    while not folder.exists():
        folder = folder.resolve().parent
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except PermissionError:
        return Finding("failed", f"{folder} is not writable", "Set run.output_dir")
    except OSError as error:
        advice = "On Lustre: mount with the option `flock`"
        return Finding("failed", f"{folder} does not support file locks ({error.strerror})", advice)
    return Finding("ok", f"supported in {folder}")
