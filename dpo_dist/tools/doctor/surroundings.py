"""What surrounds a run: variables, limits, directories, keys. Values of keys are never shown."""

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
from dpo_dist.tools.doctor.findings import Finding, State

_LONGEST_TMPDIR = 70  # a socket's path holds 107 bytes, and vLLM adds a name of 37 to it
_STALE_SECONDS = 600


def devices() -> Finding:
    found = gpus()
    if not found:
        return Finding("ok", "no GPU: everything runs on the CPU")
    shown = ", ".join(
        f"{g.name} ({g.free / GIB:.0f} of {g.total / GIB:.0f} GiB free)" for g in found
    )
    return Finding("ok", f"{len(found)}: {shown}")


def memory() -> Finding:
    return Finding(
        "ok",
        f"{available_memory() / GIB:.1f} GiB available, {counted(os.cpu_count() or 1, 'core')}",
    )


def shared_memory() -> Finding:
    """`/dev/shm`, through which processes of one machine exchange tensors."""
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
    state: State = "ok" if free >= 10 * GIB else "warning"
    advice = "" if state == "ok" else "Models and checkpoints need more"
    return Finding(state, f"{free / GIB:.0f} GiB free in {folder.resolve()}", advice)


def model_cache() -> Finding:
    folder = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    offline = ", offline" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
    return Finding("ok", f"{folder}{offline}, {free_disk(folder) / GIB:.0f} GiB free")


def key_variables(names: Sequence[str]) -> Finding:
    return Finding(
        "ok", ", ".join(f"{k} {'set' if os.environ.get(k) else 'not set'}" for k in names)
    )


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
        f"left by another launcher: {', '.join(found)}",
        "Start `dpo-dist` outside torchrun and accelerate (it launches them itself) and unset "
        "these",
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
        return Finding(
            "failed", f"{folder} is too long a path for a socket", "Set a shorter TMPDIR"
        )
    return Finding("ok", f"{folder}, {free_disk(Path(folder)) / GIB:.0f} GiB free")


def extension_locks() -> Finding:
    """A compilation that was killed leaves its lock, and every later one waits for it for ever."""
    default = Path("~/.cache/torch_extensions").expanduser()
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR", default))
    stale = [
        str(path)
        for path in folder.glob("**/lock")
        if time.time() - path.stat().st_mtime > _STALE_SECONDS
    ]
    if not stale:
        return Finding("ok", "none")
    advice = "If nothing is compiling right now, remove it: training hangs on it"
    return Finding("failed", ", ".join(stale), advice)


def compiler() -> Finding:
    found = shutil.which("g++") or shutil.which("c++")
    if found:
        return Finding("ok", found)
    advice = "DeepSpeed and vLLM compile extensions: install g++"
    return Finding("warning", "no C++ compiler", advice)


def file_locks(folder: Path) -> Finding:
    """Whether two runs can keep each other out of a directory, on the file system it lies on."""
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
    return Finding("ok", f"work in {folder}")
