"""Whether NCCL reaches other machines through InfiniBand or RoCE, or falls back to sockets, which
it does without a message (https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html)."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from dpo_dist.system.machine import gpus
from dpo_dist.tools.doctor.findings import Finding

_VERBS = "libibverbs.so.1"
_PLUGIN = "libnccl-net.so"  # replaces NCCL's own transports, e.g. on AWS


def transport(*, several: bool, root: Path = Path("/")) -> Finding:
    """The network devices that NCCL uses. Sockets beside an active InfiniBand port are a failure
    if `several` machines train together. Beside RoCE, which needs a set-up, they may be intended.
    """
    layers = {
        port.parents[1].name: _read(port / "link_layer")
        for port in sorted((root / "sys/class/infiniband").glob("*/ports/*"))
        if _read(port / "state").endswith("ACTIVE")
    }
    if not layers or not gpus():
        return Finding("ok", ", ".join(layers) or "no active device")
    problem = _why_sockets(root)
    if problem is None:
        return Finding("ok", ", ".join(layers))
    cause, advice = problem
    fails = several and "InfiniBand" in layers.values()
    text = f"NCCL would use sockets beside {', '.join(layers)}: {cause}"
    return Finding("failed" if fails else "warning", text, advice)


def _why_sockets(root: Path) -> tuple[str, str] | None:
    """(cause, advice); None if nothing is in the way of RDMA."""
    network = os.environ.get("NCCL_NET", "")
    if network.lower() == "socket":
        return f"NCCL_NET is {network}", "Unset NCCL_NET"
    plugin = os.environ.get("NCCL_NET_PLUGIN", "")
    if plugin.lower() != "none" and (plugin or _loads(_PLUGIN)):
        return None
    if os.environ.get("NCCL_IB_DISABLE", "0") not in ("", "0"):
        return "NCCL_IB_DISABLE is set", "Unset NCCL_IB_DISABLE"
    if not _loads(_VERBS):
        return f"{_VERBS} cannot be loaded", "Install libibverbs1, ibverbs-providers and librdmacm1"
    devices = (root / "dev/infiniband").glob("uverbs*")
    if not any(os.access(device, os.R_OK | os.W_OK) for device in devices):
        advice = "Give the container the devices and the right to lock memory: docker run "
        advice += "--device=/dev/infiniband --cap-add=IPC_LOCK; on Kubernetes an RDMA device plugin"
        return "/dev/infiniband is not accessible", advice
    return None


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
