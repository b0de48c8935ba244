"""Which of the processes of a distributed run this one is, read from the launcher's variables; and
which shard of the work a generating process has, which no launcher starts; and which machines train
together."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

# What `accelerate launch`, torchrun and Kubeflow leave in the environment. A vLLM engine that
# inherits them believes it is a rank of that job and hangs, so generation strips them.
LAUNCHER_PREFIXES = ("TORCHELASTIC_", "PET_", "ACCELERATE_", "VLLM_DP_", "MASTER_")
LAUNCHER_NAMES = frozenset({"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK"})


def rank() -> int:
    """This process's global rank; 0 outside a distributed run."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes train together; 1 outside a distributed run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one that writes and speaks."""
    return rank() == 0


def launcher_variables() -> list[str]:
    """The names of a surrounding distributed launch's variables, in order."""
    return sorted(
        name for name in os.environ if name in LAUNCHER_NAMES or name.startswith(LAUNCHER_PREFIXES)
    )


def strip_launcher_variables() -> None:
    """Forget the surrounding distributed launch, in this process and its children."""
    for name in launcher_variables():
        del os.environ[name]


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count` of the prompts: those whose number leaves `index` when divided.

    Every prompt belongs to exactly one shard, whatever the remainder. `whole` is no shard of an
    array but the phase itself, with what comes after the answers: an array of one, `0/1`, leaves
    the judging of an evaluation to another job as every array does.
    """

    index: int = 0
    count: int = 1
    whole: bool = False

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`"3/8"`: the fourth of eight, as array jobs count. Raises `ValueError`."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not int(match[1]) < int(match[2]):
            raise ValueError(
                f"{text!r} is not a shard: write INDEX/COUNT, with INDEX from 0 to COUNT-1"
            )
        return cls(int(match[1]), int(match[2]))

    def holds(self, number: int) -> bool:
        """Whether the prompt of that number, counted from 0, is in this shard."""
        return number % self.count == self.index

    def size(self, total: int) -> int:
        """How many of `total` prompts are in this shard."""
        return len(range(self.index, total, self.count))

    def cut(self, parts: int) -> list[Shard]:
        """This shard in as many smaller ones."""
        count = self.count * parts
        return [Shard(self.index + self.count * part, count) for part in range(parts)]

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


WHOLE = Shard(whole=True)


@dataclass(frozen=True)
class Nodes:
    """The machines that train together, and which of them this one is; 0 leads.

    `address` and `port` are where node 0 is reached. `launch_id` names one start of them all: a new
    one for every start. A node may take `join_seconds` to appear, and is given up after
    `silent_seconds` without a sign of life.
    """

    count: int
    rank: int
    address: str
    port: int
    launch_id: str
    join_seconds: float = 600.0
    silent_seconds: float = 180.0

    def __post_init__(self) -> None:
        if self.count < 2:
            raise ValueError(f"--nodes {self.count}: must be at least 2")
        if not 0 <= self.rank < self.count:
            raise ValueError(f"--node-rank {self.rank}: nodes are counted from 0 to --nodes - 1")
        if not self.address.strip():
            raise ValueError("--main-address is empty: is the variable it comes from set?")
        if not 0 < self.port < 65536:
            raise ValueError(f"--main-port {self.port}: not a valid port")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.launch_id):
            raise ValueError(
                f"--launch-id {self.launch_id!r}: use letters and digits, with . _ - in between"
            )

    @property
    def leads(self) -> bool:
        return self.rank == 0
