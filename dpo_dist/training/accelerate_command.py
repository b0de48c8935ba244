"""The command line and the environment of `accelerate launch`, and checks of its configuration
against the machines and the run file."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from dpo_dist.config import Optimization, is_quantized
from dpo_dist.errors import ConfigError, MissingDependency
from dpo_dist.system import ranks
from dpo_dist.system.console import TERMINAL
from dpo_dist.system.machine import has_cuda
from dpo_dist.system.ranks import Nodes
from dpo_dist.training.arguments import check_arguments
from dpo_dist.training.launch_shape import LaunchShape, read_accelerate_config
from dpo_dist.training.logs import given_attempt


def launcher_command(
    command: Sequence[str], accelerate_config: Path, nodes: Nodes | None
) -> list[str]:
    """The command line that starts this machine's ranks, each with the Python `command`. A single
    process that needs nothing from `accelerate launch` is started without it, which saves the
    import of torch in the launcher."""
    if nodes is None and starts_directly(accelerate_config):
        return list(command)
    python, *arguments = command
    return [
        *(python, "-m", "dpo_dist.training.launcher"),
        *("--config_file", str(accelerate_config)),
        *("--num_processes", str(LaunchShape.read(accelerate_config).processes)),
        *(_node_options(nodes) if nodes else []),
        *arguments,
    ]


# Keys of accelerate's file that say nothing to a single process, or are checked here.
_PLAIN = {"compute_environment", "debug", "distributed_type", "downcast_bf16", "machine_rank"}
_PLAIN |= {"main_training_function", "mixed_precision", "num_machines", "num_processes"}
_PLAIN |= {"rdzv_backend", "same_network", "tpu_env", "tpu_use_cluster", "tpu_use_sudo", "use_cpu"}


def starts_directly(accelerate_config: Path) -> bool:
    """Whether a training is one process that `accelerate launch` would only pass on to."""
    values = read_accelerate_config(accelerate_config)
    shape = LaunchShape.read(accelerate_config)
    return shape.one_process and shape.processes == 1 and values.keys() <= _PLAIN


def _node_options(nodes: Nodes) -> list[str]:
    """The options of `accelerate launch` for several machines: accelerate ignores `rdzv_backend` in
    its file. `static` gives node 0 the first ranks and needs no host names; `c10d` assigns ranks in
    order of arrival. No restarts: the user runs the same command again to resume."""
    return [
        *("--num_machines", str(nodes.count), "--machine_rank", str(nodes.rank)),
        *("--main_process_ip", nodes.address, "--main_process_port", str(nodes.port)),
        *("--rdzv_backend", "static", "--rdzv_conf", f"timeout={nodes.join_seconds:.0f}"),
        *("--max_restarts", "0"),
        # Overrides the file. DeepSpeed's default, pdsh, needs ssh between the machines and writes
        # the environment, including keys, to a file.
        *("--deepspeed_multinode_launcher", "standard"),
    ]


def launcher_environment(
    accelerate_config: Path, nodes: Nodes | None, logs: Path
) -> dict[str, str]:
    """The environment of the launcher and its ranks, which write their logs to a folder."""
    ranks.strip_launcher_variables()
    # After SIGTERM the step has to end and the checkpoint has to be written. torch's launcher would
    # kill the workers after 30 s; the sender of the signal should set the limit.
    environment = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "1800", **os.environ, ranks.LOGS: str(logs)}
    if sys.stderr.isatty():
        environment[TERMINAL] = "1"
    if nodes is None and starts_directly(accelerate_config):
        values = read_accelerate_config(accelerate_config)
        environment["ACCELERATE_MIXED_PRECISION"] = str(values.get("mixed_precision") or "no")
        environment["ACCELERATE_USE_CPU"] = str(bool(values.get("use_cpu")))
    return environment


def check_settings(settings: Optimization) -> None:
    """Raises `MissingDependency` without the packages that `args`, ZeRO and quantization need, and
    `ConfigError` if the trainer cannot use `args`, or if the base cannot be quantized."""
    if LaunchShape.of(settings).zero_stage and find_spec("deepspeed") is None:
        raise MissingDependency("deepspeed", "deepspeed")
    check_arguments(settings)
    if not is_quantized(settings.method):
        return
    if find_spec("bitsandbytes") is None:
        raise MissingDependency("bitsandbytes", "qlora")
    if LaunchShape.of(settings).offloads:
        raise ConfigError(
            f"accelerate_config: {settings.accelerate_file} offloads the weights, but those of "
            "method.quantization stay on the GPU. Use zero3.yaml."
        )


def check_launch(settings: Optimization, nodes: Nodes | None) -> None:
    """Raises `ConfigError` if the accelerate configuration contradicts nodes or run file, and what
    `check_settings` raises."""
    check_settings(settings)
    path = settings.accelerate_file
    values = read_accelerate_config(path)
    _check_machines(path, nodes)
    source = f"accelerate_config: {path}"
    if values.get("distributed_type") == "MULTI_CPU":
        raise ConfigError(
            f"{source}: accelerate starts a single process for distributed_type MULTI_CPU. Use "
            "MULTI_GPU with use_cpu: false, which trains on the CPU where there is no GPU"
        )
    _check_precision(source, values.get("mixed_precision") or "no", settings)
    if LaunchShape.read(path).fsdp:
        version = (values.get("fsdp_config") or {}).get("fsdp_version")
        _check_fsdp(source, str(version), settings)


def check_launched(settings: Optimization) -> None:
    """Raises `ConfigError` if the launcher of this process contradicts the run file, and what
    `check_settings` raises."""
    if given_attempt():
        return  # it is ours: `check_launch` has checked it
    check_settings(settings)
    source = "the launcher"
    for name in ("MEGATRON_LM", "PARALLELISM_CONFIG"):
        if os.environ.get(f"ACCELERATE_USE_{name}"):
            raise ConfigError(f"{source} sets ACCELERATE_USE_{name}, which is not supported")
    _check_precision(source, os.environ.get("ACCELERATE_MIXED_PRECISION", "no"), settings)
    if LaunchShape.of_launcher().fsdp:
        _check_fsdp(source, os.environ.get("FSDP_VERSION", "1"), settings)


def _check_precision(source: str, precision: str, settings: Optimization) -> None:
    if precision not in ("no", "bf16"):
        raise ConfigError(f"{source}: mixed_precision {precision}: must be no or bf16")
    if precision == "bf16" and not settings.bf16:
        raise ConfigError(
            f"{source} says mixed_precision bf16, but `bf16` is false: accelerate would still "
            "train in bfloat16. Change one of them."
        )


def _check_fsdp(source: str, version: str, settings: Optimization) -> None:
    if version != "2":
        raise ConfigError(f"{source}: fsdp_version must be 2")
    if not has_cuda():
        raise ConfigError(
            f"{source} shards with FSDP, which accelerate silently ignores on a CPU. Use "
            "cpu_zero2.yaml or cpu_zero3.yaml."
        )


def _check_machines(path: Path, nodes: Nodes | None) -> None:
    shape = LaunchShape.read(path)
    configured, processes = shape.machines, shape.processes
    given = nodes.count if nodes else 1
    if configured != given:
        problem = f"accelerate_config: {path} is for num_machines {configured}, but"
        if nodes:
            raise ConfigError(f"{problem} --nodes is {given}. They must be equal.")
        raise ConfigError(
            f"{problem} only one was started. Run the same command on each, with --nodes and its "
            "companion options (docs/scaling.md)."
        )
    if processes % given:
        raise ConfigError(
            f"accelerate_config: {path}: num_processes {processes} counts all machines together "
            f"and is not divisible by the {given} nodes"
        )


def check_address(nodes: Nodes) -> None:
    """Raises `ConfigError` if node 0's address cannot be resolved; on node 0 also if the address
    is another machine's, or if the port is in use."""
    try:
        addresses = socket.getaddrinfo(nodes.address, nodes.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"--main-address {nodes.address}: cannot resolve it ({error})") from None
    if not nodes.leads:
        return
    family, kind, protocol, _, address = addresses[0]
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
    """The network interface that is used to reach an address; None if it is unknown."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # UDP: nothing is sent
            own = probe.getsockname()[0]
            names = (name for _, name in socket.if_nameindex())
            return next((name for name in names if _ipv4(probe, name) == own), None)
    except OSError:
        return None


def _ipv4(probe: socket.socket, interface: str) -> str | None:
    siocgifaddr = 0x8915  # linux/sockios.h
    request = struct.pack("256s", interface.encode()[:15])
    try:
        return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), siocgifaddr, request)[20:24])
    except OSError:
        return None  # it has no IPv4 address
