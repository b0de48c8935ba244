"""GPUs by name and the clusters made of them, as drivers and data sheets describe them."""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from pydantic import BaseModel, ConfigDict, PositiveFloat

from dpo_dist.errors import ConfigError
from dpo_dist.estimates.memory import ModelShape
from dpo_dist.system.machine import GIB

# What a plan leaves free of a GPU's memory: a tenth, for the allocator's gaps and temporaries, and
# 2 GiB for the CUDA context, NCCL's buffers and the libraries' workspaces.
FREE_SHARE = 0.10
RUNTIME_BYTES = 2 * GIB
_GPUS = re.compile(r"(?:(?P<count>\d+)x)?(?P<name>[A-Za-z].*)", re.ASCII)


class GpuSpec(BaseModel):
    """A GPU as gpus.toml has it, in its units; the properties are in bytes and seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    memory_mib: PositiveFloat
    bf16_tflops: PositiveFloat
    memory_gb_per_second: PositiveFloat
    link_gb_per_second: PositiveFloat
    host_gb_per_second: PositiveFloat
    source: str

    @property
    def memory(self) -> float:
        """Bytes, as the driver reports them."""
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
        """Bytes per second from its memory."""
        return self.memory_gb_per_second * 1e9

    @property
    def link(self) -> float:
        """Bytes per second to the box's other GPUs, one direction."""
        return self.link_gb_per_second * 1e9

    @property
    def host(self) -> float:
        """Bytes per second to the CPU's memory, one direction."""
        return self.host_gb_per_second * 1e9


@dataclass(frozen=True)
class Cluster:
    """`nodes` boxes of `per_node` GPUs; `network` is what leaves a box, in bytes per second and
    one direction, for all of its GPUs together."""

    name: str
    gpu: GpuSpec
    per_node: int
    nodes: int = 1
    network: float = 400e9 / 8

    @property
    def size(self) -> int:
        """All GPUs."""
        return self.per_node * self.nodes

    @property
    def label(self) -> str:
        boxes = f"{self.nodes} nodes of " if self.nodes > 1 else ""
        return f"{boxes}{self.per_node} x {self.name}"


def read_gpus() -> dict[str, GpuSpec]:
    """The catalogue, by name."""
    return {name: GpuSpec(**values) for name, values in _table("gpus.toml")["gpus"].items()}


def find_cluster(gpus: str, *, nodes: int = 1, network_gbits: float = 400) -> Cluster:
    """The cluster of a text such as "8xH100-80G" (GPUs of a node; without a number, one).

    `network_gbits` is in Gb/s a node. Raises `ConfigError` for a GPU that is not in the
    catalogue, with the names that are.
    """
    found = _GPUS.fullmatch(gpus.strip())
    known = read_gpus()
    name = found["name"] if found else gpus
    gpu = {key.lower(): key for key in known}.get(name.lower())
    if gpu is None:
        raise ConfigError(
            f"--gpus {gpus}: unknown GPU {name!r}{_nearest(name, list(known))}. Known: "
            f"{', '.join(known)}"
        )
    count = int(found["count"] or 1) if found else 1
    if count < 1 or nodes < 1 or network_gbits <= 0:
        raise ConfigError(f"--gpus {gpus} --nodes {nodes}: needs at least one GPU and one node")
    return Cluster(gpu, known[gpu], count, nodes, network_gbits * 1e9 / 8)


def preset_shape(name: str) -> ModelShape:
    """The shape of a common model. Raises `ConfigError` with the names that there are."""
    known = _table("models.toml")["models"]
    key = {preset.lower(): preset for preset in known}.get(name.lower())
    if key is None:
        raise ConfigError(
            f"--model-shape {name}: not known{_nearest(name, list(known))}. Known: "
            f"{', '.join(known)}"
        )
    return ModelShape(**{k: v for k, v in known[key].items() if k not in ("source", "also")})


def preset_for(model: str) -> str | None:
    """The preset of a model whose name begins like it, as "meta-llama/Llama-3.1-8B-Instruct"."""
    name = model.rstrip("/").split("/")[-1].lower()
    beginnings = {
        beginning.lower(): preset
        for preset, values in _table("models.toml")["models"].items()
        for beginning in (preset, *values.get("also", ()))
    }
    longest = max((b for b in beginnings if name.startswith(b)), key=len, default=None)
    return None if longest is None else beginnings[longest]


@cache
def _table(file: str) -> dict[str, Any]:
    return tomllib.loads((resources.files("dpo_dist.estimates") / file).read_text("utf-8"))


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name.upper(), [key.upper() for key in known], n=1, cutoff=0.4)
    return f" (did you mean {next(k for k in known if k.upper() == near[0])}?)" if near else ""
