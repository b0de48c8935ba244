"""The command line and the environment of `accelerate launch` on this machine, and whether its
configuration fits the machines and the run file."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
from pathlib import Path
from typing import Any

from dpo_dist.config import Optimization, Train
from dpo_dist.errors import ConfigError
from dpo_dist.system import ranks
from dpo_dist.system.console import TERMINAL
from dpo_dist.system.machine import has_cuda
from dpo_dist.system.ranks import Nodes
from dpo_dist.training.job import machines, num_processes, read_accelerate_config, uses_fsdp

# glibc hands every large buffer back to the kernel when it is freed and faults it in again at
# the next allocation; keeping them makes a CPU training step about twice as fast.
CPU_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "17179869184"}
# Threads that wait for each other sleep: spinning costs nothing on an idle machine, and keeps the
# one that is waited for from its core on a busy one (three times the time of a small step).
CPU_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}


def launcher_command(job: Path, accelerate_config: Path, nodes: Nodes | None) -> list[str]:
    """The command line that trains a job on this machine's processes."""
    return [
        *(sys.executable, "-m", "dpo_dist.training.launcher"),
        *("--config_file", str(accelerate_config)),
        *(_node_options(nodes) if nodes else []),
        *("-m", "dpo_dist.training.worker", str(job)),
    ]


def _node_options(nodes: Nodes) -> list[str]:
    """What `accelerate launch` has to know of the other machines.

    On the command line, because it ignores `rdzv_backend` in its file. `static` gives node 0
    the ranks from 0 on and asks for nobody's host name; c10d would give them to whoever comes
    first. Nobody is restarted in place: the same command, started again, resumes.
    """
    return [
        *("--num_machines", str(nodes.count), "--machine_rank", str(nodes.rank)),
        *("--main_process_ip", nodes.address, "--main_process_port", str(nodes.port)),
        *("--rdzv_backend", "static", "--rdzv_conf", f"timeout={nodes.join_seconds:.0f}"),
        *("--max_restarts", "0"),
        # Not pdsh, DeepSpeed's default, which needs ssh between the machines and writes the
        # environment, keys included, to a file. It wins over what the file says.
        *("--deepspeed_multinode_launcher", "standard"),
    ]


def launcher_environment(accelerate_config: Path, nodes: Nodes | None) -> dict[str, str]:
    """The environment of the launcher and its workers."""
    ranks.strip_launcher_variables()
    # SIGTERM may come in the middle of a long step, and saving takes its time; torch's launcher
    # would kill the workers after 30 s. Whoever sent the signal sets the limit.
    environment = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "1800", **os.environ}
    if sys.stderr.isatty():
        environment[TERMINAL] = "1"
    if not has_cuda():
        here = num_processes(accelerate_config) // machines(accelerate_config)
        threads = max(1, (os.cpu_count() or 1) // here)
        environment |= {"OMP_NUM_THREADS": str(threads), "DS_ACCELERATOR": "cpu"}
        environment |= {**CPU_ALLOCATOR, **CPU_THREADS}
    if nodes and (interface := interface_to(nodes.address)):
        # gloo would look its own address up by the host's name, which often is a loopback's.
        environment.setdefault("GLOO_SOCKET_IFNAME", interface)
    return environment


def check_launch(settings: Optimization, nodes: Nodes | None) -> None:
    """Raises `ConfigError` where the accelerate configuration does not fit the machines given or
    the run file, or would train otherwise than it says."""
    path = settings.accelerate_config
    values = read_accelerate_config(path)
    _check_machines(path, nodes)
    precision = values.get("mixed_precision") or "no"
    if precision not in ("no", "bf16"):
        raise ConfigError(
            f"accelerate_config: {path}: mixed_precision {precision}: must be no or bf16"
        )
    if precision == "bf16" and not settings.bf16:
        raise ConfigError(
            f"accelerate_config: {path} says mixed_precision bf16, but `bf16` is false: "
            "accelerate would still train in bfloat16. Change one of them."
        )
    if uses_fsdp(path):
        _check_fsdp(path, settings, values)


def _check_fsdp(path: Path, settings: Optimization, values: dict[str, Any]) -> None:
    if (values.get("fsdp_config") or {}).get("fsdp_version") != 2:
        raise ConfigError(f"accelerate_config: {path}: fsdp_version must be 2")
    if not has_cuda():
        raise ConfigError(
            f"accelerate_config: {path} shards with FSDP, which accelerate silently leaves out on "
            "a CPU. Use cpu_zero2.yaml or cpu_zero3.yaml."
        )
    if isinstance(settings, Train) and settings.select == "best":
        raise ConfigError(
            "train.select: best takes the weights from a checkpoint, and FSDP checkpoints are not "
            "in the model's format. Use `last`, or a configuration with DeepSpeed."
        )


def _check_machines(path: Path, nodes: Nodes | None) -> None:
    configured, processes = machines(path), num_processes(path)
    given = nodes.count if nodes else 1
    if configured != given:
        raise ConfigError(
            f"accelerate_config: {path} is for num_machines {configured}, but "
            + (
                f"--nodes is {given}. They must be equal."
                if nodes
                else "only one was started. Run the same command on each, with --nodes and its "
                "companion options (docs/scaling.md)."
            )
        )
    if processes % given:
        raise ConfigError(
            f"accelerate_config: {path}: num_processes {processes} counts all machines together "
            f"and is not divisible by the {given} nodes"
        )


def check_address(nodes: Nodes) -> None:
    """Raises `ConfigError` where node 0's address is unknown; on node 0 also where it is another
    machine's, and where the port is taken."""
    try:
        found = socket.getaddrinfo(nodes.address, nodes.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"--main-address {nodes.address}: cannot resolve it ({error})") from None
    if not nodes.leads:
        return
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen()
        except OSError as error:
            raise ConfigError(
                f"--main-address {nodes.address} --main-port {nodes.port}: node 0 cannot listen "
                f"there ({error.strerror}). It must be an address of node 0 and a free port."
            ) from None


def interface_to(address: str) -> str | None:
    """The network interface that traffic to an address leaves by; None where it cannot be told."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # UDP: nothing is sent
            own = probe.getsockname()[0]
            return next(
                (name for _, name in socket.if_nameindex() if _ipv4(probe, name) == own), None
            )
    except OSError:
        return None


def _ipv4(probe: socket.socket, interface: str) -> str | None:
    siocgifaddr = 0x8915  # linux/sockios.h
    request = struct.pack("256s", interface.encode()[:15])
    try:
        return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), siocgifaddr, request)[20:24])
    except OSError:
        return None  # it has no IPv4 address
