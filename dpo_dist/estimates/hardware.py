"""GPUs, clusters of them, and the sizes of common models, by name."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from pydantic import BaseModel, ConfigDict, PositiveFloat, TypeAdapter

from dpo_dist.errors import ConfigError
from dpo_dist.estimates.memory import ModelShape
from dpo_dist.system.machine import GIB

# A plan leaves a tenth of a GPU's memory free for fragmentation and temporary tensors, and 2 GiB
# for the CUDA context, NCCL's buffers and the libraries' workspaces.
FREE_SHARE = 0.10
RUNTIME_BYTES = 2 * GIB
_GPUS = re.compile(r"(?:(?P<count>\d+) ?[x*] ?)?(?P<name>[A-Za-z].*)", re.ASCII)


class GpuSpec(BaseModel):
    """A GPU of gpus.toml, in the units of that file. The properties are in bytes and seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    memory_mib: PositiveFloat
    bf16_tflops: PositiveFloat
    memory_gb_per_second: PositiveFloat
    link_gb_per_second: PositiveFloat
    host_gb_per_second: PositiveFloat
    devices: tuple[str, ...]
    source: str

    @property
    def memory(self) -> float:
        """Bytes, as reported by the driver."""
        return self.memory_mib * 2**20

    @property
    def usable(self) -> float:
        """Bytes that a plan may fill."""
        return self.memory * (1 - FREE_SHARE) - RUNTIME_BYTES

    @property
    def flops(self) -> float:
        """bf16 FLOP/s."""
        return self.bf16_tflops * 1e12

    @property
    def bandwidth(self) -> float:
        """Memory bandwidth in bytes per second."""
        return self.memory_gb_per_second * 1e9

    @property
    def link(self) -> float:
        """Bytes per second to the other GPUs of the node, in one direction."""
        return self.link_gb_per_second * 1e9

    @property
    def host(self) -> float:
        """Bytes per second to the CPU's memory, in one direction."""
        return self.host_gb_per_second * 1e9


@dataclass(frozen=True)
class Cluster:
    """`nodes` nodes with `per_node` GPUs each. `network` is the bandwidth per node for all its GPUs
    together, in bytes per second and one direction."""

    name: str
    gpu: GpuSpec
    per_node: int
    nodes: int = 1
    network: float = 400e9 / 8

    @property
    def size(self) -> int:
        """The number of GPUs of all nodes."""
        return self.per_node * self.nodes

    @property
    def label(self) -> str:
        nodes = f"{self.nodes} nodes of " if self.nodes > 1 else ""
        return f"{nodes}{self.per_node} x {self.name}"


class _Preset(BaseModel):
    """The fields of a model in models.toml, except its sizes."""

    also: tuple[str, ...] = ()


def read_gpus() -> dict[str, GpuSpec]:
    """All known GPUs, by name."""
    found = _table("gpus.toml", "gpus")
    return {name: GpuSpec.model_validate(values) for name, values in found.items()}


def find_device(name: str) -> GpuSpec | None:
    """The GPU with the name that the driver reports; None if it is unknown."""
    return next((gpu for gpu in read_gpus().values() if name in gpu.devices), None)


def find_cluster(gpus: str, *, nodes: int = 1, network_gbits: float = 400) -> Cluster:
    """The cluster whose nodes a text such as "8xH100-80G" describes (without a number: one GPU).
    "8xH100" is the module with the most memory, not the PCIe card.

    `network_gbits` is in Gb/s per node. Raises `ConfigError` for an unknown GPU, naming the known
    ones.
    """
    found = _GPUS.fullmatch(gpus.strip())
    known = read_gpus()
    name = found["name"] if found else gpus
    gpu = _named(name, known)
    if gpu is None:
        raise ConfigError(f"--gpus {gpus}: unknown GPU {name!r}{_known(name, known)}")
    count = int(found["count"] or 1) if found else 1
    if count < 1 or nodes < 1 or network_gbits <= 0:
        raise ConfigError(f"--gpus {gpus} --nodes {nodes}: needs at least one GPU and one node")
    return Cluster(gpu, known[gpu], count, nodes, network_gbits * 1e9 / 8)


def _named(name: str, known: Iterable[str]) -> str | None:
    """The known GPU that a name means: its own, or the part before its memory."""
    wanted = name.strip().lower().replace(" ", "-").removeprefix("nvidia-")
    keys = {key.lower(): key for key in known}
    short = [key for key in keys if re.fullmatch(rf"{re.escape(wanted)}-\d+g", key)]
    largest = max(short, key=lambda key: int(key.rpartition("-")[2][:-1]), default="")
    return keys.get(wanted) or keys.get(wanted.removesuffix("b")) or keys.get(largest)


def preset_shape(name: str) -> ModelShape:
    """The sizes of a common model. For another one raises `ConfigError` naming the known models."""
    known = _table("models.toml", "models")
    key = {preset.lower(): preset for preset in known}.get(name.lower())
    if key is None:
        raise ConfigError(f"--model-shape {name}: unknown model{_known(name, known)}")
    return TypeAdapter(ModelShape).validate_python(known[key])


def preset_for(model: str) -> str | None:
    """The longest preset name with which a model's name begins; None if there is none. For
    "meta-llama/Llama-3.1-8B-Instruct" it is "Llama-3.1-8B"."""
    name = model.rstrip("/").split("/")[-1].lower()
    beginnings = {
        beginning.lower(): preset
        for preset, values in _table("models.toml", "models").items()
        for beginning in (preset, *_Preset.model_validate(values).also)
    }
    longest = max((b for b in beginnings if name.startswith(b)), key=len, default=None)
    return None if longest is None else beginnings[longest]


@cache
def _table(file: str, key: str) -> Mapping[str, object]:
    """The entries of a table, by name; the caller validates them."""
    text = (resources.files("dpo_dist.estimates") / file).read_text("utf-8")
    return TypeAdapter(dict[str, object]).validate_python(tomllib.loads(text)[key])


def _known(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the known name closest to `name`, and all known names."""
    names = {key.upper(): key for key in known}
    near = difflib.get_close_matches(name.upper(), names, n=1, cutoff=0.4)
    hint = f" (did you mean {names[near[0]]}?)" if near else ""
    return f"{hint}. Known: {', '.join(names.values())}"
