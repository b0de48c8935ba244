"""Settings of a training process, however it was started.

A launcher's environment is the user's or accelerate's; these settings are made by the process
itself, so they hold under `accelerate launch` and torchrun as under `dpo-dist train`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Any

from dpo_dist.system.machine import has_cuda, usable_cores, wait_passively
from dpo_dist.system.processes import die_with_parent
from dpo_dist.training.accelerate_command import interface_to

# mallopt's parameters (malloc.h)
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def prepare() -> None:
    """Make the settings that libraries read once, when they are loaded: call this before torch is
    imported. A variable that the user has set stays."""
    _share_cores()
    _name_interface()
    if has_cuda():
        # The length of the rows changes with every micro-batch. Fixed segments of memory would
        # fragment until none fits. The second name is older.
        if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
            os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        keep_freed_memory()


def _share_cores() -> None:
    """Give each process of this machine its share of the cores, which DeepSpeed's Adam on the CPU
    and everything on a machine without GPUs needs. Launchers set one thread where the user sets no
    number. If waiting threads spin on a busy machine, a small step takes three times as long."""
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        threads = max(1, usable_cores() // processes)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        # A preloaded OpenMP (LD_PRELOAD, which vLLM sets on a CPU) has read the variable already.
        set_threads = getattr(ctypes.CDLL(None), "omp_set_num_threads", None)
        if set_threads is not None:
            set_threads(threads)
    wait_passively()


def _name_interface() -> None:
    """Let gloo use the network interface to node 0. By default it resolves the host name,
    which is often a loopback address."""
    several = os.environ.get("WORLD_SIZE", "1") != os.environ.get("LOCAL_WORLD_SIZE", "1")
    if several and (interface := interface_to(os.environ.get("MASTER_ADDR", ""))):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def keep_freed_memory() -> None:
    """Let glibc reuse freed memory. By default it returns every large buffer to the kernel, and the
    next allocation causes page faults: a training step on the CPU takes about twice as long."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)  # never


def take_device() -> None:
    """Make this rank's GPU the current one. This has to be the process's first call into CUDA:
    whatever comes before it opens a context on the first GPU, which takes 0.5 GB of its memory for
    every other rank, and fails if the GPU admits only one process."""
    import torch

    if torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", "0"))
        # As accelerate does: each rank may see only its own GPU.
        torch.cuda.set_device(local % torch.cuda.device_count())


def shield_loaders() -> None:
    """Let the workers of data loaders end with this process, and only with it.

    A scheduler may send SIGTERM to all processes of a job. torch's workers end then, and the step
    that this process wants to complete and save fails. They would outlive a killed process by
    seconds, and as its forks keep its GPU busy.
    """
    from torch.utils.data._utils import signal_handling

    loader: Any = signal_handling  # torch has no public place for this
    torch_handlers = loader._set_worker_signal_handlers

    def set_handlers() -> None:  # in the worker, before its first batch
        torch_handlers()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        die_with_parent()

    loader._set_worker_signal_handlers = set_handlers
