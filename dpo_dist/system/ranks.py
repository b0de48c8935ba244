"""The position of this process among others: its rank in a distributed run (from the launcher's
variables), its shard of the prompts, and the nodes that train together."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Annotated

from dpo_dist.system.options import Option

# Variables that `accelerate launch`, torchrun and Kubeflow set. A vLLM engine that inherits them
# acts as a rank of that job and hangs, so generation removes them.
LAUNCHER_PREFIXES = ("TORCHELASTIC_", "PET_", "ACCELERATE_", "VLLM_DP_", "MASTER_")
LAUNCHER_NAMES = frozenset({"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK"})

LOGS = "DPO_DIST_LOGS"  # set by `dpo-dist` for the ranks that it starts: the folder for their logs
_LAUNCHERS = (LOGS, "TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_MODE")


def rank() -> int:
    """This process's global rank; 0 outside a distributed run."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """The number of processes that train together; 1 outside a distributed run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process writes files and prints messages."""
    return rank() == 0


def machines() -> int:
    """The number of machines of a distributed run; 1 outside one."""
    return world_size() // int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def launched() -> bool:
    """Whether this process is a rank that `accelerate launch`, torchrun or `dpo-dist` has started.
    Other programs, such as a container's start script, set only the variables of the rank."""
    return any(name in os.environ for name in _LAUNCHERS)


def speaks() -> bool:
    """Whether this process prints errors: one process of a machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def launcher_variables() -> list[str]:
    """The environment variables that a distributed launcher has set, sorted."""
    return sorted(
        name for name in os.environ if name in LAUNCHER_NAMES or name.startswith(LAUNCHER_PREFIXES)
    )


def strip_launcher_variables() -> None:
    """Remove the launcher's variables from the environment of this process and its children."""
    for name in launcher_variables():
        del os.environ[name]


@dataclass(frozen=True)
class Shard:
    """The prompts with number % count = index, so that every prompt belongs to exactly one shard.

    `whole`: the process runs the whole phase, including the steps after the answers. A shard of an
    array job, even `0/1`, is not `whole`: it leaves the judging of an evaluation to another job.
    """

    index: int = 0
    count: int = 1
    whole: bool = False

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parse INDEX/COUNT; `3/8` is the fourth of eight shards. Raises `ValueError`."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not int(match[1]) < int(match[2]):
            raise ValueError(
                f"{text!r} is not a shard: write INDEX/COUNT, with INDEX from 0 to COUNT-1"
            )
        return cls(int(match[1]), int(match[2]))

    def holds(self, number: int) -> bool:
        """Whether the prompt with this number, counted from 0, is in this shard."""
        return number % self.count == self.index

    def size(self, total: int) -> int:
        """The number of prompts in this shard, of `total` prompts."""
        return len(range(self.index, total, self.count))

    def cut(self, parts: int) -> list[Shard]:
        """Split this shard into smaller shards."""
        count = self.count * parts
        return [Shard(self.index + self.count * part, count) for part in range(parts)]

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


WHOLE = Shard(whole=True)


@dataclass(frozen=True)
class Nodes:
    """The nodes that train together, and the rank of this node. Raises `ValueError` for options
    that do not fit together."""

    count: Annotated[int, Option("number of nodes", "N", "nodes")]
    rank: Annotated[int, Option("rank of this node, from 0", "R", "node-rank")]
    address: Annotated[str, Option("address of node 0 for the others", "HOST", "main-address")]
    port: Annotated[int, Option("a free port on node 0", "PORT", "main-port")]
    launch_id: Annotated[str, Option("id of this launch: new each time, equal on all nodes", "ID")]
    join_seconds: Annotated[
        float, Option("seconds to wait for the other nodes to join", "SECONDS", "join-timeout")
    ] = 600.0
    silent_seconds: Annotated[
        float, Option("seconds of silence until a node is lost", "SECONDS", "node-timeout")
    ] = 180.0

    def __post_init__(self) -> None:
        if self.count < 2:
            raise ValueError(f"--nodes {self.count}: must be at least 2")
        if not 0 <= self.rank < self.count:
            raise ValueError(f"--node-rank {self.rank}: must be from 0 to --nodes - 1")
        if not self.address.strip():
            raise ValueError("--main-address is empty: is the variable in the command set?")
        if not 0 < self.port < 65536:
            raise ValueError(f"--main-port {self.port}: not a valid port")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.launch_id):
            raise ValueError(
                f"--launch-id {self.launch_id!r}: use letters and digits, with . _ - in between"
            )

    @property
    def leads(self) -> bool:
        return self.rank == 0
